"""Files behind data.path: here and in clouds, folders and links, and what is not there is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import DataConfig
from ual_ray.data.fingerprint import fingerprint
from ual_ray.data.peek import peek
from ual_ray.data.reading import Piece, find_pieces, read_piece
from ual_ray.errors import UserError

ROWS = [{"instruction": "Say hi.", "output": "Hi."}, {"instruction": "être 😀", "output": "\u2028"}]


def found(path: Path | str, **options: Any) -> list[Piece]:
    return find_pieces(DataConfig(path=str(path), **options))


def read(path: Path | str, **options: Any) -> list[Any]:
    return [row for piece in found(path, **options) for row in read_piece(piece)]


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_links_are_followed(tmp_path: Path) -> None:
    """The cache of the hub is made of links."""
    (tmp_path / "blob").write_bytes(as_jsonl(ROWS))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").symlink_to(tmp_path / "blob")
    assert read(tmp_path / "data") == ROWS


def test_an_address_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "my rows.jsonl").write_bytes(as_jsonl(ROWS))
    assert read((tmp_path / "my rows.jsonl").as_uri()) == ROWS
    assert read(tmp_path.as_uri() + "/") == ROWS


@pytest.mark.parametrize("name", ["no.jsonl", "no.txt", "deep/er/no", "no/such.json.gz"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)data\.path does not exist.*'demo'") as error:
        found(tmp_path / name)
    assert name in str(error.value)


def test_addresses_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)unsupported URI scheme.*nope://x.*s3://"):
        found("nope://x")
    with pytest.raises(UserError, match="does not exist"):
        found((tmp_path / "no").as_uri())
    with pytest.raises(UserError) as error:
        found("nope://me:secret@host/x")
    assert "secret" not in str(error.value).split("Unrecognized")[0]
    with pytest.raises(UserError, match="is empty"):
        found("")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UserError, match="folder without data files") as error:
        found(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_split_of_plain_files_is_refused(tmp_path: Path) -> None:
    """Reading everything instead would train on what was meant for the test."""
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(ROWS))
    for path in (tmp_path, tmp_path / "rows.jsonl"):
        with pytest.raises(UserError, match=r"data\.split is for hub names"):
            found(path, split="test")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("main/train/0.jsonl", "main/eval/0.jsonl"),
        ("gsm8k_train.jsonl", "gsm8k_test_1000.jsonl"),
        ("Training.jsonl", "dev.jsonl"),
    ],
)
def test_files_that_are_named_after_splits_are_not_read_as_one(train: str, test: str, tmp_path: Path) -> None:
    for name, row in zip((train, test), ROWS, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(as_jsonl([row]))
    with pytest.raises(UserError, match="files of several splits") as error:
        found(tmp_path)
    assert test in str(error.value) and "train or all" in str(error.value).replace("validation or ", "").replace("test or ", "")
    assert read(tmp_path, split="train") == ROWS[:1]
    assert read(tmp_path, split="validation" if test == "dev.jsonl" else "test") == ROWS[1:]
    assert len(read(tmp_path, split="all")) == 2
    with pytest.raises(UserError, match="no file of 'other'"):
        found(tmp_path, split="other")


@pytest.mark.parametrize(
    "name", ["trained_by_hand.jsonl", "contest.jsonl", "evals.jsonl", "a.jsonl", "train2.jsonl", "train-1.jsonl"]
)
def test_other_names_of_files_are_of_no_other_split(name: str, tmp_path: Path) -> None:
    for each in (name, "train.jsonl"):
        (tmp_path / each).write_bytes(as_jsonl(ROWS))
    assert len(read(tmp_path)) == 4


@pytest.mark.parametrize("path", ["demo", ".", "rows.jsonl", "rows.txt", "URI"])
def test_a_subset_of_what_is_no_hub_name_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "rows.txt"):
        (tmp_path / name).write_bytes(as_jsonl(ROWS))
    given = tmp_path.as_uri() if path == "URI" else path
    for function in (find_pieces, fingerprint):
        with pytest.raises(UserError, match=r"(?s)data\.subset is for hub names.*main, with data\.path=.*leave"):
            function(DataConfig(path=given, subset="main"))


@pytest.mark.parametrize(
    "name",
    [
        *("rows.jsonl.zst", "a.csv.bz2", "b.JSON.xz", "c.parquet.gz", "d.jsonl.1", "e.jsonl.gzip"),
        *("f.arrow", "g.feather", "h.xlsx", "i.jsonlines", "j.jl.gz", "k/l.ORC"),
    ],
)
def test_a_file_of_another_compression_is_not_left_out_of_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl([{"a": 1}]))
    (tmp_path / "README.md.zst").write_text("no data")
    assert len(found(tmp_path)) == 1
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=f"unsupported kind or compression among others\n.*{name}"):
        found(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("rows.csv", "instruction,output\né,b\n".encode("utf-16"), "save it in UTF-8"),
        ("rows.csv", "instruction,output\né,b\n".encode("cp1252"), "save it in UTF-8"),
        ("rows.jsonl.gz", b"{}", "of the kind that its name states"),
        ("rows.parquet", b"{}", "of the kind that its name states"),
        ("rows.json", b'[{"a": 1}', "complete"),
    ],
)
def test_what_is_to_be_done_about_a_file_that_cannot_be_read(name: str, content: bytes, fix: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert f"got: {tmp_path / name}: " in str(error.value) and fix in str(error.value)


@pytest.mark.parametrize("name", ["_delta_log/00000.json", ".hoodie/t.commit", "year=1/_temporary/0/part.jsonl"])
def test_a_folder_with_rows_that_were_deleted_or_not_committed_is_refused(name: str, tmp_path: Path) -> None:
    for other in ("rows.jsonl", "_SUCCESS", "._rows.jsonl.crc", ".hidden/rows.jsonl"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(as_jsonl([{"a": 1}]))
    assert len(found(tmp_path)) == 1
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(UserError, match=f"(?s)files are not all data.*{name}.*export the rows"):
        found(tmp_path)


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*.jsonl", "{a,b}.jsonl", "a.jsonl,b.jsonl", "[ab].jsonl"])
def test_a_pattern_is_told_to_be_none(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="(?s)does not exist.*patterns and lists are not read: give a folder"):
        found(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("name", ["a.jsonl", "b.csv", "c.parquet", "d.json"])
def test_a_pointer_in_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"instruction": "q", "output": "a"}\n' * 100)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 123\n")
    with pytest.raises(UserError, match=f"(?s)pointer of Git LFS.*{name}.*git lfs pull"):
        found(tmp_path)


def test_columns_in_the_names_of_folders_are_read(tmp_path: Path) -> None:
    for label, folder in (("0", "label=0/lang=de%20at"), ("1", "label=1/lang=__HIVE_DEFAULT_PARTITION__"), ("2", "plain")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "part.jsonl").write_text(json.dumps({"instruction": f"q{label}", "output": "a"}) + "\n")
    rows = read(tmp_path)
    assert [(row.get("label"), row.get("lang")) for row in rows] == [("0", "de at"), ("1", None), (None, None)]
    with pytest.raises(UserError, match="may not be for training: the column label is '0'"):
        peek(DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("key", ["_indices_data_files", "_indices_files"])
def test_a_selection_of_an_old_datasets_directory_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "d.arrow"}], key: [{"filename": "i.arrow"}]}))
    with pytest.raises(UserError, match=r"(?s)selection of its rows.*flatten_indices"):
        found(tmp_path)
