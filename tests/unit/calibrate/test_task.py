"""Waiting for the task that probes a model: it ends when the command is told to end."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from driver_only import DRIVER, elsewhere
from rich.console import Console

from ual_ray.calibrate import step
from ual_ray.calibrate.rows import ProbeJob
from ual_ray.config.load import load
from ual_ray.run.side_by_side import side_by_side
from ual_ray.run.step import Session


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for Ray: a task that is done at the third look, and yields its name."""
    made: list[str] = []

    def wait(references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        made.append(references[0])
        return (references, []) if len(made) >= 3 else ([], references)

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=lambda *_: "task"))
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda reference: {"of": reference})
    monkeypatch.setattr("ual_ray.run.cluster.cores_for_one", lambda _: 1.0)
    return made


def probe(folder: Path) -> dict[str, Any]:
    session = Session(load(None, []), Console(file=io.StringIO()), None)
    return step._in_a_task(session, "ual", step._job(session.config, "m", folder, None, folder))


def test_its_result_is_returned_when_it_is_done(tmp_path: Path, looks: list[str]) -> None:
    assert probe(tmp_path) == {"of": "task"} and len(looks) == 3


@pytest.mark.slow
def test_a_command_that_is_told_to_end_does_not_wait_for_it(
    tmp_path: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(ray, "wait", lambda references, timeout: threading.Event().wait(0.05) or ([], references))

    def task() -> None:
        try:
            probe(tmp_path)
        finally:
            ended.set()

    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        side_by_side({"ual": task}, lambda: 1, lambda *_: None, 10)
    assert ended.is_set()


def test_on_another_machine_it_reads_and_writes_by_the_driver_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "driver"
    for name in ("model/config.json", "rows/a.parquet", "results/b.parquet"):
        (driver / name).parent.mkdir(parents=True)
        (driver / name).write_text(name)
    monkeypatch.setattr("ual_ray.run.machines.output_folder", lambda: elsewhere(driver, tmp_path / "copies"))

    def given(job: ProbeJob, count: Callable[[int], None]) -> dict[str, Any]:
        read = [(Path(folder) / name).read_text() for folder, name in
                ((job.model, "config.json"), (job.rows, "a.parquet"), (job.results or "", "b.parquet"))]  # fmt: skip
        count(3)
        count(4)
        assert (driver / "out" / step.PROGRESS_FILE).read_text() == "7", "the driver shows the progress"
        Path(job.folder).mkdir()
        (Path(job.folder) / "calibration.json").write_text("{}")
        return {"read": read}

    (driver / "out").mkdir()
    job = step._job(load(None, []), str(DRIVER / "model"), DRIVER / "rows", DRIVER / "results", DRIVER / "out")
    assert step._probe(job, 1.0, given) == {"read": ["model/config.json", "rows/a.parquet", "results/b.parquet"]}
    assert (driver / "out" / "calibration.json").read_text() == "{}"
