"""Tables that other programs wrote, in single stages: what cannot be read of them is named before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray import columns as col

CHAT = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "One."}]
ROW = {"id": "a", "source": "s", "split": "train", "messages": CHAT, "uncertainty": 0.5, "alpha": 0.1}
WRONG: list[tuple[str, Any, str]] = [
    ("uncertainty", "high", "the column uncertainty does not hold numbers"),
    ("uncertainty", [0.1, 0.2], "the column uncertainty does not hold numbers"),
    ("messages", '[{"role": "user"}]', "the column messages does not hold lists of {role, content}"),
    ("messages", [{"from": "human", "value": "A?"}], "the column messages does not hold lists of {role, content}"),
    ("source", {"name": "s"}, "the column source does not hold texts"),
]
ID = ("id", 7, "the column id does not hold texts")


def table(folder: Path, **changed: Any) -> Path:
    rows = [ROW | {"id": f"r{number}"} | changed for number in range(3)]
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    pyarrow.parquet.write_table(pa.Table.from_pylist(kept), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name", "value", "said"),
    [
        (command, *wrong)
        for command in ("smooth", "train", "inspect")
        for wrong in (*WRONG, *([ID] if command != "inspect" else []))
    ],
)
def test_a_column_of_another_kind_is_named(
    command: str, name: str, value: Any, said: str, ual_without_ray: Callable[..., Any], tmp_path: Path
) -> None:
    path = table(tmp_path, **{name: value, **({"alpha": None} if command == "smooth" else {})})
    more = {"smooth": ["--out", tmp_path / "out"], "train": ["--dry-run"], "inspect": ["--html", tmp_path / "i.html"]}[command]
    done = ual_without_ray(command, path, *more, cwd=tmp_path)
    assert done.code == 2 and said in done.output and "fix:" in done.output


def test_texts_that_smoothing_counts_are_asked_for(ual_without_ray: Callable[..., Any], tmp_path: Path) -> None:
    done = ual_without_ray("smooth", table(tmp_path, messages=None, alpha=None), "--out", tmp_path / "out", cwd=tmp_path)
    assert done.code == 2 and "has no column 'messages'" in done.output


@pytest.mark.parametrize("name", ["split", "messages"])
def test_validation_rows_without_a_column_are_refused(name: str, ual_without_ray: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    arguments = [table(tmp_path), "--validation", table(tmp_path / "v", **{name: None}), "--dry-run"]
    done = ual_without_ray("train", *arguments, cwd=tmp_path)
    assert done.code == 2 and "lacks columns that training needs" in done.output and name in done.output


def test_a_column_that_comes_twice_is_refused(ual_without_ray: Callable[..., Any], tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([ROW])
    pyarrow.parquet.write_table(rows.append_column(col.ALPHA, rows[col.ALPHA]), tmp_path / "rows.parquet")
    done = ual_without_ray("train", tmp_path / "rows.parquet", "--dry-run", cwd=tmp_path)
    assert done.code == 2 and "cannot be read" in done.output


@pytest.mark.parametrize("second", ["r0", None])
@pytest.mark.parametrize(
    ("command", "named"), [("train", "training rows"), ("validation", "validation rows"), ("inspect", "rows")]
)
def test_rows_that_are_not_told_apart_are_refused(
    command: str, named: str, second: str | None, ual_without_ray: Callable[..., Any], tmp_path: Path
) -> None:
    """As of a folder with the alphas of two arms: every row would be trained twice, with either, and measured twice."""
    split = {"split": "validation"} if command == "validation" else {}
    rows = [ROW | split | {"id": "r0"}, ROW | split | {"id": second, "alpha": 0.3}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "twice.parquet")
    arguments = {
        "train": ["train", tmp_path / "twice.parquet", "--dry-run"],
        "validation": ["train", table(tmp_path), "--validation", tmp_path / "twice.parquet", "--dry-run"],
        "inspect": ["inspect", tmp_path / "twice.parquet", "--html", tmp_path / "i.html"],
    }[command]
    done = ual_without_ray(*arguments, cwd=tmp_path)
    assert done.code == 2 and "twice.parquet: the column id repeats or has no value" in done.output
    assert f"1 different ids in 2 {named}" in done.output and "fix: give every row an id of its own" in done.output


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("command", ["smooth", "train", "validation", "inspect"])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("id", 7, "numbers"),
        ("uncertainty", "0.5", "texts"),
        ("source", 7, "numbers"),
        ("split", 7, "numbers"),
        ("messages", "A?", "texts"),
        ("split", None, "no such column"),
        ("source", None, "no such column"),
    ],
)
def test_files_of_a_folder_that_differ_in_a_column_are_refused(
    name: str, value: Any, told: str, command: str, first: bool, ual_without_ray: Callable[..., Any], tmp_path: Path
) -> None:
    """pyarrow reads them by the columns of the first: others are converted, made null, or left out."""
    folder = tmp_path / "rows"
    folder.mkdir()
    own = {"alpha": None} if command == "smooth" else {}
    table(tmp_path, **own).rename(folder / "b.parquet")
    table(tmp_path, **own, **{name: value}).rename(folder / ("a.parquet" if first else "c.parquet"))
    arguments: dict[str, list[Any]] = {
        "smooth": ["smooth", folder, "--out", tmp_path / "out"],
        "train": ["train", folder, "--dry-run"],
        "validation": ["train", table(tmp_path), "--validation", folder, "--dry-run"],
        "inspect": ["inspect", folder, "--html", tmp_path / "i.html"],
    }
    done = ual_without_ray(*arguments[command], cwd=tmp_path)
    assert done.code == 2 and f"files of one folder differ in the column {name}" in done.output
    assert f"{told} in {folder / ('a.parquet' if first else 'c.parquet')}" in "".join(done.output.split("\n"))
    assert "fix: write them alike" in done.output


@pytest.mark.slow
def test_the_splits_that_are_there_are_named(ual_without_ray: Callable[..., Any], tmp_path: Path) -> None:
    done = ual_without_ray("smooth", table(tmp_path, split="Train", alpha=None), "--out", tmp_path / "out", cwd=tmp_path)
    assert done.code == 2 and "Train" in done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "first", "refused"), [("smooth", True, True), ("smooth", False, False), ("inspect", True, False)]
)
def test_files_without_a_value_in_a_column_are_read_by_those_that_have_some(
    command: str, first: bool, refused: bool, ual_without_ray: Callable[..., Any], tmp_path: Path
) -> None:
    """A first file without any ended in a traceback, as the others were converted to nulls."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, start, source in (("b", 3, "s"), ("a" if first else "c", 0, None)):
        rows = [ROW | {"id": f"r{start + number}", "source": source} for number in range(3)]
        table = pa.Table.from_pylist([{key: value for key, value in row.items() if key != "alpha"} for row in rows])
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    more = ["--out", tmp_path / "out"] if command == "smooth" else ["--html", tmp_path / "i.html"]
    done = ual_without_ray(command, folder, *more, cwd=tmp_path)
    assert (done.code == 2 and "differ in the column source" in done.output and "null in" in done.output) == refused
    assert (done.code == 0) == (not refused), done.output
