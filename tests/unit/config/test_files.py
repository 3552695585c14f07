"""Files are replaced whole or not at all."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from ual_ray.config.files import read_json, replacing, write_json, write_lines, write_text
from ual_ray.errors import UserError


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_a_file_stays_as_it_is_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"


def test_any_text_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "\ud83d é 🙂\n")
    assert (tmp_path / "x.txt").read_bytes() == b"\\ud83d " + "é 🙂\n".encode()


def test_json_is_read_back_and_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "x.json") is None
    write_json(tmp_path / "x.json", {"path": Path("a/b"), "text": "é", "values": [1, 0.5, None]})
    assert read_json(tmp_path / "x.json") == {"path": "a/b", "text": "é", "values": [1, 0.5, None]}


@pytest.mark.parametrize("damaged", [b"", b'{"a": 1', b"\xff\xfe", b'{"a":' * 101 + b"1" + b"}" * 101, b"[" * 10**5])
def test_a_damaged_file_is_an_error_with_its_name(damaged: bytes, tmp_path: Path) -> None:
    (tmp_path / "done.json").write_bytes(damaged)
    with pytest.raises(UserError, match=r"(?s)not JSON.*done\.json"):
        read_json(tmp_path / "done.json")


def test_nan_is_refused_where_it_is_not_allowed(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [float("nan")])
    with pytest.raises(ValueError, match="(?i)not JSON compliant"):
        write_json(tmp_path / "x.json", [float("nan")], allow_nan=False)


def test_any_value_can_be_a_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", [{"a": datetime.date(2026, 1, 2), "b": b"\xff", "c": float("inf"), "d": {1, 2}}, {}])
    first, second = (tmp_path / "x.jsonl").read_text().splitlines()
    assert (json.loads(first)["a"], json.loads(second)) == ("2026-01-02", {})
