"""Labels of responses: a CSV or JSONL file with the columns `id` and `correct`."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.data.records import BadRow, Record, name_of
from ual_ray.data.shard import Piece
from ual_ray.data.text_files import read_jsonl, read_text
from ual_ray.errors import UserError

CORRECT = "correct"
TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
LEGAL_TRUTH = "1, 0, true or false (1 = the response is good)"
LEGAL_FILE = "a .csv file with a header line, or a .jsonl file with one object per line; columns id and correct"


def read_labels(path: Path) -> dict[str, bool]:
    """Read a labels file: id (content id or the data's own) -> whether the response is good.

    Raises UserError for an invalid file, column or value, with its row.
    """
    if not path.is_file():
        raise UserError("the labels file does not exist", got=path, expected=LEGAL_FILE, fix="correct its path")
    kind = path.suffix.lower().removeprefix(".")
    reader = {"csv": read_text, "jsonl": read_jsonl}.get(kind)
    if reader is None:
        fix = "write it as one of these"
        raise UserError("the labels file has an unknown file extension", got=path, expected=LEGAL_FILE, fix=fix)
    labels: dict[str, bool] = {}
    try:
        for number, row in enumerate(reader(Piece("", str(path.resolve()), kind)), start=1):
            _add(labels, row, f"{path}, label {number}")
    except (UnicodeDecodeError, csv.Error) as error:
        what, expected, fix = "the labels file cannot be read", f"{LEGAL_FILE}, in UTF-8", "save it as such a file"
        raise UserError(what, got=f"{path}: {error}", expected=expected, fix=fix) from error
    if not labels:
        raise UserError("the labels file contains no label", got=path, expected=LEGAL_FILE, fix="write a row per label")
    return labels


def match_labels(labels: Mapping[str, bool], ids: pa.ChunkedArray, given_ids: pa.ChunkedArray) -> NDArray[np.float64]:
    """Look up every row's label by content id, else by the data's own id: 1 = good, 0 = wrong, NaN = no label.

    Raises UserError when no row has a label, or when a label's id is the data's own id of several rows.
    """
    wanted = pa.array(list(labels), pa.string())
    # Index -1, of rows that are not found, is the last entry.
    verdicts = np.array([*labels.values(), np.nan], dtype=np.float64)
    correct = np.full(len(ids), np.nan)
    for column in (given_ids, ids):
        places = pa.compute.index_in(column.cast(pa.string()), value_set=wanted).fill_null(-1).to_numpy()
        correct = np.where(places >= 0, verdicts[places], correct)
        if column is given_ids and (np.bincount(places[places >= 0], minlength=1) > 1).any():
            repeated = int(np.argmax(np.bincount(places[places >= 0])))
            raise UserError(
                "the id of a label is that of several rows",
                got=f"{wanted[repeated].as_py()!r}: the data's own ids repeat, as they do where each file starts again",
                fix="label rows by their content id, the column id of scored rows",
            )
    if np.isnan(correct).all():
        given = given_ids.drop_null()
        of_data = f", or of the data, such as {given[0].as_py()!r}" if len(given) else ""
        raise UserError(
            "no label matches any row",
            got=f"labels of ids such as {next(iter(labels))!r}",
            expected=f"ids of the rows, such as {ids[0].as_py()!r}{of_data}",
            fix="label rows of these data by one of both ids",
        )
    return correct


def _add(labels: dict[str, bool], row: Record | BadRow, where: str) -> None:
    if isinstance(row, BadRow):
        what, fix = "a row of the labels file cannot be read", "correct this row"
        raise UserError(what, got=f"{where}: {row}", expected=LEGAL_FILE, fix=fix)
    if missing := [name for name in (col.ID, CORRECT) if name not in row]:
        what, fix = f"the labels lack the column {missing}", "rename its columns, or add these"
        raise UserError(what, got=f"{where}: {list(row)[:20]}", expected=LEGAL_FILE, fix=fix)
    name = (name_of(row[col.ID]) or "").strip()
    if not name:
        expected = "the row's content id, or the data's own id"
        raise UserError("a label has no id", got=where, expected=expected, fix="write its id, or delete the label")
    verdict = TRUTH.get(str(row[CORRECT]).strip().lower())
    if verdict is None:
        what, fix = "label is not a boolean", "write it as one of these, or delete the label"
        raise UserError(what, got=f"{row[CORRECT]!r} ({where})", expected=LEGAL_TRUTH, fix=fix)
    if labels.setdefault(name, verdict) != verdict:
        raise UserError("an id is labelled both good and wrong", got=f"{name!r} ({where})", fix="keep only one of the two")
