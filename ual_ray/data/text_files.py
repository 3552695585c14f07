"""Text files, read row by row in bounded memory: lines of JSON, JSON arrays, CSV and TSV, packed with gzip or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from ual_ray.data.files import filesystem_of
from ual_ray.data.formats import BadRow, Record
from ual_ray.data.shard import Piece
from ual_ray.errors import UserError

BLOCK = 1 << 20
BOM = b"\xef\xbb\xbf"
BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


def read_jsonl(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the rows of a JSONL file that start in the piece's bytes."""
    with _open(piece) as stream:
        yield from map_lines(lines_of(stream, piece.first, piece.last), piece.first)


def read_text(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the rows of a whole text file of any kind."""
    with _open(piece) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        yield from TEXT_PARSERS[piece.kind](text, piece.path)


def has_object_lines(piece: Piece) -> bool:
    """Say whether a .json file holds one object per line, as many data sets on the hub do."""
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
    """Yield the lines that start in the bytes `first` to `last` (not included; None = the end) of a file."""
    position = first
    if first:
        # A line starts at `first` only if the byte before ends one.
        stream.seek(first - 1)
        position += len(stream.readline()) - 1
    if last is None:
        yield from stream
        return
    while position < last and (line := stream.readline()):
        yield line
        position += len(line)


def map_lines(lines: Iterable[bytes], first: int) -> Iterator[Record | BadRow]:
    """Parse lines of JSON; a line that is no object, or not UTF-8, is yielded as a BadRow."""
    place = f" after byte {first}" if first else ""
    decode = json.JSONDecoder().decode
    for number, line in enumerate(lines, start=1):
        try:
            text = line.removeprefix(BOM).decode() if number == 1 and not first else line.decode()
        except UnicodeDecodeError as error:
            yield BadRow(f"not UTF-8: line {number}{place}: {error}", line.decode(errors="backslashreplace").rstrip("\r\n"))
            continue
        try:
            value = decode(text)
        except (ValueError, RecursionError) as error:
            if text.strip():
                yield BadRow(f"not JSON: line {number}{place}: {error}", text.rstrip("\r\n"))
            continue
        yield value if isinstance(value, dict) else _no_object(value)


def _no_object(value: Any) -> BadRow:
    return BadRow(f"not a JSON object: {value!r:.80}", json.dumps(value))


def _parse_lines(text: TextIO, path: str) -> Iterator[Record | BadRow]:
    return map_lines((line.encode() for line in text), 0)


# --- JSON arrays ------------------------------------------------------------------------------------------------------


def _parse_array(text: TextIO, path: str) -> Iterator[Record | BadRow]:
    for value in array_items(text, path):
        yield value if isinstance(value, dict) else _no_object(value)


def array_items(text: TextIO, path: str) -> Iterator[Any]:
    """Yield the values of a JSON array as they are read. Raises ValueError, and UserError if there is no array."""
    # Not ijson: it turns half a surrogate pair into "?" and gives up at NaN and integers above 64 bits, which json takes.
    content = _Json(text)
    if content.next() == "":
        return
    if content.next() != "[":
        expected = "[ {...}, {...} ], or one object a line"
        raise UserError("data.path is JSON but not an array", got=path, expected=expected)
    content.skip()
    number = 0
    while content.next() != "]":
        if number:
            content.expect(",", number)
        number += 1
        yield content.value(number)
    content.skip()
    if content.next():
        raise ValueError(f"text behind the array of {number} rows")


class _Json:
    """JSON text that is read block by block: never more than a block and the value at hand is in memory."""

    def __init__(self, text: TextIO) -> None:
        self.text, self.buffer, self.at = text, "", 0

    def next(self) -> str:
        """Peek at the next character that is no blank; "" at the end."""
        while True:
            blank = BLANKS.match(self.buffer, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.buffer) or not self.more():
                return self.buffer[self.at : self.at + 1]

    def skip(self) -> None:
        self.at += 1

    def expect(self, character: str, number: int) -> None:
        if self.next() != character:
            raise ValueError(f"behind row {number}: '{character}' expected, found {self.next()!r}")
        self.skip()

    def more(self) -> bool:
        """Read on; at least as much as is at hand, so that a long value is not decoded over and over."""
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
            # A number at the end of a block may go on in the next.
            if end < len(self.buffer) or not self.more():
                self.at = end
                return value

    def cut_off(self, error: json.JSONDecodeError) -> bool:
        """Say whether an error may come from the end of the block: the longest token but a string has nine characters."""
        return error.pos >= len(self.buffer) - 16 or error.msg.startswith("Unterminated string")


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


def _parse_csv(text: TextIO, path: str) -> Iterator[Record | BadRow]:
    return _parse_cells(text, path, ",")


def _parse_tsv(text: TextIO, path: str) -> Iterator[Record | BadRow]:
    return _parse_cells(text, path, "\t")


def _parse_cells(text: TextIO, path: str, delimiter: str) -> Iterator[Record | BadRow]:
    csv.field_size_limit(sys.maxsize)  # the default refuses answers above 128 KB
    # Strict: otherwise a stray quote swallows the rows behind it without a word.
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header = next(filter(None, rows), [])
    if len(set(header)) < len(header):
        raise UserError("data.path has two columns of the same name", got=f"{path}: {header}")
    while True:
        start = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(f"not CSV: line {start}: {error}")
            continue
        if len(cells) == len(header):
            yield dict(zip(header, cells, strict=True))
        elif cells:
            reason = f"wrong number of cells: line {start}: {len(cells)}, not {len(header)}"
            yield BadRow(reason, delimiter.join(cells))


TEXT_PARSERS: dict[str, Callable[[TextIO, str], Iterator[Record | BadRow]]] = {
    "jsonl": _parse_lines,
    "json": _parse_array,
    "csv": _parse_csv,
    "tsv": _parse_tsv,
}
