"""A working folder and its copy, on a file system of this machine in place of a bucket."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from pyarrow.fs import LocalFileSystem

from ual_ray.errors import UserError
from ual_ray.mirror import copying, transfer
from ual_ray.mirror.remote import Remote
from ual_ray.mirror.transfer import MARKER, Mirror
from ual_ray.run import terminal
from ual_ray.run.stage_cache import FORGOTTEN_FILE, forget
from ual_ray.run.terminal import end_on_sigterm

Machine = Callable[[str], Mirror]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make the mirror of one URI on a machine of this name."""
    for name, seconds in {"BEAT_SECONDS": 0.1, "DEAD_SECONDS": 1.5, "CLAIM_SECONDS": 0.1}.items():
        monkeypatch.setattr(transfer, name, seconds)
    monkeypatch.setattr(copying, "COPY_SECONDS", 0.05)
    monkeypatch.setattr(copying, "SETTLE_SECONDS", 0.0)
    return lambda name: Mirror(Remote("hdfs://bucket/run", LocalFileSystem(), str(tmp_path / "there")), tmp_path / name / "run")


def there(tmp_path: Path) -> dict[str, str]:
    root = tmp_path / "there"
    return {str(file.relative_to(root)): file.read_text() for file in root.rglob("*") if file.is_file() and file.name != MARKER}


def write(mirror: Mirror, **contents: str) -> None:
    for name, content in contents.items():
        (mirror.root / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror.root / name).write_text(content)


def test_files_are_copied_while_it_works_and_the_rest_at_the_end(machine: Machine, tmp_path: Path) -> None:
    here = machine("a")
    with here.held(print):
        write(here, **{"owner.json": "{}", "x": "1", "y": "1"})
        wait_until(lambda: there(tmp_path) == {"owner.json": "{}", "x": "1", "y": "1"}, "it is copied", 20)
        (here.root / "y").unlink()
        wait_until(lambda: "y" not in there(tmp_path), "it is removed", 20)
        write(here, x="22")
    assert there(tmp_path) == {"owner.json": "{}", "x": "22"}


@pytest.mark.slow
def test_another_machine_fetches_and_the_first_one_sees_what_it_wrote(machine: Machine, tmp_path: Path) -> None:
    first, second = machine("a"), machine("b")
    with first.held(print):
        write(first, **{"owner.json": "{}", "x": "1", "y": "1"})
    with second.held(print):
        assert (second.root / "x").read_text() == "1"
        write(second, x="of b")
        (second.root / "y").unlink()
    again = machine("a")
    with again.held(print):
        assert {file.name: file.read_text() for file in again.root.iterdir()} == {"owner.json": "{}", "x": "of b"}


@pytest.mark.slow
def test_after_a_kill_this_machine_keeps_what_was_not_copied(machine: Machine, tmp_path: Path) -> None:
    removed = ("train/gone", "train/checkpoints/gone", "mlflow-spool/gone")
    killed = machine("a")
    with killed.held(print):
        write(killed, **{"owner.json": "{}", "train/started.json": "{}"}, **dict.fromkeys(removed, "1"))
    killed = machine("a")
    killed._fetch(killed._take(print), print)
    write(killed, late="not copied")
    for name in removed:
        (killed.root / name).unlink()
    again = machine("a")
    started = time.monotonic()
    with again.held(print):
        assert (again.root / "late").read_text() == "not copied"
    assert time.monotonic() - started < transfer.DEAD_SECONDS + 1, "it does not wait for signs of life of its own dead session"
    assert there(tmp_path) == {"owner.json": "{}", "late": "not copied", "train/started.json": "{}"}


