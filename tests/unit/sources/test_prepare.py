"""Canonical rows: identity, splits, quarantine, and when to stop."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import DataConfig
from ual_ray.errors import UserError
from ual_ray.records import ROWS, content_id, digest, read_table
from ual_ray.sources.prepare import QUARANTINE_FILE, ROWS_FILE, check, prepare, split_of, write

Rows = list[dict[str, Any]]


def alpaca(count: int, **columns: Any) -> Rows:
    return [{"instruction": f"Question {index}?", "output": f"Answer {index}.", **columns} for index in range(count)]


def config_for(rows: Rows, folder: Path, **options: Any) -> DataConfig:
    path = folder / "my_rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataConfig(path=str(path), **options)


def test_rows_carry_id_source_split_and_messages(tmp_path: Path) -> None:
    prepared = prepare(config_for(alpaca(1), tmp_path))
    messages = [{"role": "user", "content": "Question 0?"}, {"role": "assistant", "content": "Answer 0."}]
    (row,) = prepared.rows
    assert prepared.format_name == "alpaca"
    assert {key: row[key] for key in ("id", "source", "messages")} == {
        "id": digest([["user", "Question 0?"], ["assistant", "Answer 0."]]),
        "source": "my_rows",
        "messages": messages,
    }
    assert row["split"] == split_of(row["id"], DataConfig())


@pytest.mark.parametrize(
    ("source", "expected"),
    [("maths", "maths"), ("", "my_rows"), (None, "my_rows"), (3, "my_rows")],
)
def test_a_source_column_beats_the_name_of_the_file(source: object, expected: str, tmp_path: Path) -> None:
    prepared = prepare(config_for(alpaca(1, source=source), tmp_path))
    assert [row["source"] for row in prepared.rows] == [expected]


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    rows = [*alpaca(2), {"instruction": " Question 0? ", "input": "", "output": "Answer 0."}]
    prepared = prepare(config_for(rows, tmp_path))
    assert len(prepared.rows) == len({row["id"] for row in prepared.rows}) == 2
    assert [row["reason"].split(":")[0] for row in prepared.quarantined] == ["duplicate row"]
    assert prepared.quarantined[0]["row"] == rows[2]


def test_the_same_own_id_is_kept_once(tmp_path: Path) -> None:
    rows = alpaca(4)
    for row, own_id in zip(rows, ["a", "b", "a", 7], strict=True):
        row["id"] = own_id
    prepared = prepare(config_for(rows, tmp_path))
    assert [row["messages"][0]["content"] for row in prepared.rows] == ["Question 0?", "Question 1?", "Question 3?"]
    assert [row["reason"] for row in prepared.quarantined] == ["duplicate id: a"]


def test_the_reasons_of_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = [
        *alpaca(3),
        {"instruction": "q", "output": ""},
        {"instruction": "r", "output": ""},
        {"output": "a"},
        *alpaca(1),
    ]
    prepared = prepare(config_for(rows, tmp_path))
    described = prepared.describe()
    assert described["rows"] == sum(described["splits"].values()) == described["sources"]["my_rows"] == 3
    assert described["quarantined"] == 4
    assert described["reasons"] == {"no response": 2, "no instruction": 1, "duplicate row": 1}
    assert prepared.bad_share == pytest.approx(4 / 7)


def test_broken_lines_are_one_reason_however_many(tmp_path: Path) -> None:
    config = config_for(alpaca(2), tmp_path)
    with Path(config.path).open("a") as file:
        file.write("{broken\nalso broken}\n")
    assert [*prepare(config).describe()["reasons"].values()] == [2]


def test_half_a_surrogate_pair_costs_one_row_and_not_the_job(tmp_path: Path) -> None:
    """A truncated emoji is legal JSON but not text: it can neither be hashed nor written as UTF-8."""
    config = config_for([*alpaca(2), {"instruction": "Cut \ud83d", "output": "off"}], tmp_path)
    prepared = prepare(config)
    write(prepared, tmp_path / "out")
    assert (len(prepared.rows), len(prepared.quarantined)) == (2, 1)


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    bad = {"instruction": "être", "output": "", "note": "kept"}
    prepared = prepare(config_for([*alpaca(3), bad], tmp_path))
    write(prepared, tmp_path / "deep" / "out")
    table = read_table(tmp_path / "deep" / "out" / ROWS_FILE)
    assert table.schema.equals(ROWS)
    assert sorted(table.to_pylist(), key=lambda row: row["id"]) == sorted(prepared.rows, key=lambda row: row["id"])
    (line,) = (tmp_path / "deep" / "out" / QUARANTINE_FILE).read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"reason": "no response: output is empty", "row": bad}
    assert "être" in line


def test_a_second_write_replaces_the_first(tmp_path: Path) -> None:
    write(prepare(config_for([*alpaca(3), {"output": "a"}], tmp_path)), tmp_path / "out")
    write(prepare(config_for(alpaca(2), tmp_path)), tmp_path / "out")
    assert len(read_table(tmp_path / "out" / ROWS_FILE)) == 2
    assert (tmp_path / "out" / QUARANTINE_FILE).read_text() == ""


# --- when to stop ----------------------------------------------------------------------------------------------------


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    config = config_for([*alpaca(18), {"output": "a"}, {"output": "b"}], tmp_path, max_bad_share=0.09)
    with pytest.raises(UserError) as error:
        check(prepare(config), config, tmp_path / "out" / QUARANTINE_FILE)
    message = str(error.value)
    assert f"2 of 20 rows of {config.path} are bad" in message
    assert "{'no instruction': 2}" in message
    assert str(tmp_path / "out" / QUARANTINE_FILE) in message
    assert "data.max_bad_share = 0.09" in message


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_as_many_bad_rows_as_allowed_do_not_stop_it(share: float, tmp_path: Path) -> None:
    rows = [*alpaca(18), {"output": "a"}, {"output": "b"}]
    config = config_for(rows, tmp_path, max_bad_share=share, validation_share=0, test_share=0)
    check(prepare(config), config, tmp_path)


@pytest.mark.parametrize(
    ("shares", "empty"),
    [((0.0, 0.0), None), ((0.98, 0.0), "train"), ((0.0, 0.01), "test"), ((0.01, 0.0), "validation")],
)
def test_a_split_that_is_needed_must_have_rows(shares: tuple[float, float], empty: str | None, tmp_path: Path) -> None:
    config = config_for(alpaca(3), tmp_path, validation_share=shares[0], test_share=shares[1])
    if empty is None:
        check(prepare(config), config, tmp_path)
        return
    with pytest.raises(UserError, match=rf"(?s)the {empty} split is empty.*3 rows in all"):
        check(prepare(config), config, tmp_path)


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "split"),
    [
        ("0000000000000000", "test"),
        ("3ffffffffff00000", "test"),
        ("4000000000000000", "validation"),
        ("7ffffffffff00000", "validation"),
        ("8000000000000000", "train"),
        ("ffffffffffffffff", "train"),
    ],
)
def test_the_split_is_the_place_of_the_hash(identity: str, split: str) -> None:
    assert split_of(identity, DataConfig(test_share=0.25, validation_share=0.25)) == split


def test_shares_are_near_the_configured_ones() -> None:
    config = DataConfig(validation_share=0.1, test_share=0.2)
    counts = Counter(split_of(digest(number), config) for number in range(20_000))
    for split, share in {"test": 0.2, "validation": 0.1, "train": 0.7}.items():
        assert counts[split] / 20_000 == pytest.approx(share, abs=0.015)  # more than four standard errors


def test_the_split_does_not_depend_on_order_or_company(tmp_path: Path) -> None:
    rows = alpaca(60)
    everything = {row["id"]: row["split"] for row in prepare(config_for(rows, tmp_path)).rows}
    rows = rows[1::2] + rows[::2]
    assert {row["id"]: row["split"] for row in prepare(config_for(rows, tmp_path)).rows} == everything
    fewer = {row["id"]: row["split"] for row in prepare(config_for(rows[20:40], tmp_path)).rows}
    assert len(fewer) == 20
    assert fewer.items() <= everything.items()


def test_max_rows_takes_the_first(tmp_path: Path) -> None:
    prepared = prepare(config_for(alpaca(30), tmp_path, max_rows=7))
    assert [row["messages"][0]["content"] for row in prepared.rows] == [f"Question {index}?" for index in range(7)]


# --- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_is_the_embedded_sample() -> None:
    prepared = prepare(DataConfig())
    check(prepared, DataConfig(), Path(QUARANTINE_FILE))
    described = prepared.describe()
    assert (described["format"], described["rows"], described["quarantined"]) == ("demo", 200, 0)
    assert described["sources"] == {"open_ended": 100, "deterministic": 100}
    assert set(described["splits"]) == {"train", "validation", "test"}
    assert all(row["id"] == content_id(row["messages"]) for row in prepared.rows)


def test_a_short_demo_keeps_both_sources() -> None:
    """The mixed scenario is the point of the sample: `data.max_rows=20` must not leave the deterministic half out."""
    assert set(prepare(DataConfig(max_rows=20)).describe()["sources"]) == {"open_ended", "deterministic"}
