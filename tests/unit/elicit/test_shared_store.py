"""A store that output folders share: what is fetched, what is copied and when, and who waits for whom."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from processes import wait_until
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from ual_ray.config.load import load
from ual_ray.elicit import shared_store
from ual_ray.elicit.known import note_asked
from ual_ray.elicit.shared_store import ERASED_FILE, SharedStore
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.mirror import copying
from ual_ray.mirror.remote import PROBE, Remote, open_place
from ual_ray.parquet import read_table, write_table
from ual_ray.preflight import check_elicitor
from ual_ray.run.stage_cache import forget

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int64())])
KEY, ASKED = "key", "whom"
Out = Callable[..., SharedStore]


@pytest.fixture(params=["cloud", "path"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Out:
    """Give the shared store as a run in this output folder sees it: on a file system that is not this machine's, or a path."""
    for name, seconds in {"BEAT_SECONDS": 0.1, "DEAD_SECONDS": 1.5, "CLAIM_SECONDS": 0.1}.items():
        monkeypatch.setattr(shared_store, name, seconds)
    monkeypatch.setattr(copying, "COPY_SECONDS", 0.05)
    monkeypatch.setattr(copying, "SETTLE_SECONDS", 0.0)
    (tmp_path / "there").mkdir()
    far = Remote("s3://bucket/there", SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "there", "elicit.store")
    remote = far if request.param == "cloud" else open_place(str(tmp_path / "there"), "elicit.store")

    def view(name: str, data: str | None = "data", key: str = KEY, asked: str = ASKED) -> SharedStore:
        note_asked(tmp_path / name / key, asked)
        return SharedStore(remote, tmp_path / name / key, asked, data)

    return view


