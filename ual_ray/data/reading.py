"""Split a data set into small shards, and read one shard row by row.

`find_pieces` reads only metadata and runs in the driver; `read_piece` streams one shard and runs anywhere. Local and cloud
files are both read through pyarrow.fs.
"""

import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from ual_ray import columns as col
from ual_ray.config import DEMO, DataConfig
from ual_ray.config.redact import redact_uri
from ual_ray.data.demo import sample_rows
from ual_ray.data.files import LFS_POINTER, UNREADABLE, DataFile, columns_in, filesystem_of, find_files, naming, refuse_subset
from ual_ray.data.formats import BadRow, Record
from ual_ray.data.hub import hub_pieces, read_hub
from ual_ray.data.shard import Piece, safe_name
from ual_ray.data.tables import arrow_pieces, parquet_pieces, read_arrow, read_parquet
from ual_ray.data.text_files import TEXT_PARSERS, check_no_array, has_object_lines, read_jsonl, read_text
from ual_ray.errors import UserError

# Kinds of shards whose number of rows is known from metadata.
EXACT = (DEMO, "parquet", "arrow")
BYTES_PER_PIECE = 32 << 20
SAMPLE = 1 << 20
SAMPLE_START = 4096


def find_pieces(config: DataConfig) -> list[Piece]:
    """List the shards of a data set in order, limited to its first `max_rows` rows. Raises UserError."""
    if config.path == DEMO:
        refuse_subset(config)
        return _limited([Piece(DEMO, DEMO, DEMO, rows=len(sample_rows()))], config.max_rows)
    files = find_files(config)
    if files is None:
        return _limited(hub_pieces(config), config.max_rows)
    # Threads, as opening a file in a cloud takes about 0.1 s regardless of its size.
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(_file_pieces, files))
    named = (
        replace(piece, name=f"{number:05d}-{part:05d}-{safe_name(file.name)}")
        for number, (file, pieces) in enumerate(zip(files, parts, strict=True))
        for part, piece in enumerate(pieces)
    )
    return _limited(named, config.max_rows)


def read_piece(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the rows of a shard one by one; a row that cannot be parsed is yielded as a BadRow. Raises UserError."""
    folders = columns_in(piece.path) if piece.kind != "hub" else {}
    with naming(redact_uri(piece.path)):
        rows = islice(READERS[piece.kind](piece), piece.limit)
        yield from ({**folders, **row} if isinstance(row, dict) else row for row in rows) if folders else rows


def _file_pieces(file: DataFile) -> list[Piece]:
    piece = Piece("", file.path, file.kind, root=file.root)
    with naming(redact_uri(file.path)):
        _refuse_pointer(file)
        if file.kind == "parquet":
            return parquet_pieces(piece)
        if file.kind == "arrow":
            return arrow_pieces(piece)
        return _text_pieces(file, replace(piece, kind="jsonl") if file.kind == "json" and has_object_lines(piece) else piece)


def _refuse_pointer(file: DataFile) -> None:
    if file.size < SAMPLE_START:
        with filesystem_of(file.root).open_input_stream(file.path, compression=None) as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                fix = "fetch the files, such as with `git lfs pull` in the clone"
                raise UserError("the file is a pointer of Git LFS, not the data", got=redact_uri(file.path), fix=fix)


def _text_pieces(file: DataFile, piece: Piece) -> list[Piece]:
    if file.packed or piece.kind != "jsonl" or file.size <= BYTES_PER_PIECE:
        return [replace(piece, rows=_estimate_rows(file, piece.kind, file.size))]
    per_byte = (_estimate_rows(file, piece.kind, file.size) or 0) / file.size
    return [
        replace(piece, first=first, last=last, rows=round(per_byte * (last - first)))
        for first, last in byte_ranges(file.size, BYTES_PER_PIECE)
    ]


def byte_ranges(size: int, step: int) -> list[tuple[int, int]]:
    """Split `size` bytes into ranges of `step` bytes; the reader assigns lines to ranges."""
    return [(first, min(first + step, size)) for first in range(0, size, step)]


def _estimate_rows(file: DataFile, kind: str, size: int) -> int | None:
    """Estimate the rows of a text file from a sample of its beginning; None if the sample has no whole row."""
    with filesystem_of(file.root).open_input_stream(file.path, compression=None) as stream:
        sample = stream.read(SAMPLE)
    text, used = _unpack(sample) if file.packed else (sample, len(sample))
    share = used / size if size else 1.0
    if kind == "jsonl":
        check_no_array(text[:SAMPLE_START].decode("utf-8-sig", errors="replace"), file.path)
    # The sample may end within a character.
    records = TEXT_PARSERS[kind](io.TextIOWrapper(io.BytesIO(text), "utf-8-sig", errors="replace", newline=""), file.path)
    rows, ended = 0, False
    try:
        for _ in records:
            rows += 1
        ended = True
    except (*UNREADABLE, UserError):
        # The sample ends within a row, or the file is invalid, which reading it will report.
        pass
    if share >= 1:
        return rows
    whole = rows - 1 if ended else rows
    return round(whole / share) if whole else None


def _unpack(sample: bytes) -> tuple[bytes, int]:
    """Decompress the beginning of a gzip file up to a bounded size; returns it and the compressed bytes consumed."""
    unpacker = zlib.decompressobj(wbits=31)
    text = unpacker.decompress(sample, 8 * SAMPLE)
    return text, len(sample) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)


def _limited(pieces: Iterable[Piece], most: int | None) -> list[Piece]:
    """Keep the shards with the first `max_rows` rows. If a number of rows is an estimate, rows are counted up to the limit."""
    if most is None:
        return list(pieces)
    kept: list[Piece] = []
    left = most
    for piece in pieces:
        if left <= 0:
            break
        counted = piece.kind in EXACT and piece.rows is not None
        rows = (piece.rows or 0) if counted else sum(1 for _ in islice(read_piece(piece), left))
        kept.append(replace(piece, rows=min(rows, left), limit=left))
        left -= min(rows, left)
    return kept


def _read_demo(piece: Piece) -> Iterator[Record | BadRow]:
    for source, messages in sample_rows():
        yield {col.MESSAGES: messages, col.SOURCE: source}


READERS: dict[str, Callable[[Piece], Iterator[Record | BadRow]]] = {
    DEMO: _read_demo,
    "jsonl": read_jsonl,
    "json": read_text,
    "csv": read_text,
    "tsv": read_text,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "hub": read_hub,
}
