"""The rows that engines produced, by id, in a folder that outlives a run: a finished row is never sent again.

    <folder>/finished/*.parquet     rows, written in Ray Data's tasks
    <folder>/checkpoint/*.parquet   their ids, written by Ray Data: a `.pending` in a name marks rows that are not whole
    <folder>/failed/*.parquet       rows that failed with an engine error
    <folder>/retried/*.parquet      those that are sent again, for what was answered about them

A key made of all that shapes a row (model, prompts, engine settings) names the folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink

from ual_ray import columns as col
from ual_ray.engines.compat_ray_data import complete_files
from ual_ray.errors import UserError
from ual_ray.parquet import RowFiles, send_again, to_bytes, write_table

FINISHED_FOLDER, CHECKPOINT_FOLDER, FAILED_FOLDER, RETRIED_FOLDER = "finished", "checkpoint", "failed", "retried"
NAMES_BEFORE = ("measured", "answered", "judged")


@dataclass(frozen=True)
class RowStore:
    """Rows of `schema`, which has an id column, in `folder`. Files that a crash left incomplete are ignored."""

    folder: Path
    schema: pa.Schema

    def __post_init__(self) -> None:
        """Take over a store of version 0.1, whose folders had a name per stage."""
        for old in NAMES_BEFORE:
            for name, new in ((old, self.finished), (f"{old}.finished", self.checkpoint)):
                if (self.folder / name).is_dir() and not new.exists():
                    (self.folder / name).rename(new)

    @property
    def finished(self) -> Path:
        """Where Ray Data writes rows, with `Sink`."""
        return self.folder / FINISHED_FOLDER

    @property
    def checkpoint(self) -> Path:
        """Where Ray Data writes the ids of finished rows."""
        return self.folder / CHECKPOINT_FOLDER

    @property
    def failed(self) -> Path:
        """Where rows that failed with an engine error are."""
        return self.folder / FAILED_FOLDER

    @property
    def retried(self) -> Path:
        """Where rows are that failed and are sent again."""
        return self.folder / RETRIED_FOLDER

    def retry_failed(self) -> None:
        """Forget the failed rows, so that the next job sends them again; their files are moved to `retried`."""
        for file in self.failed.glob("*.parquet"):
            self.retried.mkdir(exist_ok=True)
            file.replace(self.retried / file.name)

    def add_failed(self, rows: pa.Table) -> None:
        """Write rows that failed with an engine error; the same rows replace each other."""
        self.failed.mkdir(parents=True, exist_ok=True)
        write_table(rows, self.failed / f"{col.digest(rows[col.ID].to_pylist())}.parquet")

    def count(self, where: pa.compute.Expression | None = None) -> int:
        """Count the finished rows that fulfil a condition; without one from the files' metadata alone."""
        files = self.finished_files()
        return RowFiles(files, self.schema, send_again).count_rows(where) if files else 0

    def read(self, columns: Sequence[str], where: pa.compute.Expression) -> pa.Table:
        """Read columns of the finished rows that fulfil a condition."""
        files = self.finished_files()
        empty = self.schema.empty_table().select(columns)
        return RowFiles(files, self.schema, send_again).to_table(columns, where) if files else empty

    def missing(self, ids: pa.ChunkedArray, files: Sequence[Path] | None = None) -> pa.ChunkedArray:
        """Return those of the ids that have no row in the files; by default neither a finished nor a failed one."""
        return ids.filter(pa.compute.is_null(self._positions(ids, self.files() if files is None else files)))

    def select(self, ids: pa.ChunkedArray, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows with these ids, a table per file, each row once: the finished one where there is a failed one too.

        Holds the ids of the store and one file at a time. Until rows are added the order is the same at every call.
        """
        files = self.files()
        positions = np.unique(self._positions(ids, files).drop_null().to_numpy())
        start = 0
        for file in files:
            rows = RowFiles([file], self.schema, send_again)
            end = start + rows.count_rows()
            first, last = np.searchsorted(positions, (start, end))
            if first < last:
                yield rows.to_table(columns).take(positions[first:last] - start)
            start = end

    def check_complete(self, ids: pa.ChunkedArray) -> None:
        """Raise UserError when rows are missing after all were sent: their files were removed meanwhile."""
        if lost := len(self.missing(ids)):
            raise UserError(
                f"{lost} of {len(ids)} rows are finished, but missing from the store",
                got=f"files were removed from {self.finished}",
                fix="run the same command again, which sends these rows",
            )

    def files(self) -> list[Path]:
        """List the files of finished rows, then those of failed ones."""
        return [*self.finished_files(), *sorted(self.failed.glob("*.parquet"))]

    def finished_files(self) -> list[Path]:
        """List the files of finished rows."""
        return complete_files(self.finished, self.checkpoint)

    def _positions(self, ids: pa.ChunkedArray, files: Sequence[Path]) -> pa.ChunkedArray:
        """Find the first row with each id, counted over all files; null = none."""
        read = (RowFiles([file], fix=send_again).to_table([col.ID])[col.ID] for file in files)
        stored = pa.chunked_array([chunk for column in read for chunk in column.chunks], pa.string())
        return pa.compute.index_in(ids, value_set=stored)


class Sink(BlockBasedFileDatasink):
    """Writes a store's finished rows for Ray Data, whose own writer of Parquet leaves out the footer's checksum."""

    def __init__(self, store: RowStore) -> None:
        """Take the store that gets a file per block."""
        super().__init__(str(store.finished), file_format="parquet")

    def write_block_to_file(self, block: BlockAccessor, file: pa.NativeFile) -> None:
        """Write the rows of a block."""
        file.write(to_bytes(block.to_arrow()))