def rows(*values: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist([{"id": name, "value": value} for name, value in values], SCHEMA)


def add(folder: Path, block: str, *values: tuple[str, int], pending: bool = False) -> None:
    """Write a block as Ray Data does."""
    for name in ("finished", "checkpoint"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_table(rows(*values), folder / "finished" / f"{block}-0.parquet")
    write_table(rows(*values).select(["id"]), folder / "checkpoint" / f"{block}{'.pending' * pending}.parquet")


def stored(folder: Path) -> dict[str, int]:
    """Read the rows of a store, each once, and as Ray Data does the ids that are not sent."""
    found = [row for file in RowStore(folder, SCHEMA).files() for row in read_table(file).to_pylist()]
    ids = {name for file in (folder / "checkpoint").glob("*.parquet") for name in read_table(file)["id"].to_pylist()}
    values = {row["id"]: row["value"] for row in found}
    assert len(values) == len(found) and ids == values.keys()
    return values


def there(tmp_path: Path, kind: str = "*") -> set[str]:
    root = tmp_path / "there"
    return {str(file.relative_to(root)) for file in root.rglob(f"{kind}/*.parquet")}


@pytest.mark.slow
def test_another_output_folder_has_all_rows_when_the_first_one_is_deleted(out: Out, tmp_path: Path) -> None:
    with out("first").held(print):
        add(tmp_path / "first/key", "a", ("x", 1), ("y", 2))
        add(tmp_path / "first/key/self_check", "c", ("x", 7))
    shutil.rmtree(tmp_path / "first")
    said = list[str]()
    with out("second").held(said.append):
        assert stored(tmp_path / "second/key") == {"x": 1, "y": 2}
        assert stored(tmp_path / "second/key/self_check") == {"x": 7}
        add(tmp_path / "second/key", "b", ("z", 3))
    assert "fetched from" in said[0] and len(there(tmp_path)) == 6
    with out("first").held(said.append):
        assert stored(tmp_path / "first/key") == {"x": 1, "y": 2, "z": 3}


@pytest.mark.slow
def test_rows_are_copied_while_the_run_works_and_those_in_work_are_not(out: Out, tmp_path: Path) -> None:
    with out("first").held(print):
        add(tmp_path / "first/key", "a", ("x", 1))
        add(tmp_path / "first/key", "b", ("y", 2), pending=True)
        wait_until(lambda: len(there(tmp_path)) == 2, "it is copied", 20)
        out("second", None).fetch()
        assert stored(tmp_path / "second/key") == {"x": 1}
    assert there(tmp_path) == {"key/finished/a-0.parquet", "key/checkpoint/a.parquet"}


def test_rows_whose_ids_were_not_copied_before_a_kill_are_not_fetched(out: Out, tmp_path: Path) -> None:
    with out("first").held(print):
        add(tmp_path / "first/key", "a", ("x", 1))
        add(tmp_path / "first/key", "b", ("y", 2))
    (tmp_path / "there/key/checkpoint/b.parquet").unlink()
    out("second", None).fetch()
    assert stored(tmp_path / "second/key") == {"x": 1}


@pytest.mark.slow
def test_what_a_run_had_before_it_shared_or_was_killed_is_copied_once(out: Out, tmp_path: Path) -> None:
    add(tmp_path / "first/key", "a", ("x", 1))
    for _ in range(2):
        with out("first").held(print):
            pass
        before = {name: (tmp_path / "there" / name).stat().st_mtime_ns for name in there(tmp_path)}
    assert before.keys() == {"key/finished/a-0.parquet", "key/checkpoint/a.parquet"}
    assert {name: (tmp_path / "there" / name).stat().st_mtime_ns for name in there(tmp_path)} == before


def test_the_replies_of_the_same_elicitor_are_fetched_and_no_others(out: Out, tmp_path: Path) -> None:
    for key, asked in (("other-settings", ASKED), ("other-elicitor", "somebody else")):
        with out("first", key=key, asked=asked).held(print):
            add(tmp_path / "first" / key, key, ("x", 1))
    out("second", None).fetch()
    assert {file.parent.parent.name for file in (tmp_path / "second").rglob("*-0.parquet")} == {"other-settings"}
    assert json.loads((tmp_path / "second/other-settings/asked.json").read_text()) == ASKED


@pytest.mark.slow
def test_failed_rows_are_sent_again_by_whoever_fetches_them_and_none_replaces_another(out: Out, tmp_path: Path) -> None:
    for name, value in (("first", 1), ("second", 2)):
        with out(name).held(print):
            RowStore(tmp_path / name / KEY, SCHEMA).add_failed(rows(("x", value)))
    assert len(there(tmp_path, "retried")) == len(there(tmp_path)) == 2
    out("third", None).fetch()
    third = RowStore(tmp_path / "third/key", SCHEMA)
    assert third.missing(pa.chunked_array([["x"]])).to_pylist() == ["x"]
    assert sorted(read_table(file)["value"][0].as_py() for file in third.retried.glob("*.parquet")) == [1, 2]
    second = RowStore(tmp_path / "second/key", SCHEMA)
    second.retry_failed()
    with out("second").held(print):
        pass
    assert len(there(tmp_path)) == 2, "a failed row that is sent again is copied once"


def test_failed_rows_of_a_store_of_earlier_versions_are_fetched(out: Out, tmp_path: Path) -> None:
    RowStore(tmp_path / "there/key", SCHEMA).add_failed(rows(("x", 1)))
    note_asked(tmp_path / "there/key", ASKED)
    out("first", None).fetch()
    assert len([*RowStore(tmp_path / "first/key", SCHEMA).retried.glob("*.parquet")]) == 1


@pytest.mark.slow
def test_rows_that_were_erased_do_not_come_back_from_another_output_folder(out: Out, tmp_path: Path) -> None:
    with out("first").held(print):
        add(tmp_path / "first/key", "a", ("x", 1))
        RowStore(tmp_path / "first/key", SCHEMA).add_failed(rows(("f", 1)))
    with out("second").held(print):
        pass
    out("second").forget()
    assert there(tmp_path) == set()
    forget(tmp_path / "second/key")
    with out("second").held(print):
        assert not [*(tmp_path / "second").rglob("*.parquet")]
        add(tmp_path / "second/key", "b", ("x", 2))
    with out("first").held(print):
        assert stored(tmp_path / "first/key") == {"x": 2}
        assert len([*(tmp_path / "first").rglob("*.parquet")]) == 2, "nor its failed rows"
    assert there(tmp_path) == {"key/finished/b-0.parquet", "key/checkpoint/b.parquet"}


def test_rows_that_a_command_was_killed_while_erasing_are_erased(
    out: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with out("first").held(print):
        add(tmp_path / "first/key", "a", ("x", 1))

    def away(*_: object) -> None:
        raise OSError("the network is away")

    with monkeypatch.context() as context, pytest.raises(UserError, match=r"(?s)elicit.store cannot be written.*is away"):
        context.setattr(Remote, "delete", away)
        out("first").forget()
    assert len(there(tmp_path)) == 2
    for name in ("first", "second"):
        out(name, None).fetch()
        assert not [*(tmp_path / name).rglob("*.parquet")]


def test_a_list_of_erased_names_that_lead_elsewhere_removes_nothing_else(out: Out, tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_text("x")
    with out("first").held(print):
        pass
    (tmp_path / "there/key" / ERASED_FILE).write_text(json.dumps(["../mine.parquet", f"{tmp_path}/mine.parquet", {}, 1]))
    out("first", None).fetch()
    assert (tmp_path / "mine.parquet").exists()


def test_damaged_rows_there_are_named_and_not_fetched(out: Out, tmp_path: Path) -> None:
    with out("first").held(print):
        add(tmp_path / "first/key", "a", ("x", 1))
    shutil.rmtree(tmp_path / "first")
    file = tmp_path / "there/key/finished/a-0.parquet"
    (tmp_path / "there/key/checkpoint/a.parquet").write_bytes(b"damaged, as nobody reads them")
    content = bytearray(file.read_bytes())
    content[30] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"(?s)elicit.store: a file there is damaged.*key/finished/a-0.*delete it there"):
        out("second", None).fetch()
    assert not (tmp_path / "second/key/finished/a-0.parquet").exists()


@pytest.mark.slow
def test_runs_at_the_same_time_on_other_data_lose_nothing(out: Out, tmp_path: Path) -> None:
    def run(name: str) -> None:
        with out(name, data=name).held(print):
            for number in range(10):
                add(tmp_path / name / KEY, f"{name}{number}", (f"{name}-{number}", number))
                time.sleep(0.03)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out("d", None).fetch()
    assert stored(tmp_path / "d/key") == {f"{name}-{number}": number for name in "abc" for number in range(10)}


@pytest.mark.slow
def test_runs_at_the_same_time_on_the_same_data_wait_for_one_another_and_ask_once(out: Out, tmp_path: Path) -> None:
    asked, said = list[str](), list[str]()

    def run(name: str) -> None:
        with out(name).held(said.append):
            if not [*(tmp_path / name).rglob("*.parquet")]:
                asked.append(name)
                time.sleep(2.5)  # longer than a run without signs of life
                add(tmp_path / name / KEY, name, ("x", 1))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1 and len([text for text in said if "waited for" in text]) >= 2
    assert all(stored(tmp_path / name / KEY) == {"x": 1} for name in "abc")
    assert not [*(tmp_path / "there/key/working").iterdir()]


@pytest.mark.slow
def test_a_run_that_is_dead_is_not_waited_for_longer_and_not_at_all_where_it_worked(out: Out, tmp_path: Path) -> None:
    out("dead")._wait(print)  # and no sign of life any more
    started, said = time.monotonic(), list[str]()
    with out("dead").held(said.append):
        assert time.monotonic() - started < 1.4 and said == []
    out("dead")._wait(print)
    started = time.monotonic()
    with out("other").held(said.append):
        assert 1.5 <= time.monotonic() - started < 10
    assert "another run scores the same data" in said[0]


@pytest.mark.slow
def test_a_run_that_was_taken_for_dead_leaves_the_other_one_its_mark(out: Out, tmp_path: Path) -> None:
    (tmp_path / "there/key/working").mkdir(parents=True)
    mark = tmp_path / "there/key/working/data.json"
    with out("first").held(print):
        mark.write_text('{"session": "of the other"}')
        time.sleep(0.5)
    assert mark.read_text() == '{"session": "of the other"}'


def test_a_run_that_fails_keeps_its_error_and_what_it_finished(out: Out, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too many rows"), out("first").held(print):
        add(tmp_path / "first/key", "a", ("x", 1))
        raise UserError("too many rows")
    out("second", None).fetch()
    assert stored(tmp_path / "second/key") == {"x": 1}


@pytest.mark.slow
def test_a_file_system_that_fails_is_tried_again_and_then_an_error(
    out: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, put = ["first-0"] * 2, SharedStore._put

    def sometimes(self: SharedStore, name: str, version: Any) -> None:
        if Path(name).stem in failing:
            failing.remove(Path(name).stem)
            raise OSError("the network is away")
        put(self, name, version)

    monkeypatch.setattr(SharedStore, "_put", sometimes)
    with out("first").held(print):
        add(tmp_path / "first/key", "first", ("x", 1))
    assert len(there(tmp_path)) == 2
    failing += ["second-0"] * 1000
    match = r"(?s)elicit.store: not everything was copied.*the network is away.*run the same command again"
    with pytest.raises(UserError, match=match), out("first").held(print):
        add(tmp_path / "first/key", "second", ("y", 1))
    assert len(there(tmp_path)) == 2, "ids are not copied before their rows"
    failing.clear()
    with out("first").held(print):
        pass
    assert len(there(tmp_path)) == 4


def test_a_shared_store_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"(?s)elicit.store cannot be .*a folder that this machine may write"):
            open_place(str(place), "elicit.store", write=True)
    with pytest.raises(UserError, match="unsupported URI scheme"):
        open_place("s4://bucket/x", "elicit.store")
    with pytest.raises(UserError, match="a password or a key is refused") as refused:
        open_place("s3://key:a-secret@bucket/x", "elicit.store")
    assert "a-secret" not in str(refused.value)
    with pytest.raises(UserError, match="elicit.store cannot be"):
        check_elicitor(load(None, [f"elicit.store={tmp_path}/file"]))
    open_place(str(tmp_path / "new" / "store"), "elicit.store", write=True)
    assert {file.name for file in (tmp_path / "new" / "store").iterdir()} == {PROBE}
    open_place(str(tmp_path / "read"), "elicit.store")
    assert not (tmp_path / "read").exists()


def test_a_file_of_a_store_on_this_disk_is_kept_once(tmp_path: Path) -> None:
    remote = open_place(str(tmp_path / "there"), "elicit.store")
    for name in ("first", "second"):
        with SharedStore(remote, tmp_path / name / KEY, ASKED).held(print):
            if name == "first":
                add(tmp_path / "first/key", "a", ("x", 1))
    places = {(tmp_path / name / "key/finished/a-0.parquet").stat().st_ino for name in ("first", "second", "there")}
    assert len(places) == 1
