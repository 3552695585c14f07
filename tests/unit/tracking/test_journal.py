"""What waits on disk: the order it was said in, whole after a kill at any moment, without secrets."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config.files import read_json
from ual_ray.tracking.journal import FILES, REFUSED, SPOOL_FOLDER, STORE, Operation, Spool

STORE_AT = {"uri": "http://***@host:1", "experiment": "ual_ray", "location": None}


def drain(spool: Spool) -> list[Operation]:
    found = []
    while (first := spool.first()) is not None:
        found.append(first[1])
        spool.remove(*first)
    return found


def test_nothing_is_written_before_something_waits(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STORE_AT)
    assert spool.first() is None
    assert (spool.waiting, spool.known) == (0, False)
    assert not (tmp_path / SPOOL_FOLDER).exists()


VALUES = st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False) | st.text(max_size=9) | st.none(), max_size=3)


@pytest.mark.slow
@given(st.lists(st.builds(Operation, st.sampled_from(["tags", "metrics"]), st.text(max_size=5), VALUES), max_size=6))
def test_operations_come_back_as_they_were_said(operations: list[Operation]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), STORE_AT)
        for operation in operations:
            spool.append(operation)
        # As a process sees it that comes after a kill.
        assert drain(Spool(Path(folder), STORE_AT)) == operations
        assert spool.first() is None, "sent by another process"
        assert spool.waiting == 0


def test_the_order_holds_when_the_clock_is_set_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STORE_AT)
    for now in (300, 200, 100):
        with patch("ual_ray.tracking.journal.time.time_ns", return_value=now):
            spool.append(Operation("tags", str(now)))
    with patch("ual_ray.tracking.journal.time.time_ns", return_value=50):
        Spool(tmp_path, STORE_AT).append(Operation("tags", "50"))
    assert [operation.run for operation in drain(Spool(tmp_path, STORE_AT))] == ["300", "200", "100", "50"]


def test_a_file_is_copied_found_in_a_moved_folder_and_forgotten_when_sent(tmp_path: Path) -> None:
    source = tmp_path / "plot.png"
    source.write_bytes(b"first")
    Spool(tmp_path / "out", STORE_AT).append(Operation("artifact", "run", {"folder": "plots"}, str(source)))
    source.write_bytes(b"changed since")
    (tmp_path / "out").rename(tmp_path / "moved")

    spool = Spool(tmp_path / "moved", STORE_AT)
    first = spool.first()
    assert first is not None
    copy = Path(first[1].file or "")
    assert (copy.name, copy.read_bytes()) == ("plot.png", b"first")
    spool.remove(*first)
    assert not list((spool.folder / FILES).iterdir())
    assert source.exists()


def test_a_process_killed_while_writing_leaves_whole_operations(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STORE_AT)
    spool.append(Operation("tags", "whole"))
    (spool.folder / "00000000000000000099.json.part").write_text('{"kind": "ta')
    (spool.folder / FILES / "orphan").mkdir(parents=True)
    assert [operation.run for operation in drain(Spool(tmp_path, STORE_AT))] == ["whole"]


def test_what_cannot_be_read_is_put_aside_and_does_not_block(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STORE_AT)
    for run in ("a", "b", "c"):
        spool.append(Operation("tags", run))
    broken, odd = sorted(spool.folder.glob("[0-9]*.json"))[:2]
    broken.write_text("{")
    odd.write_text('{"of": "another version"}')
    later = Spool(tmp_path, STORE_AT)
    assert [operation.run for operation in drain(later)] == ["c"]
    assert {path.name for path in (spool.folder / REFUSED).iterdir()} == {broken.name, odd.name}


@pytest.mark.parametrize("file", ["/etc/hostname", "../../../secret", "files/../../../../secret"])
def test_a_file_outside_the_spool_is_not_sent(file: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    spool = Spool(tmp_path / "run", STORE_AT)
    spool.append(Operation("artifact", "1"))
    (waiting,) = spool.folder.glob("[0-9]*.json")
    waiting.write_text(json.dumps({"kind": "artifact", "run": "1", "content": {"folder": None}, "file": file}))
    assert Spool(tmp_path / "run", STORE_AT).first() is None
    assert (spool.folder / REFUSED / waiting.name).is_file()


def test_what_is_refused_is_kept_with_its_reason(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STORE_AT)
    spool.append(Operation("params", "run", {"a": "1"}))
    first = spool.first()
    assert first is not None
    kept = json.loads(spool.refuse(first[1], "it says no", first[0]).read_text())
    assert (kept["content"], kept["reason"]) == ({"a": "1"}, "it says no")
    assert spool.first() is None and not list(spool.folder.glob("[0-9]*.json"))


def test_secrets_never_reach_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STORE_AT)
    spool.append(Operation("params", "run", {"endpoint.api_key": "sesame", "url": "http://me:sesame@host", "n": "1"}))
    written = "".join(path.read_text() for path in spool.folder.iterdir())
    assert "sesame" not in written and '"n": "1"' in written


def test_each_store_and_experiment_has_a_spool_of_its_own(tmp_path: Path) -> None:
    one = Spool(tmp_path, STORE_AT)
    one.append(Operation("tags", "run"))
    for other in ({**STORE_AT, "uri": "http://other"}, {**STORE_AT, "experiment": "other"}):
        assert not Spool(tmp_path, other).known
    assert Spool(tmp_path, {**STORE_AT, "location": "file:///elsewhere"}).known
    assert read_json(one.folder / STORE) == STORE_AT


def test_one_process_sends_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path, STORE_AT)
    spool.append(Operation("tags", "run"))
    with spool.held() as first, Spool(tmp_path, STORE_AT).held() as second:
        assert (first, second) == (True, False)
    with Spool(tmp_path, STORE_AT).held() as third:
        assert third
