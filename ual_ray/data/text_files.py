"""Read text files row by row in bounded memory: JSON lines, JSON arrays, CSV and TSV, with or without gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, TextIO

from ual_ray.config.files import DEEPEST_JSON, is_deep, parse_json
from ual_ray.data.files import filesystem_of
from ual_ray.data.formats import BadRow, Record
from ual_ray.data.records import NOT_UTF_8, cell_of
from ual_ray.data.shard import Piece
from ual_ray.errors import UserError
from ual_ray.formatting import plural

BLOCK = 1 << 20
BOM = b"\xef\xbb\xbf"
BLANKS = re.compile(r"[ \t\r\n]*")
# What programs write between the cells of files named .csv.
DELIMITERS = ",;\t|"
# Of the lines that a quote takes in, the share that could be rows, from which it is a stray one.
SHARE_OF_ROWS = 0.8


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object. Raises ValueError for a key that it has twice, of which all but one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name!r} is there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def read_jsonl(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the rows of a JSONL file that start in the shard's bytes."""
    with _open(piece) as stream:
        yield from map_lines(lines_of(stream, piece.first, piece.last), piece.first)


def read_text(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the rows of a whole text file of any supported type."""
    with _open(piece) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        yield from TEXT_PARSERS[piece.kind](text, piece.path)


def has_object_lines(piece: Piece) -> bool:
    """Whether a .json file contains one object per line, as many hub data sets do."""
    with _open(piece) as stream:
        line = stream.readline(BLOCK).removeprefix(BOM)
        while line and not line.strip():
            line = stream.readline(BLOCK)
        if not line.lstrip().startswith(b"{"):
            return False  # an array may be one line of many gigabytes
        try:
            line += b"" if line.endswith(b"\n") else stream.readline()
            return isinstance(json.loads(line), dict) and any(rest.strip() for rest in stream)
        except (ValueError, RecursionError):
            return False


def _open(piece: Piece) -> io.BufferedReader:
    raw: Any = filesystem_of(piece.root).open_input_file(piece.path)
    packed = piece.path.lower().endswith(".gz")
    return io.BufferedReader(gzip.GzipFile(fileobj=raw) if packed else raw, BLOCK)


# --- lines of JSON ----------------------------------------------------------------------------------------------------


def lines_of(stream: io.BufferedReader, first: int, last: int | None) -> Iterator[bytes]:
    """Yield the lines that start in the bytes `first` to `last` (exclusive; None = the end) of a file."""
    position = first
    if first:
        # A line starts at `first` only if the previous byte is a newline.
        stream.seek(first - 1)
        position += len(stream.readline()) - 1
    if last is None:
        yield from stream
        return
    while position < last and (line := stream.readline()):
        yield line
        position += len(line)


def map_lines(lines: Iterable[bytes], first: int) -> Iterator[Record | BadRow]:
    """Parse JSON lines; a line that is not an object, or not UTF-8, is yielded as a BadRow."""
    place = f" after byte {first}" if first else ""
    for number, line in enumerate(lines, start=1):
        try:
            text = line.removeprefix(BOM).decode()  # which also files have that were put one behind the other
        except UnicodeDecodeError as error:
            yield BadRow(f"{NOT_UTF_8}: line {number}{place}: {error}", line.decode(errors="backslashreplace").rstrip("\r\n"))
            continue
        try:
            value = parse_json(text.rstrip().removesuffix(","), DECODER.decode)  # as lines of an array end
        except ValueError as error:
            if text.strip():
                yield BadRow(f"not JSON: line {number}{place}: {error}", text.rstrip("\r\n"))
            continue
        yield value if isinstance(value, dict) else _no_object(value)


def check_no_array(start: str, path: str) -> None:
    """Raise UserError for a file of JSON lines that starts as an array of objects does."""
    lines = start.split("\n", 2)
    if len(lines) > 1 and re.match(r"\s*\[.*\]\s*\Z", lines[0], re.DOTALL) and re.match(r"\s*\[", lines[1]):
        fix = 'write each as an object, such as {"messages": [...]}'
        raise UserError("each line of the file is an array, not an object", got=path, fix=fix)
    if re.match(r"\s*\[\s*([{\]]|\Z)", start):
        raise UserError(
            "the file is one JSON array, not one object per line",
            got=path,
            fix="rename it to .json, which is read as an array",
        )


def _no_object(value: Any) -> BadRow:
    if is_deep(value):
        return BadRow(f"not a row: more than {DEEPEST_JSON} values are within each other", "")
    return BadRow(f"not a JSON object: {value!r:.80}", json.dumps(value))


# --- JSON arrays ------------------------------------------------------------------------------------------------------


def _parse_array(text: TextIO, path: str) -> Iterator[Record | BadRow]:
    for value in array_items(text, path):
        yield value if isinstance(value, dict) and not is_deep(value) else _no_object(value)


def array_items(text: TextIO, path: str) -> Iterator[Any]:
    """Yield the values of a JSON array as they are read. Raises ValueError for invalid JSON, UserError without an array."""
    # Not ijson: it turns half a surrogate pair into "?" and fails at NaN and integers above 64 bits, which json accepts.
    content = _Json(text)
    if content.next() == "":
        return
    if content.next() != "[":
        expected = "[ {...}, {...} ], or one object per line"
        raise UserError("the file is JSON but not an array", got=path, expected=expected, fix="put its rows into an array")
    content.skip()
    number = 0
    while content.next() != "]":
        if number:
            content.expect(",", number)
        number += 1
        yield content.value(number)
    content.skip()
    if content.next():
        raise ValueError(f"text after the array of {plural(number, 'row')}")


class _Json:
    """JSON text read block by block: at most one block and the current value are in memory."""

    def __init__(self, text: TextIO) -> None:
        self.text, self.buffer, self.at = text, "", 0

    def next(self) -> str:
        """Peek at the next non-blank character; "" at the end."""
        while True:
            blank = BLANKS.match(self.buffer, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.buffer) or not self.more():
                return self.buffer[self.at : self.at + 1]

    def skip(self) -> None:
        self.at += 1

    def expect(self, character: str, number: int) -> None:
        if self.next() != character:
            raise ValueError(f"after row {number}: expected '{character}', got {self.next()!r}")
        self.skip()

    def more(self) -> bool:
        """Read more, at least as much as is buffered, so that a long value is decoded only a few times."""
        block = self.text.read(max(BLOCK, len(self.buffer) - self.at))
        if block:
            self.buffer, self.at = self.buffer[self.at :] + block, 0
        return bool(block)

    def value(self, number: int) -> Any:
        """Decode the next value, row `number`. Raises ValueError."""
        self.next()
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                if not self.cut_off(error) or not self.more():
                    raise ValueError(f"row {number}: {error.msg}") from error
                continue
            # A number may continue in the next block, behind a point, or an e and a sign, none of which ends a number.
            if end + 2 < len(self.buffer) or not self.more():
                self.at = end
                return value

    def cut_off(self, error: json.JSONDecodeError) -> bool:
        """Whether an error may be due to the end of the block: the longest token except strings has nine characters."""
        return error.pos >= len(self.buffer) - 16 or error.msg.startswith("Unterminated string")


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


def _parse_cells(text: TextIO, path: str, delimiter: str | None = None) -> Iterator[Record | BadRow]:
    csv.field_size_limit(sys.maxsize)  # the default refuses answers above 128 KB
    lines = _Lines(text)
    delimiter = delimiter or _delimiter_of(lines)
    # Blanks behind all delimiters of the header belong to them, also in the rows, outside of quotes.
    first = lines.peek()
    blanks = delimiter in first and first.count(delimiter) == first.count(f"{delimiter} ")
    # Strict: otherwise a stray quote silently swallows the rows after it.
    rows = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=blanks)
    header = [name.strip() for name in next(filter(None, rows), [])]
    look_like_rows = _row_test("".join(lines.kept[-1:]), len(header), delimiter)
    if len(set(header)) < len(header):
        raise UserError(
            "the file has two columns of the same name", got=f"{path}: {header}", fix="rename or delete one of them"
        )
    while True:
        start = rows.line_num + 1
        lines.kept.clear()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield from _bad_lines(f"not CSV: line {start}: {error}", start, lines.kept)
            continue
        if cells and len(cells) != len(header):
            reason = f"wrong number of cells: line {start}: {len(cells)}, not {len(header)}"
            yield from _bad_lines(reason, start, lines.kept)
        elif len(lines.kept) > 1 and look_like_rows(lines.kept):
            reason = f"not CSV: line {start}: its quotes hold lines that look like rows (a text of such lines needs JSONL)"
            yield from _bad_lines(reason, start, lines.kept)
        elif cells and [cell.strip() for cell in cells] == header:
            yield from _bad_lines(f"the header again: line {start}", start, lines.kept)
        elif cells:
            yield dict(zip(header, map(cell_of, cells), strict=True))


def _delimiter_of(lines: _Lines) -> str:
    """Find what a .csv file has between its cells, in its header, or in the line that Excel writes before it."""
    first = lines.peek()
    if found := re.fullmatch(r"sep=(.)\s*", first):
        next(iter(lines))
        return found[1]
    return max(DELIMITERS, key=first.count)


class _Lines:
    """The lines of a text; `kept`: those that were read since it was cleared."""

    def __init__(self, text: TextIO) -> None:
        self._text: Iterator[str] = iter(text)
        self.kept: list[str] = []

    def peek(self) -> str:
        """Return the first line that is not blank without taking it; "" without one."""
        seen = []
        for line in self._text:
            seen.append(line)
            if line.strip():
                break
        self._text = chain(seen, self._text)
        return seen[-1] if seen else ""

    def __iter__(self) -> Iterator[str]:
        for line in self._text:
            self.kept.append(line)
            yield line


def _bad_lines(reason: str, start: int, lines: Sequence[str]) -> Iterator[BadRow]:
    """Yield a bad row for each line that a faulty row took up, so that all are counted and kept."""
    if len(lines) > 1:
        reason = f"{reason}: a quote that is open takes in lines {start} to {start + len(lines) - 1}"
    for line in list(lines):
        yield BadRow(reason, line.rstrip("\r\n"))


def _row_test(header: str, cells: int, delimiter: str) -> Callable[[Sequence[str]], bool]:
    """Return the test whether the lines of one row could be rows: then a stray quote took them in.

    Commas of prose have a blank behind them, as delimiters have where the header's do. A text that looks like rows all the
    same is a bad row: it is counted, where rows that became one are not. Where the header is quoted, so are all rows, and csv
    itself finds a quote that is not closed.
    """
    between = re.compile(re.escape(delimiter) + ("" if f"{delimiter} " in header else "(?! )"))
    told = cells > 1 and header.count('"') < 2 * cells

    def look_like_rows(lines: Sequence[str]) -> bool:
        rows = sum(len(between.findall(line)) == cells - 1 for line in lines)
        return told and rows >= SHARE_OF_ROWS * len(lines)

    return look_like_rows


TEXT_PARSERS: dict[str, Callable[[TextIO, str], Iterator[Record | BadRow]]] = {
    "jsonl": lambda text, path: map_lines((line.encode() for line in text), 0),
    "json": _parse_array,
    "csv": _parse_cells,
    "tsv": partial(_parse_cells, delimiter="\t"),
}
