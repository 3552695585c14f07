"""Read and write the rows of a stage, and compute digests of their content.

Every Parquet file of this package is written with a checksum per page and compared with it when it is read: a bit that a disk
changed is an error, not another number. In front of the footer, of which Parquet has no checksum, is one that other readers
skip, as they find the footer from the end of the file. Files without checksums, such as those of users, are read as they are.
"""

import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray import sorting
from ual_ray.config.files import replacing
from ual_ray.errors import UserError
from ual_ray.sorting import is_text

ROWS_PER_FILE = 10_000
# What is only compared with its checksums is read in such parts: a data set of Arrow's would hold several whole row groups.
BUFFER_BYTES, ROWS_AT_ONCE = 2**20, 1000
DONE_FILE = "done.json"
WRITING = {"write_page_checksum": True}
# In front of the footer, no text, and with the CRC-32 of all that follows; looked for in the file's last bytes.
MARK, SUM_BYTES, LAST_BYTES = b"\xffUAL\xfeCRC", 4, 1 << 16
# Columns that stages read, besides those of estimators, of which files may have different ones.
READ = (col.ID, col.SPLIT, col.MESSAGES, col.SOURCE, col.RESPONSE_LENGTH, col.UNCERTAINTY, col.ALPHA, col.LOSS_WEIGHT)
# Not the bytes of many row groups ahead: files are on disks, and of a table of ten million rows that is all of it.
READING: dict[str, Any] = {"page_checksum_verification": True, "buffer_size": BUFFER_BYTES, "pre_buffer": False}
SCANNING = pyarrow.dataset.ParquetFragmentScanOptions(use_buffered_stream=True, **READING)
# Threads of Arrow's read on while batches wait to be taken, without an end.
BY_BATCH = {"use_threads": False, "batch_readahead": 1, "fragment_readahead": 1, "batch_size": ROWS_PER_FILE}


def run_stage_again(file: Path) -> str:
    """Describe how a damaged file of a stage is made again."""
    done = f"delete it and {DONE_FILE} of its stage, and run the same command again"
    return f"restore {file.name} from a copy, or {done}: what a stage before it or a model answered is kept"


def send_again(file: Path) -> str:
    """Describe what to do about a damaged file of finished rows, or of failed ones."""
    return f"restore it from a copy, or delete {file}: the next run sends its rows again, and no others"


