"""Identity, columns and files of the rows that cross a stage border."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray import columns as records
from ual_ray.columns import Message, digest
from ual_ray.parquet import content_digest, file_digest, read_table, rows_digest, write_rows

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int64())])


def sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def test_digest_is_sha256_of_compact_sorted_json() -> None:
    assert digest({"b": [1, 2], "a": "é"}) == sha('{"a":"é","b":[1,2]}'.encode())
    assert digest({"a": "é", "b": [1, 2]}) == digest({"b": [1, 2], "a": "é"})


def test_content_id_is_the_hash_of_roles_and_contents() -> None:
    messages = [Message(role="user", content="hi"), Message(role="assistant", content="yo")]
    assert col.content_id(messages) == sha(b'[["user","hi"],["assistant","yo"]]')


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
    assert col.content_id(messages) != col.content_id([Message(role=role, content=content) for role, content in other])


def test_a_measured_row_has_five_columns_per_estimator() -> None:
    assert col.measured_schema(["nll", "p_true"]).names == [
        *("id", "source", "split", "given_id", "messages"),
        *("uncertainty_nll", "raw_nll", "uncertainty_p_true", "raw_p_true", "retest_nll", "retest_p_true"),
        *("mass_nll", "mass_p_true", "finish_nll", "finish_p_true"),
        *("response_length", "truncated", "status", "error", "elicitor", "prompt_hash"),
        *("prompt_tokens", "generated_tokens", "calls", "replies"),
    ]


def test_a_scored_row_has_the_ensemble_and_the_uncertainty_too() -> None:
    scored, measured = col.scored_schema(["nll"]), col.measured_schema(["nll"])
    assert scored.names == [*measured.names[:-1], "uncertainty_ensemble", "uncertainty"], "all but the replies"
    assert all(scored.field(name).equals(measured.field(name)) for name in measured.names[:-1])


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
    for schema in (
        records.ROWS,
        records.TOKENS,
        records.RESULTS,
        records.VERDICTS,
        records.TOKEN_STATISTICS,
        col.scored_schema(["verbalized_error", "p_true", "nll"]),
    ):
        assert len(set(schema.names)) == len(schema.names)


# --- the digest of content -------------------------------------------------------------------------------------------

SCORES = pa.schema([("id", pa.string()), ("value", pa.float64()), ("note", pa.string())])
value = st.one_of(st.none(), st.floats(allow_nan=True), st.just(-0.0))
contents = st.dictionaries(
    st.text("0123456789abcdef", min_size=1, max_size=4), st.tuples(value, st.one_of(st.none(), st.text(max_size=5))), max_size=8
)


def in_files(folder: Path, rows: list[dict[str, Any]], per_file: int) -> Path:
    folder.mkdir()
    for number, start in enumerate(range(0, len(rows), per_file)):
        write_rows(rows[start : start + per_file], SCORES, folder / f"{number}.parquet")
    return folder


@pytest.mark.slow
@settings(max_examples=25)
@given(content=contents.filter(bool), order=st.randoms(use_true_random=False), per_file=st.integers(1, 4))
def test_the_digest_does_not_see_files_and_order(
    content: dict[str, Any], order: Any, per_file: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("digest")
    rows = [{"id": name, "value": number, "note": note} for name, (number, note) in content.items()]
    whole = content_digest(in_files(folder / "one", rows, 100), SCORES.names)
    order.shuffle(rows)
    assert content_digest(in_files(folder / "many", rows, per_file), SCORES.names) == whole
    write_rows(rows, SCORES.with_metadata({"made": "elsewhere"}), folder / "file.parquet")
    assert content_digest(folder / "file.parquet", SCORES.names) == whole


@pytest.mark.parametrize(
    "other",
    [
        [("a", 0.1, "x"), ("b", None, "y")],
        [("a", 0.2, "x"), ("b", 0.0, "y")],
        [("a", 0.1, "x"), ("b", float("nan"), "y")],
        [("a", 0.1, None), ("b", 0.0, "y")],
        [("a", 0.1, "x"), ("c", 0.0, "y")],
        [("a", 0.1, "x")],
        [("a", 0.1, "xy"), ("b", 0.0, "")],
    ],
)
def test_the_digest_sees_every_value(other: list[tuple[Any, ...]], tmp_path: Path) -> None:
    for name, rows in {"one": [("a", 0.1, "x"), ("b", 0.0, "y")], "other": other}.items():
        in_files(tmp_path / name, [dict(zip(SCORES.names, row, strict=True)) for row in rows], 100)
    assert content_digest(tmp_path / "one", SCORES.names) != content_digest(tmp_path / "other", SCORES.names)


def test_the_digest_sees_the_named_columns_alone(tmp_path: Path) -> None:
    for name, note in {"one": "x", "other": "y"}.items():
        in_files(tmp_path / name, [{"id": "a", "value": 1.0, "note": note}], 1)
    digests = [
        [content_digest(tmp_path / name, columns) for name in ("one", "other")] for columns in (["id", "value"], ["note"])
    ]
    assert digests[0][0] == digests[0][1]
    assert digests[1][0] != digests[1][1]
    # As the rows of a user's own file, which may lack a column.
    assert content_digest(tmp_path / "one", ["id", "value", "alpha"]) == digests[0][0]
    assert content_digest(tmp_path / "one", ["value", "id"]) != digests[0][0]


def test_the_digest_of_rows_covers_messages_that_their_ids_do_not(tmp_path: Path) -> None:
    """A table of somebody's own numbers, or of this package in which somebody corrected a text, must not count as known."""
    chats = [
        [
            {"role": "user", "content": question, "extra": None},
            {"role": "assistant", "content": "Blue.", "extra": '{"weight":0}'},
        ]
        for question in ("Why?", "Which?", "When?")
    ]
    own = [{col.ID: col.content_id(chat), col.MESSAGES: chat} for chat in chats]  # type: ignore[arg-type]
    numbered = [row | {col.ID: f"{number}"} for number, row in enumerate(own)]
    other = [*chats[:2], [{"role": "user", "content": "How?", "extra": None}, chats[2][1]]]
    changed = [[row | {col.MESSAGES: chat} for row, chat in zip(rows, other, strict=True)] for rows in (own, numbered)]
    schema, digests = pa.schema([(col.ID, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE)]), []
    for number, rows in enumerate((own, numbered, *changed)):
        file = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema), file)
        digests.append(rows_digest(file, [col.ID]))
        assert rows_digest(file, [col.ID]) == digests[-1]
    assert len(set(digests)) == 4
    assert digests[0] == content_digest(tmp_path / "0.parquet", [col.ID]), "that of rows with hashes for ids stays"
    write_rows(numbered, schema, tmp_path / "copied.parquet")
    assert rows_digest(tmp_path / "copied.parquet", [col.ID]) == digests[1]
    write_rows(own, schema, tmp_path / "written.parquet")
    assert rows_digest(tmp_path / "written.parquet", [col.ID]) == digests[0]
    pyarrow.parquet.write_table(pa.table({col.ID: ["a"], col.MESSAGES: ["Why?"]}), tmp_path / "texts.parquet")
    assert rows_digest(tmp_path / "texts.parquet", [col.ID]) == content_digest(tmp_path / "texts.parquet", [col.ID])
