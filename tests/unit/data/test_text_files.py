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
from ual_ray.errors import UserError


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
    first, few, many, broken, good, *unclosed = read(path)
    assert (first, good) == ({"a": "1", "b": "2\n2"}, {"a": "9", "b": "10"})
    assert "wrong number of cells: line 6: 1, not 2" in str(few) and few.raw == "3"
    assert "line 7: 3, not 2" in str(many) and many.raw == "4,5,6"
    assert "not CSV: line 8" in str(broken)
    assert [(str(row)[:16], row.raw) for row in unclosed] == [("not CSV: line 10", '11,"open'), ("not CSV: line 10", "12,13")]


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


@pytest.mark.slow
@given(st.lists(VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1, 30]), st.integers(1, 40))
def test_an_array_is_read_alike_in_blocks_of_any_size(values: list[Any], ascii_only: bool, indent: Any, block: int) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent) + "\n "
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", block)
        assert [*array_items(io.StringIO(text), "x")] == values


@pytest.mark.slow
@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_an_array_that_is_cut_off_is_an_error(values: list[Any], data: Any) -> None:
    text = json.dumps(values)
    cut = data.draw(st.integers(1, len(text) - 1))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError):
        patch.setattr(text_files, "BLOCK", 5)
        [*array_items(io.StringIO(text[:cut]), "x")]


@pytest.mark.slow
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


@pytest.mark.parametrize("ending", ['"wrong" 400', '400"', "400"], ids=["error", "closed", "never_closed"])
def test_every_line_that_a_stray_quote_takes_in_is_counted_and_kept(ending: str, tmp_path: Path) -> None:
    lines = [f"question {n},answer {n}" for n in range(1000)]
    lines[2], lines[400] = 'question 2,"answer 2', f"question 400,{ending}"
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["q,a", *lines, ""]))
    found = read(path)
    assert len(found) == 1000
    bad = [row for row in found if isinstance(row, BadRow)]
    last = 999 if ending == "400" else 400
    assert [row.raw for row in bad] == lines[2 : last + 1]
    assert all("line 4: " in str(row) and f"lines 4 to {last + 2}" in str(row) or len(bad) == 1 for row in bad)


@pytest.mark.parametrize(("columns", "rows"), [(2, 2), (2, 3), (2, 4), (2, 6), (3, 2), (5, 2), (9, 2)])
def test_a_stray_quote_over_few_lines_is_told_by_their_cells(columns: int, rows: int, tmp_path: Path) -> None:
    header = [f"c{at}" for at in range(columns)]
    lines = [",".join(f"{name} of {row}" for name in header) for row in range(20)]
    last = 3 + rows - 1
    lines[3] = lines[3].replace(f"c{columns - 1}", f'"c{columns - 1}')
    lines[last] += '"'
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([",".join(header), *lines, ""]))
    found = read(path)
    assert [row.raw for row in found if isinstance(row, BadRow)] == lines[3 : last + 1]
    assert len(found) == 20


@pytest.mark.parametrize(
    ("header", "before", "text", "behind"),
    [
        *[
            ("q,a,note", "x,", text, ",n")
            for text in ("def f(a, b):\n    return a, b, c\n", "Dear Ann,\nthanks, all of it", "x, y\nz")
        ],
        *[
            ("q,a", "x,", text, "")
            for text in ("a, b\nc, d\ne", "one\n\ntwo, three\n\nfour\nsix, or seven\neight", "Hi\nThanks, all")
        ],
        *[
            ("q,a", "x,", text, "")
            for text in (
                "She pays 1,200.\nSo it is\n#### 1,200",
                "In all:\n1,000,000 of them, or so",
                "for a in b:\n    f(a, b)",
            )
        ],
        ("q,a", "", "one\ntwo", ",x"),
        # Of a row of five cells, one line that goes on has as many commas as the header.
        *[
            ("a,b,c,d,e", "1,2,3,4,", f"{first}\nred, green, blue, black, white{last}", "")
            for first in ("All", "a, b")
            for last in ("", "\nx")
        ],
        ("a,b,c,d,e", "1,", "All:\nr,g,b,k,w", ",3,4,5"),
        ('"q","a"', '"x",', "Hello\none,two", ""),
    ],
)
def test_a_text_of_several_lines_is_a_cell(header: str, before: str, text: str, behind: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'{header}\n{before}"{text}"{behind}\n')
    (row,) = read(path)
    assert text in row.values()


