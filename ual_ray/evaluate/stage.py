"""Stage 4: questions and a model in, result rows and their figures out.

What a model answers is kept in a store of its own, row by row: a benchmark that is added later sends only its questions, and
after a crash only what is missing is asked.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet
import ray

from ual_ray import columns as col
from ual_ray.benchmarks.gsm8k import FLEXIBLE, STRICT
from ual_ray.benchmarks.registry import make_benchmarks
from ual_ray.columns import digest
from ual_ray.config import Config, EngineConfig
from ual_ray.config.keys import engine_settings
from ual_ray.data.canonical import write_lines
from ual_ray.engines import EngineSpec
from ual_ray.engines.monitor import Limits
from ual_ray.engines.pool import Job, map_rows, start_monitor
from ual_ray.errors import UserError
from ual_ray.evaluate.answering import AnswerRows
from ual_ray.models.resolve import model_fingerprint
from ual_ray.run.progress import Meter
from ual_ray.stats.metrics import figures
from ual_ray.stats.results import read_results

ANSWERED = "answered"
FAILED = "failed"
DISAGREEMENTS_FILE = "disagreements.jsonl"
ROWS_PER_BATCH = 1000
# What figures are made of: no text.
NUMBERS = [col.ID, col.BENCHMARK, col.SOURCE, col.STATUS, col.ERROR, col.SCORES, col.NLL_SUM, col.TARGET_TOKENS]


def engine_of(config: Config) -> EngineConfig:
    """Spell the engine of evaluation, whose arithmetic is its own: arms have to differ by training, not by rounding."""
    return config.engine.model_copy(update={"dtype": config.evaluate.dtype})


def model_digest(config: Config, model: str) -> str:
    """Identify a model: 16 hexadecimal digits. A server's model is known by its name alone."""
    return digest(model if config.engine.kind == "openai" else model_fingerprint(model))


def evaluate(config: Config, name: str, model: str, questions: Path, store: Path, folder: Path, meter: Meter) -> dict[str, Any]:
    """Have a model answer `questions` (Parquet); `folder` gets results, disagreements and figures.json; return the figures.

    `name` is what the report calls the model ('base' or an arm). `store` keeps every answer of this model under these engine
    settings: what it holds is not asked again. Quarantined rows are counted, never scored as wrong. Raises UserError when
    no question could be answered.
    """
    benchmarks = make_benchmarks(config.evaluate.benchmarks)
    check_engine(config)
    shutil.rmtree(store / FAILED, ignore_errors=True)  # asked again, and written anew
    (store / FAILED).mkdir(parents=True)
    spec = EngineSpec(engine_of(config), model, trust_remote_code=config.trust_remote_code)
    task = AnswerRows(benchmarks, name, model_digest(config, model), digest(engine_settings(engine_of(config), "answers")))
    job = Job(spec, task, col.RESULTS, store / ANSWERED, store / FAILED)
    wanted = pyarrow.parquet.read_table(questions, columns=[col.ID])[col.ID]
    if not _all_finished(job, wanted):
        monitor = start_monitor(Limits())
        try:
            map_rows(lambda: ray.data.read_parquet(str(questions)), len(wanted), job, monitor, meter)
        finally:
            ray.kill(monitor)
    found = _select(store, wanted, name, folder / col.RESULTS_FOLDER)
    result = _describe(name, read_results(folder, NUMBERS))
    if found < len(wanted):
        raise UserError(
            f"{len(wanted) - found} questions were answered once, and the answers are gone",
            got=f"files are missing from {store}",
            fix="--force evaluate asks all questions again",
        )
    if result["quarantined"] == result["rows"]:
        raise UserError(
            f"no question could be answered by {model}",
            got=result["reasons"],
            fix="raise engine.max_model_len, or see ual.log",
        )
    result["disagreements"] = _write_disagreements(folder)
    (folder / col.FIGURES_FILE).write_text(json.dumps(result, indent=2))
    return result


def check_engine(config: Config) -> None:
    """Raise UserError for benchmarks by likelihood on a server, which does not give the likelihood of a text."""
    if config.engine.kind != "openai":
        return
    built = make_benchmarks(config.evaluate.benchmarks)
    if impossible := sorted(name for name, benchmark in built.items() if benchmark.needs_likelihood):
        raise UserError(
            f"evaluate.benchmarks {', '.join(impossible)}: a server does not give the likelihood of a text",
            fix="use engine.kind=vllm, or leave them out",
        )


