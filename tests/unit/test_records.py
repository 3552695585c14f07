"""Identity, columns and files of the rows that cross a stage border."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray import records
from ual_ray.records import (
    Message,
    content_id,
    digest,
    file_digest,
    read_table,
    rows_digest,
    scored_schema,
    write_rows,
)

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int64())])


def sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def test_digest_is_sha256_of_compact_sorted_json() -> None:
    assert digest({"b": [1, 2], "a": "é"}) == sha('{"a":"é","b":[1,2]}'.encode())
    assert digest({"a": "é", "b": [1, 2]}) == digest({"b": [1, 2], "a": "é"})


def test_content_id_is_the_hash_of_roles_and_contents() -> None:
    messages = [Message(role="user", content="hi"), Message(role="assistant", content="yo")]
    assert content_id(messages) == sha(b'[["user","hi"],["assistant","yo"]]')


@pytest.mark.parametrize(
    "other",
    [
        [("user", "hi"), ("assistant", "yo!")],
        [("assistant", "hi"), ("user", "yo")],
        [("assistant", "yo"), ("user", "hi")],
        [("user", "hiassistant"), ("", "yo")],
        [("user", "hi")],
    ],
)
def test_content_id_tells_conversations_apart(other: list[tuple[str, str]]) -> None:
    messages = [Message(role="user", content="hi"), Message(role="assistant", content="yo")]
    assert content_id(messages) != content_id([Message(role=role, content=content) for role, content in other])


def test_scored_schema_holds_two_columns_per_estimator() -> None:
    assert scored_schema(["nll", "p_true"]).names == [
        *("id", "source", "split", "messages", "uncertainty"),
        *("uncertainty_nll", "raw_nll", "uncertainty_p_true", "raw_p_true"),
        *("status", "error", "elicitor", "prompt_hash", "prompt_tokens", "generated_tokens"),
    ]


def test_file_digest_follows_the_content(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("same")
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b")
    (tmp_path / "b").write_text("other")
    assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")


def test_file_digest_of_a_folder_sees_every_file_below_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = file_digest(tmp_path)
    (tmp_path / "deep" / "a").write_text("3")
    assert file_digest(tmp_path) != before
    (tmp_path / "deep" / "a").write_text("1")
    assert file_digest(tmp_path) == before


def test_file_digest_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        file_digest(tmp_path / "missing")


def test_rows_come_back_in_order_of_id(tmp_path: Path) -> None:
    write_rows([{"id": "b", "value": 2}, {"id": "a", "value": 1}], SCHEMA, tmp_path / "1.parquet")
    write_rows([{"id": "aa", "value": 3}], SCHEMA, tmp_path / "2.parquet")
    assert read_table(tmp_path).to_pylist() == [
        {"id": "a", "value": 1},
        {"id": "aa", "value": 3},
        {"id": "b", "value": 2},
    ]
    assert read_table(tmp_path / "1.parquet", ["value"]).column_names == ["value"]


@pytest.mark.parametrize("rows", [[{"id": "a", "value": "not a number"}], []])
def test_a_failed_write_leaves_the_old_file(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows([{"id": "old", "value": 0}], SCHEMA, path)
    if rows:
        with pytest.raises(pa.ArrowInvalid):
            write_rows(rows, SCHEMA, path)
        assert read_table(path)["id"].to_pylist() == ["old"]
    else:
        write_rows(rows, SCHEMA, path)
        assert read_table(path).schema.equals(SCHEMA)
        assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]


def test_columns_have_different_names() -> None:
    for schema in (records.ROWS, records.TOKENS, records.EVALUATED, scored_schema(["verbalized", "p_true", "nll"])):
        assert len(set(schema.names)) == len(schema.names)


def test_rows_have_a_digest_of_their_own_however_they_are_cut_into_files(tmp_path: Path) -> None:
    rows = [{"id": str(number), "value": number / 7} for number in range(10)]
    schema = pa.schema([("id", pa.string()), ("value", pa.float64())])
    (tmp_path / "many").mkdir()
    for number, row in enumerate(reversed(rows)):
        write_rows([row], schema, tmp_path / "many" / f"{number}.parquet")
    write_rows(rows, schema, tmp_path / "one.parquet")
    write_rows([*rows[:9], {"id": "9", "value": 1.0}], schema, tmp_path / "other.parquet")
    assert rows_digest(tmp_path / "many") == rows_digest(tmp_path / "one.parquet")
    assert rows_digest(tmp_path / "other.parquet") != rows_digest(tmp_path / "one.parquet")
