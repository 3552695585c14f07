"""From smoothed rows to rendered tokens, under Ray Data: what cannot be trained on is dropped here, and counted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import ray

from ual_ray.errors import UserError
from ual_ray.records import (
    ALPHA,
    ID,
    INPUT_IDS,
    LABELS,
    MESSAGES,
    SPLIT,
    TOKENS,
    TRAIN,
    VALIDATION,
    read_table,
)
from ual_ray.rendering import IGNORE_INDEX, load_renderer
from ual_ray.sources.models import resolve_model

TO_RENDER_FILE = "to_render.parquet"
TOKENS_FOLDER = "tokens"
DROPPED_FILE = "dropped_ids.txt"
COLUMNS = [ID, SPLIT, MESSAGES]


logger = logging.getLogger(__name__)


class Render:
    """Renders rows of (messages, alpha) to (input_ids, labels, alpha); rows that lose every label are left out."""

    def __init__(self, model: str, max_length: int, trust_remote_code: bool) -> None:
        """Load the tokenizer: once per actor."""
        self._renderer = load_renderer(resolve_model(model), trust_remote_code)
        self._max_length = max_length

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Render a batch; what is longer than max_length is cut off at the end."""
        rows = []
        for row in batch.to_pylist():
            try:
                rendered = self._renderer.conversation(row[MESSAGES])
            except ValueError:
                logger.exception("row %s cannot be rendered and is dropped", row[ID])
                continue
            input_ids, labels = rendered.input_ids[: self._max_length], rendered.labels[: self._max_length]
            # The first token is never predicted, so a label there would train nothing.
            if any(label != IGNORE_INDEX for label in labels[1:]):
                rows.append({**{name: row[name] for name in (ID, SPLIT, ALPHA)}, INPUT_IDS: input_ids, LABELS: labels})
        return pa.Table.from_pylist(rows, TOKENS)


def render(
    smoothed: Path, rows: Path | None, model: str, max_length: int, trust_remote_code: bool, folder: Path
) -> dict[str, Any]:
    """Render the training rows, and the validation rows of `rows`, to `folder`/tokens; return the counts.

    Raises UserError when no training row is left.
    """
    to_render = folder / TO_RENDER_FILE
    table = read_table(smoothed, [*COLUMNS, ALPHA])
    if rows is not None:
        held_out = read_table(rows, COLUMNS)
        held_out = held_out.filter(pa.compute.equal(held_out[SPLIT], VALIDATION))
        table = pa.concat_tables([table, held_out.append_column(ALPHA, pa.array([0.0] * len(held_out)))])
    pyarrow.parquet.write_table(table, to_render)
    (
        ray.data.read_parquet(str(to_render))
        .map_batches(
            Render,
            fn_constructor_args=(model, max_length, trust_remote_code),
            batch_format="pyarrow",
            concurrency=1,
            num_cpus=1,
        )
        .write_parquet(str(folder / TOKENS_FOLDER), mode=ray.data.SaveMode.OVERWRITE)
    )
    done = read_table(folder / TOKENS_FOLDER, [ID, SPLIT, INPUT_IDS])
    dropped = sorted(set(table[ID].to_pylist()) - set(done[ID].to_pylist()))
    (folder / DROPPED_FILE).write_text("".join(f"{row}\n" for row in dropped))
    training = done.filter(pa.compute.equal(done[SPLIT], TRAIN))
    if not len(training):
        raise UserError("no row has a response within train.max_length", value=max_length, fix="raise train.max_length")
    return {
        "train_rows": len(training),
        "validation_rows": len(done) - len(training),
        "dropped_rows": len(dropped),
        "dropped_share": len(dropped) / len(table),
        "train_tokens": pa.compute.sum(pa.compute.list_value_length(training[INPUT_IDS])).as_py(),
        "lengths": pa.compute.list_value_length(training[INPUT_IDS]).to_pylist(),
    }
