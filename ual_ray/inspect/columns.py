"""The columns of a folder of scored rows, read one at a time, so that no texts of a million rows are held in memory."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.config import ENSEMBLE
from ual_ray.errors import UserError
from ual_ray.parquet import RowFiles, check_alike, check_kinds, naming_damage, open_file
from ual_ray.sorting import check_ids
from ual_ray.stats.score_quality import Numbers


class Columns:
    """The columns of a folder of scored rows, each read on access, all in the same row order."""

    def __init__(self, path: Path) -> None:
        """Open the folder or file. Raises UserError when it has no scored rows."""
        expected = "the Parquet folder that `ual elicit` writes (OUT/scored)"
        if not path.exists():
            raise UserError("the scored rows do not exist", got=path, expected=expected)
        try:
            self.files = sorted(RowFiles(path).files)
            # A block without any measurement may have a column of null type; the type is taken from the other blocks.
            schemas = {file: RowFiles(file).schema.remove_metadata() for file in self.files}
            check_alike(schemas)
            self._schema = pa.unify_schemas([*schemas.values()], promote_options="permissive") if schemas else pa.schema([])
            self._dataset = RowFiles([*map(Path, self.files)], self._schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
            raise UserError("the scored rows cannot be read", got=f"{path}: {error}", expected=expected) from error
        if missing := [name for name in (col.ID, col.SOURCE, col.UNCERTAINTY) if name not in self._schema.names]:
            raise UserError(f"{path} has no column {missing}", got=self._schema.names, expected=expected)
        check_kinds(path, self._schema)
        self._scores: dict[str, Numbers] = {}
        self.rows = self._dataset.count_rows()
        if not self.rows:
            raise UserError(f"{path} holds no row", expected=expected)
        check_ids(path, [self.arrow(col.ID)], "row", "labels and replies are found")
        self.estimators = [name for name in self._estimator_names() if name != ENSEMBLE]
        self.has_ensemble = ENSEMBLE in self._estimator_names() and bool(np.isfinite(self.score(ENSEMBLE)).any())

    def _estimator_names(self) -> list[str]:
        prefix = col.uncertainty_column("")
        return [name.removeprefix(prefix) for name in self._schema.names if name.startswith(prefix)]

    def __contains__(self, name: str) -> bool:
        return name in self._schema.names

    def arrow(self, name: str) -> pa.ChunkedArray:
        """Read a column."""
        return self._dataset.to_table(columns=[name]).column(0)

    def numbers(self, name: str) -> Numbers:
        """Read a column of numbers; null and infinite values are NaN, as are all values of a missing column."""
        if name not in self:
            return np.full(self.rows, np.nan)
        values = self.arrow(name).cast(pa.float64()).to_numpy()
        return np.where(np.isfinite(values), values, np.nan)

    def score(self, name: str) -> Numbers:
        """Read the uncertainty, or that of an estimator."""
        if name not in self._scores:
            self._scores[name] = self.numbers(col.UNCERTAINTY if name == col.UNCERTAINTY else col.uncertainty_column(name))
        return self._scores[name]

    @cached_property
    def lengths(self) -> Numbers:
        """Length of every response in characters."""
        return self.numbers(col.RESPONSE_LENGTH)

    def counts(self, name: str) -> dict[str, int]:
        """Count a text column's values, most frequent first, without nulls."""
        if name not in self:
            return {}
        found = {str(item["values"]): item["counts"] for item in self.arrow(name).drop_null().value_counts().to_pylist()}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def total(self, name: str) -> int | None:
        """Sum a column of numbers or flags; None if every row is null."""
        values = self.numbers(name) if name in self else np.array([np.nan])
        return int(np.nansum(values)) if np.isfinite(values).any() else None

    def messages(self, places: set[int]) -> dict[int, list[dict[str, str]]]:
        """Read the messages of the rows at these indices, reading only the file blocks that contain them."""
        found = {}
        for file, group, start, rows in self._blocks() if col.MESSAGES in self else ():
            inside = [place for place in places if start <= place < start + rows]
            if inside:
                column = file.read_row_group(group, columns=[col.MESSAGES]).column(0)
                found.update({place: column[place - start].as_py() or [] for place in inside})
        return found

    def _blocks(self) -> Iterator[tuple[pyarrow.parquet.ParquetFile, int, int, int]]:
        start = 0
        for path in self.files:
            with naming_damage([Path(path)]), open_file(path) as file:
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    yield file, group, start, rows
                    start += rows