class RowFiles:
    """The rows of a Parquet file, of all in a folder, or of several. Raises UserError that names a damaged file."""

    def __init__(
        self, path: Path | str | Sequence[Path], schema: pa.Schema | None = None, fix: Callable[[Path], str] = run_stage_again
    ) -> None:
        """Open the files; schema: of all rows, by default that of the first file. fix: what to do about a damaged file."""
        places = str(path) if isinstance(path, Path | str) else [*map(str, path)]
        self._paths, self._fix = [*map(Path, [places] if isinstance(places, str) else places)], fix
        kind = pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=SCANNING)
        with self._checked():
            for file in files_of(self._paths):
                check_footer(file)
            self._data = pyarrow.dataset.dataset(places, schema, format=kind)
        self.schema: pa.Schema = self._data.schema
        self.files: list[str] = self._data.files

    def to_table(self, columns: Sequence[str] | None = None, filter: pa.compute.Expression | None = None) -> pa.Table:  # noqa: A002
        """Read columns, by default all, of the rows that fulfil a condition."""
        with self._checked():
            return self._data.to_table(columns=None if columns is None else [*columns], filter=filter)

    def to_batches(self, **options: Any) -> Iterator[pa.RecordBatch]:
        """Read by batches; options: those of a scanner, such as columns, filter and batch_size."""
        with self._checked():
            yield from self._data.to_batches(**BY_BATCH | options)

    def head(self, most: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the first rows."""
        with self._checked():
            return self._data.head(most, columns=columns)

    def take(self, places: pa.Array, columns: Sequence[str], filter: pa.compute.Expression) -> pa.Table:  # noqa: A002
        """Read rows by their positions among those that fulfil a condition."""
        with self._checked():
            return self._data.scanner(columns=[*columns], filter=filter).take(places)

    def count_rows(self, filter: pa.compute.Expression | None = None) -> int:  # noqa: A002
        """Count the rows that fulfil a condition; without one from metadata alone."""
        with self._checked():
            return int(self._data.count_rows(filter=filter))

    @contextmanager
    def _checked(self) -> Iterator[None]:
        with naming_damage(self._paths, self._fix):
            yield


def checked(path: Path) -> str:
    """Compare all checksums, and return the path for a reader that compares none, as Ray Data's whatever it is told."""
    with naming_damage([path]):
        for file in files_of([path]):
            with open_file(file) as opened:
                for _ in opened.iter_batches(batch_size=ROWS_AT_ONCE):
                    pass
    return str(path)


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files, and those in folders."""
    for path in paths:
        yield from sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def check_footer(file: Path) -> None:
    """Raise pyarrow's error for a footer that differs from its checksum: some changes of it end the process that reads it."""
    with file.open("rb") as stream:
        tail = _tail(stream)
    _, mark, rest = tail.rpartition(MARK)
    if mark and rest[:SUM_BYTES] != _sum(rest[SUM_BYTES:]):
        raise pa.ArrowInvalid("its footer does not match the checksum in front of it")


def _seal(stream: BinaryIO) -> None:
    """Write the checksum in front of the footer."""
    tail = _tail(stream)
    footer = tail[-8 - _footer_bytes(tail) :]
    stream.seek(-len(footer), os.SEEK_END)
    stream.write(MARK + _sum(footer) + footer)


def _seal_file(file: Path) -> None:
    with file.open("r+b") as stream:
        _seal(stream)


def _tail(stream: BinaryIO) -> bytes:
    """Read the end of a file, with all of its footer."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 8))
    stream.seek(max(0, size - max(LAST_BYTES, _footer_bytes(stream.read()) + 64)))
    return stream.read()


def _footer_bytes(tail: bytes) -> int:
    """Read from the last 8 bytes how many the footer has, these not counted."""
    return int.from_bytes(tail[-8:-4], "little")


def _sum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(SUM_BYTES, "little")


def open_file(file: Path | str | pa.NativeFile, **options: Any) -> pyarrow.parquet.ParquetFile:
    """Open one file by its blocks; use it in `naming_damage`."""
    if isinstance(file, Path | str):
        check_footer(Path(file))
    return pyarrow.parquet.ParquetFile(file, **READING | options)


@contextmanager
def naming_damage(paths: Iterable[Path], fix: Callable[[Path], str] = run_stage_again) -> Iterator[None]:
    """Turn an error of reading into a UserError that names the damaged file, if one of these files or folders is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        for file in files_of(paths):
            if (damage := damage_of(file)) is not None:
                raise UserError(
                    f"{file} cannot be read: it is damaged, or no Parquet file", got=damage, fix=fix(file)
                ) from error
        raise


def damage_of(file: Path) -> str | None:
    """Read a file to its end, and compare its checksums; return what is wrong with it."""
    try:
        with open_file(file) as opened:
            for _ in opened.iter_batches():
                pass
    except (pa.ArrowException, OSError) as error:
        return str(error).strip()
    return None


def schema_of(path: Path) -> pa.Schema:
    """Return the columns of rows that a stage reads.

    Raises UserError for a column twice, and as `check_alike` and `check_kinds` do.
    """
    try:
        files = RowFiles(path)
        schema = files.schema
        check_alike({file: RowFiles(file).schema for file in files.files}, by_first=True)
    except pa.ArrowInvalid as error:  # a column twice, or files that do not fit together
        expected = "the output of `ual elicit` or `ual smooth`"
        raise UserError(f"{path} cannot be read", got=error, expected=expected, fix="give such a folder or file") from error
    check_kinds(path, schema)
    if col.ID in schema.names and not is_text(schema.field(col.ID).type):
        kind, fix = schema.field(col.ID).type, "cast it: training reads ids as text"
        raise UserError(f"{path}: the column {col.ID} does not hold texts", got=kind, expected="string", fix=fix)
    return schema


def check_kinds(path: Path, schema: pa.Schema) -> None:
    """Raise UserError for scores that are not numbers, sources that are not texts, and messages that are not turns."""
    kinds = {
        col.UNCERTAINTY: (_is_number, "numbers", "cast it: an uncertainty is in [0, 1]"),
        col.SOURCE: (lambda kind: not pa.types.is_nested(kind), "texts", "make a text of it, or leave the column out"),
        col.MESSAGES: (_is_chat, "lists of {role, content}", "convert it, or give the data themselves to `ual elicit`"),
    }
    for name, (fits, what, fix) in kinds.items():
        kind = schema.field(name).type if name in schema.names else pa.null()
        if not (pa.types.is_null(kind) or fits(kind)):
            raise UserError(f"{path}: the column {name} does not hold {what}", got=kind, fix=fix)


def check_alike(schemas: dict[str, pa.Schema], *, by_first: bool = False) -> None:
    """Raise UserError for files of one folder that differ in a column that is read: values would be converted or left out.

    by_first: all are read by the columns of the first, which has to have values in those that others have them in.
    """
    for name in READ:
        kinds = {_kind_in(schema, name): file for file, schema in reversed(schemas.items())}
        if not by_first or _kind_in(next(iter(schemas.values())), name) != "null":
            kinds.pop("null", None)  # no row of the file has a value
        if len(kinds) > 1:
            raise UserError(
                f"files of one folder differ in the column {name}",
                got=", ".join(f"{kind} in {file}" for kind, file in reversed(kinds.items())),
                expected="the same columns in all of them, of one kind each",
                fix="write them alike, or give one file",
            )


def _kind_in(schema: pa.Schema, name: str) -> str:
    """Name the kind of a column, up to what reading it converts without a change."""
    if name not in schema.names:
        return "no such column"
    kind = schema.field(name).type
    if is_text(kind) or _is_number(kind):
        return "texts" if is_text(kind) else "numbers"
    return str(kind).partition("<")[0].removeprefix("large_")


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    )