@pytest.mark.slow
@pytest.mark.parametrize("forced", [False, True])
def test_a_stage_that_was_done_after_the_last_copy_before_a_kill_gets_no_file_back(
    machine: Machine, tmp_path: Path, forced: bool
) -> None:
    """What it removed, such as the rows of a result before --force, would be read with its own."""
    killed = machine("a")
    files = {"owner.json": "{}", "train/started.json": "{}", "train/rows-of-before": "1"}
    with killed.held(print):
        write(killed, **files, **({"train/done.json": "{}"} if forced else {}))
    killed = machine("a")
    killed._fetch(killed._take(print), print)
    (killed.root / "train/rows-of-before").unlink()
    write(killed, **{"train/rows": "2", "train/done.json": '{"again": 1}'})
    with machine("a").held(print):
        assert {file.name for file in (killed.root / "train").iterdir()} == {"started.json", "rows", "done.json"}
    assert "train/rows-of-before" not in there(tmp_path)


@pytest.mark.slow
def test_a_row_store_that_was_forgotten_before_a_kill_gets_no_row_back(machine: Machine, tmp_path: Path) -> None:
    killed, rows = machine("a"), "elicit/store/key/finished/rows-of-before"
    with killed.held(print):
        write(killed, **{"owner.json": "{}", rows: "1", "elicit/store/key/asked-of-rows": "1"})
    killed = machine("a")
    killed._fetch(killed._take(print), print)
    forget(killed.root / "elicit/store/key")
    write(killed, **{"elicit/store/key/finished/rows": "2"})
    with machine("a").held(print):
        names = {file.name for file in (killed.root / "elicit/store").rglob("*") if file.is_file()}
        assert names == {"rows", FORGOTTEN_FILE}
    assert {name for name in there(tmp_path) if "rows" in name} == {"elicit/store/key/finished/rows"}


@pytest.mark.parametrize("moment", ["copying", "waiting"])
@pytest.mark.slow
def test_a_sigterm_while_the_rest_is_copied_ends_in_an_error_and_the_next_command_copies_it(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    put, before, said = Remote.put, signal.getsignal(signal.SIGTERM), list[str]()
    begun = threading.Event()

    def slow(self: Remote, local: Path, name: str) -> None:
        if name == "x":
            begun.set()
            time.sleep(1.0)
        put(self, local, name)

    def end() -> None:
        begun.wait(20)
        time.sleep(0.3)  # the command has left its block
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Remote, "put", slow)
    monkeypatch.setattr(copying, "COPY_SECONDS", 0.01 if moment == "waiting" else 60.0)
    end_on_sigterm()
    ending, here = threading.Thread(target=end), machine("a")
    ending.start()
    try:
        with pytest.raises(SystemExit), here.held(said.append):
            write(here, **{"owner.json": "{}", "x": "1", "y": "1"})
            if moment == "waiting":
                begun.wait(20)  # the thread that copies is at it when the command ends
    finally:
        ending.join()
        signal.signal(signal.SIGTERM, before)
        terminal._sigterm.clear()
    assert "not everything was copied" in said[-1] and "run the same command again" in said[-1]
    with machine("a").held(print):
        pass
    assert there(tmp_path) == {"owner.json": "{}", "x": "1", "y": "1"}


@pytest.mark.parametrize("cleared", ["", "*", "elicit/store", "train/key", "train/key/model", "x"])
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.slow
def test_a_working_folder_that_was_cleared_is_fetched_again_and_its_copy_is_kept(
    machine: Machine, tmp_path: Path, cleared: str, killed: bool
) -> None:
    here = machine("a")
    marks = {"train/key/started.json": "{}", "train/key/done.json": "{}"}
    files = {"owner.json": "{}", "x": "1", "elicit/store/rows": "1", "train/key/model/weights": "1", **marks}
    with here.held(print):
        write(here, **files)
    if killed:
        here = machine("a")
        here._fetch(here._take(print), print)
    os.utime(here.root / "train/key/model/weights", ns=(1, 123_456_789))
    here.copy()
    for place in here.root.glob(cleared) if cleared else [here.root]:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    with machine("a").held(print):
        assert {name: (here.root / name).read_text() for name in files} == files
        assert (here.root / "train/key/model/weights").stat().st_mtime_ns == 123_456_789
    assert {name: text for name, text in there(tmp_path).items() if name != transfer.TIMES} == files