def disagreements(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the results whose strict and flexible extraction differ: id, benchmark, answer, prediction, strict, flexible."""
    columns = [col.ID, col.BENCHMARK, col.ANSWER, col.PREDICTION, col.EXTRACTED]
    for row in _rows(folder, columns):
        extracted = dict(row.pop(col.EXTRACTED) or [])
        if STRICT in extracted and extracted[STRICT] != extracted[FLEXIBLE]:
            yield row | {STRICT: extracted[STRICT], FLEXIBLE: extracted[FLEXIBLE]}


def sample_table(folder: Path, most: int = 200) -> dict[str, list[Any]]:
    """Return the first results as columns, for people: the question's last turn, and maps as JSON."""
    rows = pyarrow.dataset.dataset(str(folder / col.RESULTS_FOLDER), format="parquet").head(most).to_pylist()
    shown: dict[str, list[Any]] = {
        col.ID: [row[col.ID] for row in rows],
        "question": [next((m["content"] for m in reversed(row[col.MESSAGES]) if m["role"] == "user"), "") for row in rows],
    }
    shown |= {name: [row[name] for row in rows] for name in (col.BENCHMARK, col.SOURCE, col.ANSWER, col.PREDICTION)}
    shown |= {
        name: [json.dumps(dict(row[name] or []), ensure_ascii=False) for row in rows] for name in (col.EXTRACTED, col.SCORES)
    }
    return shown | {
        name: [row[name] for row in rows] for name in (col.CONFIDENCE, col.NLL_SUM, col.TARGET_TOKENS, col.STATUS, col.ERROR)
    }


def _rows(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    files = pyarrow.dataset.dataset(str(folder / col.RESULTS_FOLDER), format="parquet")
    for batch in files.to_batches(columns=[*columns], batch_size=ROWS_PER_BATCH):
        yield from batch.to_pylist()


def _write_disagreements(folder: Path) -> int:
    found = list(disagreements(folder))
    path = folder / DISAGREEMENTS_FILE
    path.unlink(missing_ok=True)
    if found:
        write_lines(found, path)
    return len(found)


def _all_finished(job: Job, wanted: pa.ChunkedArray) -> bool:
    """Tell whether every question has its answer, so that no model has to be loaded."""
    notes = [file for file in job.finished.glob("*.parquet") if not file.name.endswith(".pending.parquet")]
    if len(list(job.finished.glob("*.parquet"))) > len(notes) or not notes:
        return False  # something is unfinished: Ray Data tidies up when it starts
    done = pa.concat_tables(pyarrow.parquet.read_table(file, columns=[col.ID]) for file in notes)[col.ID]
    return bool(pyarrow.compute.all(pyarrow.compute.is_in(wanted, value_set=done)).as_py())


def _select(store: Path, wanted: pa.ChunkedArray, name: str, target: Path) -> int:
    """Copy the answers to the questions at hand from the store, batch by batch, each once; return how many there are."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    missing = set(wanted.to_pylist())
    files = [*sorted((store / ANSWERED).glob("*.parquet")), *sorted((store / FAILED).glob("*.parquet"))]
    place = col.RESULTS.get_field_index(col.MODEL)
    part = target / "results.parquet.part"
    with pyarrow.parquet.ParquetWriter(part, col.RESULTS) as writer:
        for file in files:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(ROWS_PER_BATCH):
                own = pa.array([_take(identity, missing) for identity in batch[col.ID].to_pylist()], pa.bool_())
                table = pa.Table.from_batches([batch.filter(own)]).select(col.RESULTS.names).cast(col.RESULTS)
                # The store is the model's, whatever it is called in a report.
                table = table.set_column(place, col.RESULTS.field(col.MODEL), pa.array([name] * len(table), pa.string()))
                if len(table):
                    writer.write_table(table)
    part.replace(target / "results.parquet")
    return len(wanted) - len(missing)


def _take(identity: str, missing: set[str]) -> bool:
    if identity not in missing:
        return False
    missing.remove(identity)
    return True


def _describe(name: str, numbers: pa.Table) -> dict[str, Any]:
    failed = numbers.filter(pyarrow.compute.not_equal(numbers[col.STATUS], col.STATUS_OK))
    reasons = Counter((error or "unknown").split(":")[0] for error in failed[col.ERROR].to_pylist())
    rows = Counter(numbers[col.BENCHMARK].to_pylist())
    lost = Counter(failed[col.BENCHMARK].to_pylist())
    return {
        "name": name,
        "rows": len(numbers),
        "quarantined": len(failed),
        "reasons": dict(reasons),
        "benchmarks": {key: {"rows": rows[key], "quarantined": lost[key]} for key in sorted(rows)},
        "figures": [figure.as_dict() for figure in figures(numbers)],
    }
