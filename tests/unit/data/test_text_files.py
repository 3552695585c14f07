"""Text files: rows that cannot be parsed are named one by one, and neither blocks nor ranges lose or change any."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import DataConfig
from ual_ray.data import text_files
from ual_ray.data.formats import BadRow
from ual_ray.data.reading import byte_ranges, find_pieces, read_piece
from ual_ray.data.text_files import array_items, lines_of, map_lines


def read(path: Path) -> list[Any]:
    return [row for piece in find_pieces(DataConfig(path=str(path))) for row in read_piece(piece)]


# --- bad rows --------------------------------------------------------------------------------------------------------


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{oops}\r\n[1, 2]\n"text"\n' + "[" * 100_000 + "\n")
    good, broken, listed, text, deep = read(path)
    assert good == {"a": 1}
    assert "line 3" in str(broken) and "not JSON" in str(broken) and broken.raw == "{oops}"
    assert "not a JSON object: [1, 2]" in str(listed) and "not a JSON object: 'text'" in str(text)
    assert "not JSON" in str(deep)


def test_an_array_may_hold_what_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, 7]')
    good, bad = read(path)
    assert good == {"a": 1}
    assert isinstance(bad, BadRow) and bad.raw == "7"


def test_half_a_surrogate_pair_and_long_numbers_cost_no_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": "\\ud83d", "b": NaN, "c": 123456789012345678901234567890}]')
    (row,) = read(path)
    assert (row["a"], row["c"]) == ("\ud83d", 123456789012345678901234567890)


def test_cells_that_are_too_many_or_too_few(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('\na,b\n1,"2\n2"\n\n3\n4,5,6\n"7"x,8\n9,10\n11,"open\n12,13\n')
    first, few, many, broken, good, unclosed = read(path)
    assert (first, good) == ({"a": "1", "b": "2\n2"}, {"a": "9", "b": "10"})
    assert "wrong number of cells: line 6: 1, not 2" in str(few) and few.raw == "3"
    assert "line 7: 3, not 2" in str(many) and many.raw == "4,5,6"
    assert "not CSV: line 8" in str(broken)
    assert "not CSV: line 10" in str(unclosed)


def test_cells_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1," + "x" * 200_000 + "\n")
    assert [len(row["b"]) for row in read(tmp_path / "rows.csv")] == [200_000]


# --- ranges and blocks -----------------------------------------------------------------------------------------------

LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8)
ENDING = st.sampled_from(["\n", "\r\n", "\n\n"])


@given(st.lists(st.tuples(LINE, ENDING)), LINE, st.integers(1, 40))
def test_any_ranges_hold_every_line_once(lines: list[tuple[str, str]], rest: str, step: int) -> None:
    content = ("".join(line + ending for line, ending in lines) + rest).encode()

    def part(first: int, last: int | None) -> Iterator[bytes]:
        return lines_of(io.BufferedReader(io.BytesIO(content)), first, last)

    expected = list(io.BytesIO(content))
    assert [*part(0, None)] == expected
    assert [line for first, last in byte_ranges(len(content), step) for line in part(first, last)] == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1, 30]), st.integers(1, 40))
def test_an_array_is_read_alike_in_blocks_of_any_size(values: list[Any], ascii_only: bool, indent: Any, block: int) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent) + "\n "
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", block)
        assert [*array_items(io.StringIO(text), "x")] == values


@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_an_array_that_is_cut_off_is_an_error(values: list[Any], data: Any) -> None:
    text = json.dumps(values)
    cut = data.draw(st.integers(1, len(text) - 1))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError):
        patch.setattr(text_files, "BLOCK", 5)
        [*array_items(io.StringIO(text[:cut]), "x")]


@given(st.lists(st.dictionaries(st.text(), VALUES), max_size=5))
def test_lines_are_what_was_written(rows: list[dict[str, Any]]) -> None:
    lines = [f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows]
    assert [*map_lines(lines, 0)] == rows


def test_a_line_that_is_no_text_is_one_bad_row() -> None:
    good, bad, after = map_lines([b'{"a": 1}\n', b'{"a": "\xff"}\n', b'{"a": 2}\n'], 0)
    assert (good, after) == ({"a": 1}, {"a": 2})
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("not UTF-8: line 2")
    assert bad.raw == '{"a": "\\xff"}'
