"""How a command reports what ended it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from ual_ray.errors import UserError
from ual_ray.run.terminal import short, terminal


def wrapped(error: Exception) -> Exception:
    """Wrap an error as Ray does with those of its workers."""
    outer = RuntimeError("a task failed")
    outer.cause = error  # type: ignore[attr-defined]
    return outer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x.parquet"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        sqlite3.OperationalError("database or disk is full"),
        ray.exceptions.OutOfDiskError(),
    ],
)
def test_a_full_disk_is_told_in_one_message_whoever_met_it(error: Exception, tmp_path: Path) -> None:
    for raised in (error, wrapped(error), wrapped(wrapped(error))):
        with pytest.raises(UserError, match="a disk is full") as found, terminal(tmp_path / "ual.log", verbose=False):
            raise raised
        assert str(error).strip() in str(found.value) and "run the same command again" in str(found.value)


def test_a_full_object_store_is_told_too(tmp_path: Path) -> None:
    error = ray.exceptions.ObjectStoreFullError()
    with (
        pytest.raises(UserError, match="(?s)object store is full.*larger --object-store-memory"),
        terminal(tmp_path / "x", False),
    ):
        raise wrapped(error)


@pytest.mark.parametrize("full", ["output", "temporary"])
def test_a_worker_that_died_where_a_disk_has_no_room_is_told_as_a_full_disk(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could write neither its result nor a word about it."""
    place = {"output": tmp_path, "temporary": Path(tempfile.gettempdir())}[full]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096 if path == place else 10**9))
    error = ray.exceptions.WorkerCrashedError()
    with (
        pytest.raises(UserError, match=rf"(?s)a disk is full.*{re.escape(str(place))}.*WorkerCrashedError.*make room"),
        terminal(tmp_path / "ual.log", verbose=False),
    ):
        raise error


def test_other_errors_are_printed_with_the_end_of_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), terminal(tmp_path / "ual.log", verbose=False):
        raise wrapped(OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert "failed: RuntimeError: a task failed" in capfd.readouterr().err


def test_paths_are_short_where_they_are_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [short(path) for path in (tmp_path / "out" / "ual.log", tmp_path.parent)] == [
        Path("out/ual.log"),
        tmp_path.parent,
    ]


def test_paths_of_a_job_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job runs in the root folder, and who reads its log is in another one."""
    monkeypatch.chdir("/")
    assert short(tmp_path / "ual.log") == tmp_path / "ual.log"
