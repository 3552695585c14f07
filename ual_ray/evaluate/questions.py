"""The questions of all benchmarks, as one Parquet file that every model is asked from.

They come from files through the readers that scoring uses, and from the test split of the run. Rows stream through: memory
holds one batch, and the ids.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import nsmallest
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.fs
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.benchmarks import make_benchmarks
from ual_ray.benchmarks.benchmark import Benchmark, Question
from ual_ray.config import BenchmarkConfig, DataConfig
from ual_ray.config.redact import redact_uri
from ual_ray.data.files import ADDRESS, find_files, from_address
from ual_ray.data.fingerprint import fingerprint
from ual_ray.data.formats import BadRow, columns_of
from ual_ray.data.reading import find_pieces, read_piece
from ual_ray.errors import UserError
from ual_ray.parquet import RowFiles, writing

ROWS_PER_BATCH = 1000
# Rows of a file that are looked at before anything starts.
LOOKED_AT = 1000

logger = logging.getLogger(__name__)

Questions = Iterator[Question | BadRow]


def check(configs: Mapping[str, BenchmarkConfig], max_model_len: int) -> None:
    """Raise UserError for a benchmark that cannot be asked.

    Its path cannot be read, its first rows hold no question, a library is missing, or its answers do not fit the context.
    """
    for name, benchmark in make_benchmarks(configs).items():
        benchmark.check()
        longest = benchmark.max_new_tokens
        if "max_new_tokens" in benchmark.settings and longest >= max_model_len:
            raise UserError(
                f"evaluate.benchmarks.{name}.max_new_tokens leaves no room for the question",
                got=f"{longest} of engine.max_model_len = {max_model_len}",
                fix=f"set engine.max_model_len above {longest} plus the longest question, or a lower max_new_tokens",
            )
        if benchmark.config.path is not None:
            found = list(islice(_from_path(name, benchmark), LOOKED_AT))
            if not any(isinstance(question, Question) for question in found):
                raise _nothing(name, benchmark, Counter(str(reason) for reason in found))


def digests(configs: Mapping[str, BenchmarkConfig]) -> dict[str, Any]:
    """Return what the questions of each benchmark depend on: content of its files, settings, version. Raises UserError."""
    known = {}
    for name, benchmark in make_benchmarks(configs).items():
        config = benchmark.config
        content = None if config.path is None else _naming(name, lambda config=config: fingerprint(_data(config)))
        known[name] = benchmark.provenance() | {
            "content": content,
            "columns": config.columns,
            "max_rows": config.max_rows,
        }
    return known


def write_questions(configs: Mapping[str, BenchmarkConfig], rows: Path | None, folder: Path) -> dict[str, dict[str, Any]]:
    """Write `folder`/questions.parquet (`columns.QUESTIONS`); return questions, bad rows and repeated ones per benchmark.

    `rows` holds canonical rows, of which the test split is used; without them benchmarks of the test split have no question.
    Raises UserError for a benchmark with a path that yields no question, and when there is no question at all.
    """
    counts: dict[str, dict[str, Any]] = {}
    with writing(folder / col.QUESTIONS_FILE, col.QUESTIONS) as writer:
        for name, benchmark in make_benchmarks(configs).items():
            benchmark.check()
            source = _from_rows(benchmark, rows) if benchmark.config.path is None else _from_path(name, benchmark)
            counts[name] = _write(name, benchmark, source, writer)
            if not counts[name]["questions"] and benchmark.config.path is not None:
                raise _nothing(name, benchmark, counts[name]["bad_reasons"])
        if not any(count["questions"] for count in counts.values()):
            raise UserError(
                "no benchmark has a question",
                got=f"{rows} holds no row of the split '{col.TEST}' that {', '.join(configs)} can use",
                fix="raise data.test_share, or give evaluate.benchmarks a path",
            )
    return counts


def _write(name: str, benchmark: Benchmark, source: Questions, writer: pyarrow.parquet.ParquetWriter) -> dict[str, Any]:
    """Write up to `max_rows` different questions of a benchmark: the first, or those with the lowest ids."""
    written = 0
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    repeated = 0

    def different() -> Iterator[dict[str, Any]]:
        nonlocal repeated
        for question in source:
            if isinstance(question, BadRow):
                reasons[str(question).split(":")[0]] += 1
                continue
            row = _row(name, benchmark, question)
            repeated += row[col.ID] in seen
            if row[col.ID] not in seen:
                seen.add(row[col.ID])
                yield row

    most = benchmark.max_rows
    rows: Iterator[dict[str, Any]] = islice(different(), most)
    if most is not None and benchmark.lowest_ids:
        rows = iter(nsmallest(most, different(), key=itemgetter(col.ID)))
    while batch := list(islice(rows, ROWS_PER_BATCH)):
        writer.write_table(pa.Table.from_pylist(batch, col.QUESTIONS))
        written += len(batch)
    if reasons:
        logger.warning("benchmark %s: %d rows hold no question: %s", name, reasons.total(), dict(reasons))
    bad = {"bad": reasons.total(), "bad_reasons": dict(reasons)}
    return {"kind": benchmark.kind, "questions": written, "repeated": repeated} | bad


def _row(name: str, benchmark: Benchmark, question: Question) -> dict[str, Any]:
    return {
        col.ID: benchmark.identify(name, question),
        col.BENCHMARK: name,
        col.BENCHMARK_VERSION: benchmark.version,
        col.SOURCE: question.source,
        col.MESSAGES: list(question.messages),
        col.ANSWER: question.answer,
        col.CHOICES: list(question.choices) or None,
        col.REFERENCE: question.reference,
    }


def _from_rows(benchmark: Benchmark, rows: Path | None) -> Questions:
    if rows is None:
        return
    data = RowFiles(rows)
    wanted = pa.compute.field(col.SPLIT) == col.TEST
    if benchmark.lowest_ids and benchmark.max_rows is not None:
        # By their ids, before any text is read: a question is a row, and the split may have millions.
        ids = data.to_table(columns=[col.ID], filter=wanted)[col.ID]
        if len(ids) > benchmark.max_rows:
            places = pa.compute.select_k_unstable(ids, k=benchmark.max_rows, sort_keys=[("", "ascending")])
            wanted &= pa.compute.field(col.ID) <= ids[places[-1].as_py()]
    for batch in data.to_batches(columns=[col.SOURCE, col.MESSAGES], filter=wanted, batch_size=ROWS_PER_BATCH):
        for row in batch.to_pylist():
            question = benchmark.question(row[col.MESSAGES], row[col.SOURCE])
            if question is not None:
                yield question


def _from_path(name: str, benchmark: Benchmark) -> Questions:
    data = _naming(name, lambda: _data(benchmark.config))
    records = chain.from_iterable(map(read_piece, _naming(name, lambda: find_pieces(data))))
    stem = PurePath(data.path).name.split(".")[0]
    yield from benchmark.questions(_checked(name, benchmark.config.columns, records), stem)


def _checked(name: str, columns: Mapping[str, str], records: Iterator[Any]) -> Iterable[Any]:
    """Look at the first records for the columns that are to be renamed. Raises UserError for one they lack."""
    first = list(islice(records, ROWS_PER_BATCH))
    found = columns_of(record for record in first if not isinstance(record, BadRow))
    if missing := sorted(set(columns.values()) - set(found)) if found else []:
        raise UserError(
            f"evaluate.benchmarks.{name}.columns: there is no column {', '.join(missing)}",
            got=f"columns {found}",
            fix="name columns that the file has",
        )
    return chain(first, records)


def _data(config: BenchmarkConfig) -> DataConfig:
    """Name a benchmark's data in the readers' terms; of data with splits it is the test split that is meant."""
    data = config.data()
    assert data is not None, "a benchmark without a path has no data of its own"
    if data.split is None and (_has_splits(data.path) or find_files(data) is None):
        return data.model_copy(update={"split": "test"})
    return data


def _has_splits(path: str) -> bool:
    """Tell whether a path is a datasets directory of several splits."""
    if ADDRESS.match(path):
        filesystem, inner = from_address(path)
    else:
        filesystem, inner = pyarrow.fs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    return filesystem.get_file_info(f"{inner}/dataset_dict.json").type == pyarrow.fs.FileType.File


def _naming(name: str, read: Any) -> Any:
    """Read a benchmark's data; an error names the benchmark, whose readers know of `data` alone."""
    try:
        return read()
    except (UserError, OSError, pa.ArrowException) as error:
        raise UserError(f"evaluate.benchmarks.{name}.path cannot be used: {error}") from error


def _nothing(name: str, benchmark: Benchmark, reasons: Mapping[str, int]) -> UserError:
    told = ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common(3)) or "the data is empty"
    return UserError(
        f"evaluate.benchmarks.{name}: no row of {redact_uri(benchmark.config.path or '')} is a question of {benchmark.kind}",
        got=told,
        expected=benchmark.record_format,
        fix="name the columns in evaluate.benchmarks.*.columns, or choose another kind",
    )