@pytest.mark.slow
def test_a_working_folder_that_is_removed_while_a_command_runs_ends_in_an_error_and_removes_nothing_there(
    machine: Machine, tmp_path: Path
) -> None:
    here = machine("a")
    with here.held(print):
        write(here, **{"owner.json": "{}", "x": "1"})
    with pytest.raises(UserError, match=r"(?s)not everything was copied.*was removed while"), machine("a").held(print):
        shutil.rmtree(here.root)
    assert there(tmp_path) == {"owner.json": "{}", "x": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("marked", [False, True])
def test_a_start_that_fails_keeps_what_was_not_copied_before(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    here = machine("a")
    with here.held(print):
        write(here, **{"owner.json": "{}"})
    write(here, late="not copied")  # as after a kill, or where the network was away at the end

    def fail(*args: Any, **options: Any) -> None:
        raise UserError("the network is away")

    for _ in range(2):
        with monkeypatch.context() as away, pytest.raises(UserError, match="the network is away"):
            away.setattr(Mirror, "_check_ours" if marked else "_mark", fail)
            machine("a")._take(print)
    with machine("a").held(print):
        assert (here.root / "late").read_text() == "not copied"
    assert there(tmp_path) == {"owner.json": "{}", "late": "not copied"}


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_one_lives_and_takes_over_when_it_is_dead(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("a"), machine("b")
    with first.held(print):
        with pytest.raises(UserError, match="another run is working in hdfs://bucket/run"), second.held(print):
            pass
        write(first, **{"owner.json": "{}"})
    dead = machine("a")
    dead._take(print)  # and no sign of life any more
    started, said = time.monotonic(), list[str]()
    with machine("b").held(said.append):
        assert 1.5 <= time.monotonic() - started < 15
    assert "waiting up to" in said[0]
    # It lives after all: what it has is not copied over that of the other.
    with pytest.raises(UserError, match="another run"):
        dead._check_ours()


def test_a_run_that_lost_its_folder_copies_nothing_more_and_ends_with_an_error(machine: Machine, tmp_path: Path) -> None:
    first, second = machine("a"), machine("b")
    with pytest.raises(UserError, match=r"(?s)not everything was copied.*copy it from there before"), first.held(print):
        write(first, **{"owner.json": "{}"})
        second._mark(working=True)
        wait_until(first._lost.is_set, "it sees that", 20)
        write(first, x="late")
    assert "x" not in there(tmp_path)


@pytest.mark.slow
def test_a_command_that_lost_its_folder_is_ended_soon(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, before = machine("a"), machine("b"), signal.getsignal(signal.SIGTERM)
    end_on_sigterm()
    started = time.monotonic()
    try:
        with pytest.raises(UserError, match=r"(?s)not everything was copied.*another run is working"), first.held(print):
            write(first, **{"owner.json": "{}"})
            second._mark(working=True)
            time.sleep(20)
    finally:
        signal.signal(signal.SIGTERM, before)
        terminal._sigterm.clear()
    assert time.monotonic() - started < 10


def test_nothing_is_copied_over_what_another_run_wrote_before_that_was_noticed(machine: Machine, tmp_path: Path) -> None:
    first = machine("a")
    with first.held(print):
        write(first, **{"owner.json": "{}", "x": "1"})
    first._take(print)
    machine("b")._mark(working=True)
    (tmp_path / "there" / "x").write_text("of b")
    write(first, x="late", y="late")
    with pytest.raises(UserError, match="another run is working"):
        first.copy()
    assert there(tmp_path) == {"owner.json": "{}", "x": "of b"}


def test_a_second_run_in_one_working_folder_is_refused_at_once(machine: Machine) -> None:
    with machine("a").held(print), pytest.raises(UserError, match="another run is working"), machine("a").held(print):
        pass


@pytest.mark.slow
def test_a_process_that_is_not_on_this_machine_is_not_taken_for_dead(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
    machine("a")._take(print)  # on a machine with the same name
    said = list[str]()
    machine("b")._take(said.append)
    assert "waiting up to" in said[0]


def test_a_folder_of_somebody_else_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"(?s)was not made by ual.*notes.txt"), machine("a").held(print):
        pass
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["notes.txt"]


def test_a_marker_or_a_state_that_is_not_json_is_an_error_with_its_name(machine: Machine, tmp_path: Path) -> None:
    here = machine("a")
    with here.held(print):
        write(here, **{"owner.json": "{}"})
    here._state.write_text("")
    with pytest.raises(UserError, match=r"(?s)state of a working folder cannot be read.*state\.json"), machine("a").held(print):
        pass
    (tmp_path / "there" / MARKER).write_text("{")
    with pytest.raises(UserError, match=r"(?s)not JSON.*remove \.ual-output\.json"), machine("b").held(print):
        pass


def test_a_folder_of_runs_is_no_output_and_a_stage_of_its_own_is(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "there" / "first").mkdir(parents=True)
    (tmp_path / "there" / "first" / "owner.json").write_text("{}")
    with pytest.raises(UserError, match=r"(?s)was not made by ual.*first/owner.json"), machine("a").held(print):
        pass
    (tmp_path / "there" / "first" / "owner.json").rename(tmp_path / "there" / "first" / "started.json")
    with machine("a").held(print):
        assert (tmp_path / "a" / "run" / "first" / "started.json").is_file()


@pytest.mark.slow
def test_a_file_system_that_fails_is_tried_again_and_then_an_error(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, failing = machine("a"), ["x", "x"]
    put = Remote.put

    def sometimes(self: Remote, local: Path, name: str) -> None:
        if name in failing:
            failing.remove(name)
            raise OSError("the network is away")
        put(self, local, name)

    monkeypatch.setattr(Remote, "put", sometimes)
    with here.held(print):
        write(here, **{"owner.json": "{}", "x": "1", "done.json": "{}"})
    assert there(tmp_path).keys() == {"owner.json", "x", "done.json"}
    failing += ["y"] * 100
    again = machine("a")
    match = r"(?s)not everything was copied.*the network is away.*run the same command again"
    with pytest.raises(UserError, match=match), again.held(print):
        write(again, **{"y": "1", "done.json": "{  }"})
    assert "y" not in there(tmp_path) and there(tmp_path).get("done.json") != "{  }", "not done without its files"


@pytest.mark.slow
def test_the_mlflow_store_names_the_folder_of_the_machine_that_fetched_it(machine: Machine) -> None:
    first, second = machine("a"), machine("b")
    with first.held(print):
        write(first, **{"owner.json": "{}", "mlflow_run.json": f'{{"uri": "sqlite:///{first.root}/mlflow.db"}}'})
        with closing(sqlite3.connect(first.root / "mlflow.db")) as store, store:
            store.execute("CREATE TABLE runs (id INTEGER, artifact_uri VARCHAR(200))")
            store.execute("INSERT INTO runs VALUES (1, ?)", (f"file://{first.root}/mlflow-artifacts/1",))
    machine("c")._take(print)  # and killed before it has fetched anything
    with second.held(print), closing(sqlite3.connect(second.root / "mlflow.db")) as store:
        assert store.execute("SELECT * FROM runs").fetchall() == [(1, f"file://{second.root}/mlflow-artifacts/1")]
        assert str(second.root) in (second.root / "mlflow_run.json").read_text()


def test_a_model_keeps_the_times_of_its_files(machine: Machine) -> None:
    first, second = machine("a"), machine("b")
    with first.held(print):
        write(first, **{"owner.json": "{}"})
        (first.root / "arms" / "model").mkdir(parents=True)
        (first.root / "arms" / "model" / "config.json").write_text("{}")
        (first.root / "arms" / "model" / "model.safetensors").write_bytes(b"1")
        os.utime(first.root / "arms" / "model" / "model.safetensors", ns=(1, 123_456_789))
    with second.held(print):
        assert (second.root / "arms" / "model" / "model.safetensors").stat().st_mtime_ns == 123_456_789