@pytest.mark.parametrize(
    "lines",
    [
        'q2,"it is 2, or more|q3,it is 3|q4,it is 4"',
        '"q2,two|q3,three"',
        'q2,"|q3,a3"',
        'q2,"4 is|q3,"',
        'q2,"4|q3,12|3,400"',
        # The number of a row and an answer of three digits are no thousands.
        '2,"400|3,512|4,600"',
        'What is 2 * 2,"4|What is 12 * 12,144|What is 20 * 20,400"',
        # A row that starts with a blank, and one of four that is faulty itself.
        'q2,"4| q3,5"',
        'q2,"4|q3,5|q4,6|q5|q6,7"',
    ],
)
def test_lines_that_look_like_rows_are_counted_and_kept(lines: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["q,a", "q1,a1", *lines.split("|"), "q9,a9", ""]))
    first, *bad, last = read(path)
    assert (first, last) == ({"q": "q1", "a": "a1"}, {"q": "q9", "a": "a9"})
    assert [row.raw for row in bad] == lines.split("|")


NUMBERS = [
    "0.5",
    "1e5",
    "1E+05",
    "1e-5",
    "-1.25e-10",
    "-0",
    "-0.0",
    "123",
    "1.0",
    "NaN",
    "-Infinity",
    "Infinity",
    "true",
    "null",
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("behind", ["]", " ]", ", 7]"])
def test_a_number_may_be_cut_anywhere_at_the_end_of_a_block(number: str, behind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"[{number}{behind}"
    expected = json.loads(text)
    for block in range(1, len(text) + 1):
        monkeypatch.setattr(text_files, "BLOCK", block)
        found = [*text_files.array_items(io.StringIO(text), "x")]
        assert repr(found) == repr(expected), block


@pytest.mark.parametrize("text", ['[{"a": 1}]', '[\n  {"a": 1}\n]', " [{}\n]", "[\n", "[]"])
def test_an_array_named_jsonl_is_told(text: str) -> None:
    with pytest.raises(UserError, match="(?s)one JSON array.*rename it to .json"):
        text_files.check_no_array(text, "rows.jsonl")


@pytest.mark.parametrize("text", ['[{"role": "user"}]\n[{"role": "user"}]\n', '[{"a": 1}]\r\n [{"b"', "[[1]]\n[[2]]"])
def test_lines_of_arrays_are_told_from_one_array(text: str) -> None:
    with pytest.raises(UserError, match="each line of the file is an array"):
        text_files.check_no_array(text, "rows.jsonl")


@pytest.mark.parametrize("text", ['{"a": [1]}', "[1, 2]\n", "", "x"])
def test_other_lines_are_no_array(text: str) -> None:
    text_files.check_no_array(text, "rows.jsonl")


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1;|,2\n",
        "a;b\n1,|;2\n",
        "a\tb\n1;|,\t2\n",
        "sep=;\n a ;b\n1;2\n",
        "sep=|\na|b\n1,|2\n",
        "\na|b\n1|2\n",
        "a;b;c, d\n1,|;2;3\n",
    ],
)
def test_the_delimiter_is_found_in_the_header(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    assert [(row["a"].rstrip(";|,"), row["b"]) for row in read(tmp_path / "rows.csv")] == [("1", "2")]


def test_blanks_behind_the_delimiters_of_the_header_belong_to_them_in_rows_too(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a, b\n1, "x, y"\n2, "  z"\n3, w \n')
    assert [row["b"] for row in read(tmp_path / "rows.csv")] == ["x, y", "  z", "w "]
    (tmp_path / "rows.csv").write_text("a,b\n1, x\n")
    assert read(tmp_path / "rows.csv") == [{"a": "1", "b": " x"}]


def test_a_header_between_the_rows_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\na, b\n3,4\n")
    first, header, last = read(tmp_path / "rows.csv")
    assert str(header) == "the header again: line 3" and (first["a"], last["a"]) == ("1", "3")


def test_a_file_of_one_column_has_no_delimiter(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text\n"x; y, z"\n')
    assert read(tmp_path / "rows.csv") == [{"text": "x; y, z"}]


def test_marks_of_files_that_were_put_together_and_commas_of_an_array_are_no_text() -> None:
    lines = [b'\xef\xbb\xbf{"a": 1},\n', b'\xef\xbb\xbf{"a": 2},\r\n', b'{"a": "\xef\xbb\xbf,"}\n', b",\n"]
    *found, bad = map_lines(lines, 0)
    assert found == [{"a": 1}, {"a": 2}, {"a": "\ufeff,"}] and isinstance(bad, BadRow)


def test_a_key_that_is_there_twice_is_a_bad_row() -> None:
    first, second = map_lines([b'{"a": 1, "a": 2}\n', b'{"m": [{"role": "x", "role": "y"}]}\n'], 0)
    assert str(first) == "not JSON: line 1: the key 'a' is there twice"
    assert str(second) == "not JSON: line 2: the key 'role' is there twice"
    with pytest.raises(ValueError, match="the key 'a' is there twice"):
        [*array_items(io.StringIO('[{"a": 1, "a": 2}]'), "x.json")]
