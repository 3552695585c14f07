"""Stage 4: questions and a model in, result rows and their figures out.

Answers are kept in a row store per model and engine settings: a benchmark that is added later sends only its own questions,
and after a crash only questions without an answer are sent.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.benchmarks import make_benchmarks
from ual_ray.benchmarks.gsm8k import FLEXIBLE, STRICT
from ual_ray.config import Config, EngineConfig
from ual_ray.config.files import write_lines, write_record
from ual_ray.config.keys import engine_settings
from ual_ray.engines import EngineSpec
from ual_ray.engines.pool import PoolJob, map_file
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.evaluate.answering import AnswerRows
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import RowFiles, write_tables
from ual_ray.run.progress import Meter
from ual_ray.stats.metrics import measure
from ual_ray.stats.results import read_results

DISAGREEMENTS_FILE = "disagreements.jsonl"
# The columns that metrics are computed from: no texts.
NUMBERS = [col.ID, col.BENCHMARK, col.SOURCE, col.STATUS, col.ERROR, col.SCORES, col.NLL_SUM, col.TARGET_TOKENS]
SAMPLED_ROWS = 200
SAMPLED = (
    *(col.ID, col.BENCHMARK, col.SOURCE, col.ANSWER, col.PREDICTION, col.EXTRACTED, col.SCORES),
    *(col.CONFIDENCE, col.NLL_SUM, col.TARGET_TOKENS, col.STATUS, col.ERROR),
)


def engine_of(config: Config) -> EngineConfig:
    """Return the engine of evaluation; its dtype is `evaluate.dtype`, so that arms differ by training and not by rounding."""
    return config.engine.model_copy(update={"dtype": config.evaluate.dtype})


def model_digest(config: Config, model: str) -> str:
    """Identify a model: 16 hexadecimal digits, from its files, or from its name alone when a server runs it."""
    return col.digest(model if config.engine.remote else model_fingerprint(model))


def evaluate(
    config: Config, name: str, model: str, questions: Path, store_folder: Path, folder: Path, meter: Meter
) -> dict[str, Any]:
    """Have a model answer `questions` (Parquet); `folder` gets results, disagreements and figures.json; return the figures.

    `name` is what the report calls the model ('base' or an arm). The row store at `store_folder` keeps every answer of this
    model under these engine settings; questions that it has answers to are not sent. Quarantined rows are counted, never
    scored as wrong. Raises UserError when no question could be answered.
    """
    benchmarks = make_benchmarks(config.evaluate.benchmarks)
    check_engine(config)
    store = RowStore(store_folder, col.RESULTS)
    store.retry_failed()
    spec = EngineSpec(engine_of(config), model, trust_remote_code=config.trust_remote_code)
    task = AnswerRows(benchmarks, name, model_digest(config, model), col.digest(engine_settings(engine_of(config), "answers")))
    results = map_file(questions, PoolJob(spec, task, store), meter)
    write_tables(with_model(results, name), col.RESULTS, folder / col.RESULTS_FOLDER)
    seconds = meter.seconds
    result = _describe(name, read_results(folder, NUMBERS))
    if result["quarantined"] == result["rows"]:
        raise UserError(
            f"no question could be answered by {model}",
            got=result["reasons"],
            fix="raise engine.max_model_len, or see ual.log",
        )
    result["disagreements"] = _write_disagreements(folder)
    write_record(folder / col.FIGURES_FILE, result)
    start = {} if meter.start_seconds is None else {"start_seconds": meter.start_seconds}
    return result | {"sent_rows": round(meter.rate_done), "seconds": seconds} | start


def with_model(results: Iterable[pa.Table], name: str) -> Iterator[pa.Table]:
    """Set the model's name, which may differ from the one that its answers were stored with."""
    position = col.RESULTS.get_field_index(col.MODEL)
    for table in results:
        yield table.set_column(position, col.RESULTS.field(col.MODEL), pa.array([name] * len(table), pa.string()))


def check_engine(config: Config) -> None:
    """Raise UserError for benchmarks by likelihood on a server, which does not give the likelihood of a text."""
    if not config.engine.remote:
        return
    built = make_benchmarks(config.evaluate.benchmarks)
    if impossible := sorted(name for name, benchmark in built.items() if benchmark.needs_likelihood):
        raise UserError(
            f"evaluate.benchmarks {', '.join(impossible)}: a server does not give the likelihood of a text",
            fix="use engine.kind=vllm, or leave them out",
        )


def disagreements(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the results whose strict and flexible extraction differ: id, benchmark, answer, prediction, strict, flexible."""
    results = RowFiles(folder / col.RESULTS_FOLDER)
    for batch in results.to_batches(columns=[col.ID, col.BENCHMARK, col.ANSWER, col.PREDICTION, col.EXTRACTED]):
        for row in batch.to_pylist():
            extracted = dict(row.pop(col.EXTRACTED) or [])
            if STRICT in extracted and extracted[STRICT] != extracted[FLEXIBLE]:
                yield row | {STRICT: extracted[STRICT], FLEXIBLE: extracted[FLEXIBLE]}


def sample_table(folder: Path) -> dict[str, list[Any]]:
    """Return the first results as columns to look at: the last turn of each question, and maps as JSON."""
    table = RowFiles(folder / col.RESULTS_FOLDER).head(SAMPLED_ROWS)
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in SAMPLED}
    for name in (col.EXTRACTED, col.SCORES):
        columns[name] = [json.dumps(dict(pairs or []), ensure_ascii=False) for pairs in columns[name]]
    asked = [[turn["content"] for turn in turns if turn["role"] == "user"] for turns in table[col.MESSAGES].to_pylist()]
    return {col.ID: columns.pop(col.ID), "question": [turns[-1] if turns else "" for turns in asked], **columns}


def _write_disagreements(folder: Path) -> int:
    found = list(disagreements(folder))
    path = folder / DISAGREEMENTS_FILE
    path.unlink(missing_ok=True)
    if found:
        write_lines(path, found)
    return len(found)


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
        "figures": [value.as_dict() for value in measure(numbers)],
    }
