"""Stage 4: test rows and a model in, evaluated rows and their figures out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset
import ray

from ual_ray.config import Config
from ual_ray.elicit.engines import EngineSpec
from ual_ray.elicit.monitor import Limits
from ual_ray.elicit.pool import Job, map_rows, rows_in, start_monitor
from ual_ray.errors import UserError
from ual_ray.evaluate.answering import AnswerRows
from ual_ray.evaluate.metrics import Figure, figures
from ual_ray.progress import Meter
from ual_ray.records import ERROR, EVALUATED, SPLIT, STATUS, STATUS_OK, TEST, read_table

PREDICTIONS = "predictions"
FIGURES_FILE = "figures.json"
TO_ANSWER = "to_answer"


def select(rows: Path, folder: Path) -> int:
    """Copy the test rows to the stage's folder, batch by batch; return how many there are."""
    chosen = pyarrow.dataset.dataset(str(rows), format="parquet").scanner(filter=pyarrow.dataset.field(SPLIT) == TEST)
    count = chosen.count_rows()
    if not count:
        raise UserError(f"{rows} holds no row of the split '{TEST}'", fix="raise data.test_share")
    pyarrow.dataset.write_dataset(chosen, folder / TO_ANSWER, format="parquet", existing_data_behavior="delete_matching")
    return count


def evaluate(config: Config, name: str, model: str, folder: Path, meter: Meter) -> dict[str, Any]:
    """Evaluate a model on the rows that `select` wrote; write and return its figures.

    `name` is what the report calls the model ('base' or an arm). Quarantined rows are counted, never scored as wrong.
    """
    # Arms have to differ by their training, not by rounding: evaluation has an arithmetic of its own.
    engine = config.engine.model_copy(update={"dtype": config.evaluate.dtype})
    spec = EngineSpec(engine, model, trust_remote_code=config.trust_remote_code)
    job = Job(spec, AnswerRows(name, config.evaluate.max_new_tokens), EVALUATED, folder / PREDICTIONS)
    source = folder / TO_ANSWER
    map_rows(lambda: ray.data.read_parquet(str(source)), rows_in(source), job, start_monitor(Limits()), meter)
    rows = read_predictions(folder)
    reasons = Counter((row[ERROR] or "").split(":")[0] for row in rows if row[STATUS] != STATUS_OK)
    measured = figures(rows)
    if not measured:
        raise UserError(f"no test row could be evaluated with {model}", value=dict(reasons), fix="raise engine.max_model_len")
    result = {
        "name": name,
        "rows": len(rows),
        "quarantined": sum(reasons.values()),
        "reasons": dict(reasons),
        "figures": [figure.as_dict() for figure in measured],
    }
    (folder / FIGURES_FILE).write_text(json.dumps(result, indent=2))
    return result


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """Read the evaluated rows that `evaluate` wrote."""
    return read_table(folder / PREDICTIONS).to_pylist()


def read_figures(folder: Path) -> tuple[str, list[Figure]]:
    """Read what `evaluate` wrote: the model's name and its figures."""
    content = json.loads((folder / FIGURES_FILE).read_text())
    return content["name"], [Figure(**figure) for figure in content["figures"]]
