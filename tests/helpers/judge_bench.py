"""Two models' answers and a judge's pool in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.engines import make_engine
from ual_ray.engines.pool import PoolJob
from ual_ray.engines.requests import Request, Result
from ual_ray.judge.pairs import AnswerSet
from ual_ray.judge.stage import Judging
from ual_ray.parquet import read_table, write_rows
from ual_ray.run.progress import Meter

Row = dict[str, Any]
STORES = {"big": "store", "small": "store of small"}


def result(number: int, **values: Any) -> Row:
    row = {
        "id": digest(number),
        "benchmark": "chat",
        "messages": [{"role": "user", "content": f"Question {number}?"}],
        "model": "ual",
        "prediction": f"Answer {number}" + "!" * (number % 5),
        "status": "ok",
    }
    return row | values


def write_results(path: Path, rows: Sequence[Row]) -> Path:
    write_rows(rows, col.RESULTS, path)
    return path


def config(**judge: Any) -> Config:
    return Config(
        engine={"kind": "fake"},  # type: ignore[arg-type]
        judge={"model": "big", "orders": "random", **judge},  # type: ignore[arg-type]
        evaluate={"resamples": 100, "benchmarks": {"chat": {"kind": "open_ended"}}},  # type: ignore[arg-type]
    )


@dataclass
class Bench:
    """Two models' answers in a folder, and what was sent and said."""

    folder: Path
    answer: Callable[[Request], Result] | None = None
    sent: list[tuple[str, int]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.candidate = self.folder / "ual.parquet"
        self.reference = self.folder / "sft.parquet"
        write_results(self.candidate, [result(number) for number in range(30)])
        write_results(self.reference, [result(number, model="sft", prediction="Other") for number in range(30)])

    def judging(self, name: str = "out") -> Judging:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Judging(
            AnswerSet(self.candidate),
            AnswerSet(self.reference),
            folder,
            {name: self.folder / store for name, store in STORES.items()},
            self.no_meter,
            self.said.append,
        )

    @contextmanager
    def no_meter(self, name: str, total: int) -> Iterator[Meter]:
        self.shown = name
        yield None  # type: ignore[misc]

    def map_file(self, file: Path, job: PoolJob, meter: Meter) -> Iterator[pa.Table]:
        """Do what the pool does: only what is not finished, failed rows apart."""
        ids = read_table(file, ["id"])["id"]
        missing = job.store.missing(ids).to_pylist()
        rows = [row for row in read_table(file).to_pylist() if row["id"] in missing]
        self.sent.append((self.shown, len(rows)))
        engine = make_engine(job.spec)
        if self.answer is not None:
            answer = self.answer
            engine.run = lambda requests: [answer(request) for request in requests]  # type: ignore[method-assign]
        judged = [{name: row.get(name) for name in col.VERDICTS.names} for row in job.task(rows, engine)]
        failed = [row for row in judged if (row["error"] or "").startswith("engine:")]
        if failed:
            job.store.add_failed(pa.Table.from_pylist(failed, col.VERDICTS))
        if done := [row for row in judged if row not in failed]:
            job.store.finished.mkdir(parents=True, exist_ok=True)
            write_rows(done, col.VERDICTS, job.store.finished / f"{digest([row['id'] for row in done])}.parquet")
        return job.store.select(ids)