def _is_chat(kind: pa.DataType) -> bool:
    turn = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else pa.null()
    names = {field.name for field in turn if is_text(field.type)} if pa.types.is_struct(turn) else set()
    return {"role", "content"} <= names


def file_digest(path: Path) -> str:
    """Hash a file, or the files of a folder in order of name: 16 hexadecimal digits of SHA-256."""
    hasher = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() or file == path:
            with file.open("rb") as stream:
                hasher.update(hashlib.file_digest(stream, "sha256").digest())
    return hasher.hexdigest()[: col.ID_LENGTH]


def content_digest(path: Path | str, columns: Sequence[str]) -> str:
    """Hash the named columns of all rows, independent of files, blocks and row order; missing columns count as null.

    If the id, a hash of the messages, is among the columns, the digest covers the messages too. Of rows that people may have
    made or changed, `rows_digest` makes sure of it. Of many rows, a part is in memory at a time (`sorting`).
    """
    with mapped(path, [name for name in columns if name in RowFiles(path).schema.names]) as table:
        return sorting.stream_digest(table.replace_schema_metadata(None))


@contextmanager
def mapped(path: Path | str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Give columns of all rows in one batch, sorted by id where it is one of them; many rows in pages of temporary files."""
    files = RowFiles(path)
    schema = files.head(0, columns).schema
    if files.count_rows() <= sorting.ROWS_IN_MEMORY or not sorting.joins(schema):
        yield read_table(path, columns).combine_chunks()
        return
    batches = files.to_batches(columns=columns)
    rows = (batch for part in sorting.by_id(batches) for batch in part.to_batches()) if col.ID in columns else batches
    with sorting.joined(rows, schema) as batch:
        yield pa.Table.from_batches([batch])


def rows_digest(path: Path | str, columns: Sequence[str]) -> str:
    """Return `content_digest`, for rows with other ids than the hashes of their messages of the messages too."""
    digest, text = content_digest(path, columns), "text"
    batches = (pa.record_batch([*map(pa.array, zip(*found, strict=True))], [col.ID, text]) for found in _own_texts(path))
    others, between = hashlib.sha256(f'["{digest}",['.encode()), ""
    for part in sorting.by_id(batches):
        for pair in part.sort_by([(col.ID, "ascending"), (text, "ascending")]).to_pylist():
            others.update(f"{between}{col.canonical_json([*pair.values()])}".encode())
            between = ","
    others.update(b"]]")  # that of `columns.digest`
    return others.hexdigest()[: col.ID_LENGTH] if between else digest


def _own_texts(path: Path | str) -> Iterator[list[tuple[str, str]]]:
    """Yield the ids that are not the hash of the row's messages, with this hash, some at a time.

    Of a file that this package wrote, only if its first rows have such ids: it copies those of others, and changes no texts.
    """
    for file in files_of([Path(path)]):
        with naming_damage([file]), open_file(file) as opened:
            schema = opened.schema_arrow
            if not ({col.ID, col.MESSAGES} <= {*schema.names} and _is_chat(schema.field(col.MESSAGES).type)):
                continue
            with file.open("rb") as stream:
                own = MARK in _tail(stream)
            for batch in opened.iter_batches(ROWS_AT_ONCE, columns=[col.ID, col.MESSAGES]):
                rows = [(str(row[col.ID]), [*filter(None, row[col.MESSAGES] or [])]) for row in batch.to_pylist()]
                found = [(identity, text) for identity, turns in rows if identity != (text := col.content_id(turns))]
                if found:
                    yield found
                elif own:
                    break


def write_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write rows atomically to one Parquet file."""
    write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table atomically to one Parquet file."""
    with replacing(path) as part:
        pyarrow.parquet.write_table(table, part, **WRITING)
        _seal_file(part)


def to_bytes(table: pa.Table) -> memoryview:
    """Write a table as a Parquet file in memory."""
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content, **WRITING)
    _seal(content)
    return content.getbuffer()


@contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[pyarrow.parquet.ParquetWriter]:
    """Give a writer of one Parquet file, which is there when the block ends without an error."""
    with replacing(path) as part:
        with pyarrow.parquet.ParquetWriter(part, schema, **WRITING) as writer:
            yield writer
        _seal_file(part)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path) -> None:
    """Replace a folder by Parquet files of these rows, with ROWS_PER_FILE rows in memory; no rows give one empty file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    number, waiting = 0, [schema.empty_table()]
    for table in tables:
        waiting.append(table.select(schema.names).cast(schema))
        if sum(map(len, waiting)) >= ROWS_PER_FILE:
            write_table(pa.concat_tables(waiting), folder / f"part-{number:05d}.parquet")
            number, waiting = number + 1, []
    if waiting:
        write_table(pa.concat_tables(waiting), folder / f"part-{number:05d}.parquet")


def read_table(path: Path | str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or all Parquet files of a folder, sorted by id."""
    table = RowFiles(path).to_table(columns)
    return table.sort_by(col.ID) if col.ID in table.column_names else table


def alphas_digest(smoothed: Path, *, sources: bool) -> str:
    """Hash what training reads of a file of alphas; sources: with the rows' sources, by which train.mixture weighs them."""
    return rows_digest(smoothed, [col.ID, col.ALPHA, col.LOSS_WEIGHT, *([col.SOURCE] if sources else [])])


def recorded_map(smoothed: Path) -> dict[str, Any]:
    """Read from a file of alphas the map that produced it and the digest of its scores; empty for a foreign file."""
    file = next(smoothed.rglob("*.parquet")) if smoothed.is_dir() else smoothed
    metadata = RowFiles(file).schema.metadata or {}
    return json.loads(metadata.get(col.MAP_METADATA, b"{}"))
