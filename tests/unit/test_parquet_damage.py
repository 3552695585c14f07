"""Damaged Parquet files: a changed bit or a missing end is an error that names the file, never other rows."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from ray.data.block import BlockAccessor

from ual_ray import columns as col
from ual_ray.engines.row_store import RowStore, Sink
from ual_ray.errors import UserError
from ual_ray.parquet import (
    MARK,
    SUM_BYTES,
    RowFiles,
    checked,
    content_digest,
    naming_damage,
    open_file,
    read_table,
    write_rows,
    write_table,
    write_tables,
    writing,
)

ROOT = Path(__file__).parents[2]
OWNER = ROOT / "ual_ray" / "parquet.py"
ROWS = 300
SCHEMA = pa.schema([(col.ID, pa.string()), ("text", pa.string()), ("x", pa.float64()), ("places", pa.list_(pa.int64()))])
TABLE = pa.table(
    {
        col.ID: [f"{row:016x}" for row in range(ROWS)],
        "text": [f"answer {row} " * (row % 7) for row in range(ROWS)],
        "x": [row / 7 for row in range(ROWS)],
        "places": [[row, row + 1] for row in range(ROWS)],
    },
    SCHEMA,
)


def by_writer(file: Path) -> None:
    with writing(file, SCHEMA) as writer:
        for batch in TABLE.to_batches(max_chunksize=100):
            writer.write_batch(batch)


def by_tables(file: Path) -> None:
    write_tables([TABLE], SCHEMA, file.parent / "folder")
    next((file.parent / "folder").glob("*.parquet")).replace(file)


def by_ray_data(file: Path) -> None:
    with pa.OSFile(str(file), "wb") as stream:
        Sink(RowStore(file.parent, SCHEMA)).write_block_to_file(BlockAccessor.for_block(TABLE), stream)


WRITERS: dict[str, Callable[[Path], None]] = {
    "write_rows": lambda file: write_rows(TABLE.to_pylist(), SCHEMA, file),
    "write_table": lambda file: write_table(TABLE, file),
    "write_tables": by_tables,
    "writing": by_writer,
    "a row store": by_ray_data,
}
READERS: dict[str, Callable[[Path], object]] = {
    "a table": read_table,
    "a column": lambda file: RowFiles(file).to_table(["text"]),
    "a filter": lambda file: RowFiles(file).to_table(filter=pa.compute.field("x") >= 20),
    "batches": lambda file: pa.Table.from_batches(RowFiles(file).to_batches()),
    "the head": lambda file: RowFiles(file).head(ROWS),
    "places": lambda file: RowFiles(file).take(pa.array([3, 270]), SCHEMA.names, pa.compute.field("x") > 1),
    "Ray Data": checked,
    "a digest": lambda file: content_digest(file, SCHEMA.names),
    "several files": lambda file: RowFiles([file, file], SCHEMA).to_table(),
}


def pages(content: bytes) -> int:
    """Bytes before the footer."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def damaged(content: bytes, seed: int, flips: int = 60) -> list[bytes]:
    """Flip a bit in each copy, and cut others at several places."""
    draw, copies = random.Random(seed), []
    for _ in range(flips):
        copy = bytearray(content)
        copy[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        copies.append(bytes(copy))
    cuts = (0, 3, 4, 12, len(content) // 2, pages(content), pages(content) + 5, len(content) - 8, len(content) - 1)
    return copies + [content[:cut] for cut in cuts]


def check(file: Path, read: Callable[[Path], object]) -> int:
    """Count the damages of a file that reading finds. Fails for one that gives other data, or an error without the name."""
    content, expected, found = file.read_bytes(), read(file), 0
    for copy in damaged(content, seed=len(content)):
        file.write_bytes(copy)
        try:
            assert read(file) == expected, "other data without an error"
        except UserError as error:
            assert str(file) in str(error) and "damaged" in str(error) and "delete" in str(error), error
            found += 1
    file.write_bytes(content)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_read_or_refused(writer: str, tmp_path: Path) -> None:
    WRITERS[writer](file := tmp_path / "rows.parquet")
    assert check(file, read_table) > 55


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.slow
def test_every_reader_finds_a_changed_bit(reader: str, tmp_path: Path) -> None:
    write_table(TABLE, file := tmp_path / "rows.parquet")
    assert check(file, READERS[reader]) > 9  # those of columns that are not read are not found


OF_THE_FOOTER: dict[str, Callable[[Path], object]] = {
    "the schema": lambda file: RowFiles(file).schema,
    "metadata": lambda file: RowFiles(file).schema.metadata,
    "a count": lambda file: RowFiles(file).count_rows(),
    "a filter": lambda file: RowFiles(file).to_table(filter=pa.compute.field("x") >= 20),
    "blocks": lambda file: read_blocks(file),
}


def read_blocks(file: Path) -> pa.Table:
    with naming_damage([file]):
        return open_file(file).read()


@pytest.mark.parametrize("reader", OF_THE_FOOTER)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.slow
def test_every_changed_bit_of_a_footer_is_found_before_it_is_read(writer: str, reader: str, tmp_path: Path) -> None:
    """Some of them end the process."""
    WRITERS[writer](file := tmp_path / "rows.parquet")
    content, read = file.read_bytes(), OF_THE_FOOTER[reader]
    for seed in range(200):
        draw, copy = random.Random(seed), bytearray(content)
        copy[draw.randrange(pages(content), len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(copy)
        with pytest.raises(UserError, match=r"rows\.parquet cannot be read"):
            read(file)
    file.write_bytes(content)
    read(file)


def test_the_checksum_of_the_footer_is_in_no_ones_way(tmp_path: Path) -> None:
    write_table(TABLE, file := tmp_path / "rows.parquet")
    sealed, other = file.read_bytes(), tmp_path / "other.parquet"
    pyarrow.parquet.write_table(TABLE, other, write_page_checksum=True)
    plain, added = other.read_bytes(), len(MARK) + SUM_BYTES
    start = pages(plain)
    assert sealed[:start] == plain[:start] and sealed[start + added :] == plain[start:]
    assert pyarrow.parquet.read_table(file) == TABLE, "other readers"
    assert read_table(other) == TABLE, "of others, or of an earlier version"
    for at in range(start, start + len(MARK)):
        file.write_bytes(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        assert read_table(file) == TABLE


@pytest.mark.slow
def test_a_damaged_file_among_others_is_named(tmp_path: Path) -> None:
    write_tables([TABLE] * 50, SCHEMA, folder := tmp_path / "rows")
    file = sorted(folder.glob("*.parquet"))[1]
    assert check(file, lambda _: read_table(folder)) > 55


def store_of(folder: Path) -> tuple[RowStore, Path]:
    store = RowStore(folder, SCHEMA)
    for place in (store.finished, store.checkpoint):
        place.mkdir(parents=True)
    for name, rows in (("a", TABLE.slice(0, 100)), ("b", TABLE.slice(100))):
        write_table(rows, store.finished / f"{name}_000.parquet")
        write_table(rows.select([col.ID]), store.checkpoint / f"{name}.parquet")
    return store, store.finished / "b_000.parquet"


@pytest.mark.slow
def test_a_damaged_file_of_a_store_stops_whoever_reads_it(tmp_path: Path) -> None:
    store, file = store_of(tmp_path)
    assert check(file, lambda _: pa.concat_tables(store.select(TABLE[col.ID]))) > 55
    assert check(file, lambda _: store.missing(TABLE[col.ID])) > 9
    assert check(file, lambda _: store.read(["text"], pa.compute.field("x") > 1)) > 9


def test_deleting_what_the_error_names_leaves_these_rows_alone_to_be_sent(tmp_path: Path) -> None:
    store, file = store_of(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        store.missing(TABLE[col.ID])
    named = [Path(found) for found in re.findall(r"\S+\.parquet", str(caught.value).partition("delete ")[2])]
    assert named == [file]
    file.unlink()
    assert store.missing(TABLE[col.ID]).to_pylist() == TABLE[col.ID][100:].to_pylist()


def test_a_damaged_file_of_failed_rows_is_sent_again_without_it(tmp_path: Path) -> None:
    store, _ = store_of(tmp_path)
    store.add_failed(rows := pa.Table.from_pylist([{col.ID: "z"}], SCHEMA))
    (file,) = store.failed.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"delete {re.escape(str(file))}: "):
        store.missing(pa.chunked_array(rows[col.ID].chunks))
    file.unlink()
    assert len(store.missing(pa.chunked_array(rows[col.ID].chunks))) == 1


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(TABLE, file := tmp_path / "old.parquet")
    assert read_table(file) == TABLE
    with open_file(file) as opened:
        assert opened.read() == TABLE


def test_an_error_of_a_sound_file_stays_what_it_is(tmp_path: Path) -> None:
    write_table(TABLE, file := tmp_path / "rows.parquet")
    with pytest.raises(pa.ArrowInvalid, match="absent"):
        RowFiles(file).to_table(["absent"])
    with pytest.raises(FileNotFoundError):
        RowFiles(tmp_path / "no.parquet")


def test_nobody_opens_or_writes_parquet_around_the_owner() -> None:
    around = re.compile(
        r"dataset\.dataset\(|ds\.dataset\(|parquet\.(?:read_|write_|Parquet(?:Writer|File|Dataset)\()"
        r"|data\.read_parquet\((?!checked\()|\.write_parquet\("
    )
    files = [file for file in (ROOT / "ual_ray").rglob("*.py") if file != OWNER]
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if around.search(line)
    ]
    assert len(files) > 100 and not found


READ_WHOLE = """
import sys
from pathlib import Path
import pyarrow as pa
from ual_ray.parquet import checked
checked(Path(sys.argv[1]))
print(pa.default_memory_pool().max_memory() // 2**20)
"""


@pytest.mark.slow
def test_comparing_checksums_holds_no_whole_row_group(tmp_path: Path) -> None:
    """The driver of a training does it, whose memory has to stay the same however many rows there are."""
    file = tmp_path / "rows.parquet"
    texts = pa.array([os.urandom(500).hex() for _ in range(50_000)])
    pyarrow.parquet.write_table(pa.table({"text": texts}), file, write_page_checksum=True)
    done = subprocess.run([sys.executable, "-c", READ_WHOLE, str(file)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15 < 45 < texts.nbytes / 2**20
