"""What fault tests share: `ual elicit`, what it sent and finished so far, and ways to kill its parts.

What is killed is a process of its own with a Ray of its own; the other commands run in the tests' process, on its Ray.

The fake engine writes every request it is sent to a file, so that a row that is sent again is seen.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from elicitation_checks import ACTORS, REQUESTS_PER_ROW, ROWS, ROWS_PER_BLOCK, write_rows
from killed_command import KilledCommand
from local_cluster import Cluster
from pyarrow.lib import ArrowInvalid

MARK = re.compile(r"row-\d{3}")

# Enough that an engine is still at work when its first rows are seen to be finished, on a machine with much else to do too.
VLLM_ROWS = 96


class Elicitation(KilledCommand):
    """One command `ual elicit ROWS --out FOLDER ...`, started once or more."""

    def __init__(
        self, ual: Any, folder: Path, data: Path, settings: Sequence[str], environment: dict[str, str] | None = None
    ) -> None:
        """Hold what every start of it has in common."""
        super().__init__(ual, folder, ["elicit", str(data), *settings], environment)
        self.log_file = folder / "sent.jsonl"

    def until_finished(self, rows: int) -> frozenset[str]:
        """Wait until so many rows are remembered as finished; return them."""
        return self.until(lambda: len(found := self.finished()) >= rows and found, f"{rows} rows are finished")

    @property
    def store(self) -> Path:
        """Where it keeps what was measured."""
        (store,) = (self.out / "store").iterdir()
        return store

    def finished(self) -> frozenset[str]:
        """Read the ids of the rows that are remembered as finished."""
        files = (self.out / "store").glob("*/checkpoint/*.parquet")
        return frozenset(name for file in files if ".pending" not in file.name for name in _column(file, "id"))

    def failed(self) -> list[dict[str, Any]]:
        """Read the rows that an engine failed on."""
        return [row for file in self.store.glob("failed/*.parquet") for row in pyarrow.parquet.read_table(file).to_pylist()]

    def scored(self) -> dict[str, dict[str, Any]]:
        """Read the scored rows of the newest result, by id."""
        folder = self.out / (self.out / "newest").read_text() / "scored"
        rows = pa.concat_tables([pyarrow.parquet.read_table(file) for file in sorted(folder.glob("*.parquet"))]).to_pylist()
        assert len({row["id"] for row in rows}) == len(rows), "a row is there twice"
        return {row["id"]: row for row in rows}

    def names(self) -> dict[str, str]:
        """Read the ids of the rows, by the mark in their text."""
        tables = [pyarrow.parquet.read_table(file) for file in self.out.glob("*/rows/*.parquet")]
        rows = [row for table in tables for row in table.to_pylist()]
        return {MARK.findall(row["messages"][0]["content"])[0]: row["id"] for row in rows}

    def calls(self) -> list[dict[str, Any]]:
        """Read what the engines were sent so far."""
        if not self.log_file.is_file():
            return []
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def sent(self, since: int = 0, until: int | None = None) -> Counter[str]:
        """Count the requests per row, by id, from the `since`th call on, to the one before the `until`th."""
        names = self.names()
        return Counter(names[MARK.findall(call["text"])[0]] for call in self.calls()[since:until])


def _column(file: Path, name: str) -> list[str]:
    """Read a column of a file that may be gone or not yet whole."""
    with suppress(FileNotFoundError, ArrowInvalid):
        return pyarrow.parquet.read_table(file, columns=[name])[name].to_pylist()
    return []


Elicit = Callable[..., Elicitation]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the rows, every tenth of them twice."""
    rows = [(f"Question of row-{n:03d}.", f"The answer of row-{n:03d} is {n * n}.") for n in range(ROWS)]
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", [*rows, *rows[::10]])


@pytest.fixture(scope="module")
def long_rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows every third of which has more words than the engine takes."""
    words = " word" * 2000
    rows = [(f"Question of row-{n:03d}.{words * (n % 3 == 0)}", f"The answer of row-{n:03d}.") for n in range(ROWS)]
    return write_rows(tmp_path_factory.mktemp("data") / "long.jsonl", rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that looks like a model: the fake engine reads nothing of it but its name."""
    folder = tmp_path_factory.mktemp("models") / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(8))
    return folder


def settings(model: str, **more: object) -> list[str]:
    """Spell the settings of all runs: small blocks, nothing scored twice, every row scored."""
    common = {
        "elicit.model": model,
        "elicit.retest_share": 0,
        "engine.rows_per_block": ROWS_PER_BLOCK,
        "engine.batch_size": ROWS_PER_BLOCK,
        "engine.max_actors": ACTORS,
        "data.validation_share": 0,
        "data.test_share": 0,
        "data.max_bad_share": 0.2,
    }
    return [f"{key}={value}" for key, value in (common | more).items()]


@pytest.fixture(scope="module")
def ended() -> Iterator[Callable[[Elicitation], Elicitation]]:
    """Have the processes of an elicitation ended after the module's tests, whatever happens in them."""
    all_of_them: list[Elicitation] = []

    def keep(elicitation: Elicitation) -> Elicitation:
        all_of_them.append(elicitation)
        return elicitation

    try:
        yield keep
    finally:
        for elicitation in all_of_them:
            elicitation.end()


@pytest.fixture(scope="module")
def elicit(rows_file: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, ended: Any, ual: Any) -> Elicit:
    """Make elicitations of the rows by the fake engine, each in a folder of its own."""

    def make(
        seconds_per_run: float, environment: dict[str, str] | None = None, data: Path = rows_file, **more: object
    ) -> Elicitation:
        folder = tmp_path_factory.mktemp("run")
        engine = {
            "engine.kind": "fake",
            "engine.arguments.seconds_per_run": seconds_per_run,
            "engine.arguments.log": folder / "sent.jsonl",
        }
        return ended(Elicitation(ual, folder, data, settings(str(model), **(engine | more)), environment))

    return make


@pytest.fixture(scope="module")
def vllm_elicit(tmp_path_factory: pytest.TempPathFactory, ended: Any, ual: Any) -> Elicit:
    """Make elicitations of a few short rows by vLLM with the demo model, each in a folder of its own."""
    rows = [(f"What is {n} + {n}? This is row-{n:03d}.", f"{2 * n}") for n in range(VLLM_ROWS)]
    data = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)

    def make(environment: dict[str, str] | None = None, **more: object) -> Elicitation:
        own: dict[str, object] = {
            "elicit.estimators": "[verbalized_error]",
            "engine.rows_per_block": 4,
            "engine.batch_size": 4,
            "engine.max_actors": 1,
            "engine.dtype": "float32",
            "engine.max_model_len": 256,
            "runtime.check_memory": "false",
            **more,
        }
        return ended(Elicitation(ual, tmp_path_factory.mktemp("run"), data, settings("demo", **own), environment))

    return make


@pytest.fixture(scope="module")
def undisturbed(elicit: Any) -> Any:
    """Score all rows, with nothing in the way."""
    run = elicit(seconds_per_run=0.0)
    run.run()
    assert len(run.scored()) == ROWS, "duplicates are scored once"
    assert len(run.calls()) == ROWS * REQUESTS_PER_ROW
    return run


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Start a cluster of two nodes, and stop it."""
    started = Cluster()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Any]:
    """Mount disks in memory at folders, of a size in the words of tmpfs; of one that is mounted, change the size."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(exist_ok=True)
        options = f"remount,size={size}" if folder in mounted else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a disk needs root (in a container: --cap-add SYS_ADMIN): {done.stderr}")
        mounted.append(folder)

    yield mount
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()
