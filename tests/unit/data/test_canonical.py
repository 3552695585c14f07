"""Canonical rows: identity, splits, duplicates, quarantine, and files that a second reading writes again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import DataConfig
from ual_ray.data import canonical as prepare
from ual_ray.data.canonical import QUARANTINE_FOLDER, Block, ReadOptions, blocks_of, grouped, split_of
from ual_ray.data.dedup import Deduplicator
from ual_ray.data.formats import BadRow
from ual_ray.data.reading import find_pieces
from ual_ray.data.shard import Piece
from ual_ray.parquet import read_table

Rows = list[dict[str, Any]]
QUESTION_1 = digest([["user", "Question 1?"], ["assistant", "Answer 1."]])


def alpaca(count: int, start: int = 0, **columns: Any) -> Rows:
    numbers = range(start, start + count)
    return [{"instruction": f"Question {number}?", "output": f"Answer {number}.", **columns} for number in numbers]


def pieces_of(folder: Path, *files: Rows, names: Sequence[str] = ("my_rows", "second", "third"), **options: Any) -> list[Piece]:
    """Write JSONL files and list their pieces; small files are one piece each."""
    (folder / "data").mkdir(exist_ok=True)
    for name, rows in zip(names, files, strict=False):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return find_pieces(DataConfig(path=str(folder / "data"), **options))


def read(
    pieces: Sequence[Piece], folder: Path, claims: Deduplicator | None = None, format_name: str = "alpaca", **options: Any
) -> tuple[Rows, Rows]:
    """Read pieces as workers do: the good rows and the quarantined ones, in order."""
    claims = claims or Deduplicator()
    plan = ReadOptions(DataConfig(**options), format_name, folder / "out")
    blocks = [block for number, piece in enumerate(pieces) for block in blocks_of(piece, number, plan, claims.claim)]
    assert all(block.rows.schema.equals(col.ROWS) for block in blocks)
    return [row for block in blocks for row in block.rows.to_pylist()], [row for block in blocks for row in block.quarantined]


def reasons_of(quarantined: Rows) -> list[str]:
    return [row["reason"] for row in quarantined]


def questions(rows: Rows) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def written(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_carry_id_source_split_and_messages(tmp_path: Path) -> None:
    ((row,), quarantined) = read(pieces_of(tmp_path, alpaca(1)), tmp_path)
    identity = digest([["user", "Question 0?"], ["assistant", "Answer 0."]])
    assert row == {
        "id": identity,
        "source": "my_rows",
        "split": split_of(identity, DataConfig()),
        "given_id": None,
        "messages": [
            {"role": "user", "content": "Question 0?", "extra": None},
            {"role": "assistant", "content": "Answer 0.", "extra": None},
        ],
    }
    assert quarantined == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [("maths", "maths"), ("", "my_rows"), (None, "my_rows"), (3, "3"), (3.0, "3"), (math.nan, "my_rows"), ("être", "être")],
)
def test_a_source_column_beats_the_name_of_the_file(source: object, expected: str, tmp_path: Path) -> None:
    rows, _ = read(pieces_of(tmp_path, alpaca(1, source=source)), tmp_path)
    assert [row["source"] for row in rows] == [expected]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a-7", "a-7"),
        (7, "7"),
        (0, "0"),
        (None, None),
        ("", None),
        (1.5, "1.5"),
        (3.0, "3"),
        (float("nan"), None),
        ("être", "être"),
    ],
)
def test_the_datas_own_id_is_kept_as_text(given: object, expected: str | None, tmp_path: Path) -> None:
    rows, _ = read(pieces_of(tmp_path, alpaca(1, id=given)), tmp_path)
    assert [row["given_id"] for row in rows] == [expected]


def test_columns_of_other_names(tmp_path: Path) -> None:
    pieces = pieces_of(tmp_path, [{"q": "Why?", "a": "So.", "key": "k1", "origin": "web"}])
    columns = {"instruction": "q", "output": "a", "id": "key", "source": "origin"}
    ((row,), _) = read(pieces, tmp_path, columns=columns)
    assert (row["given_id"], row["source"], questions([row])) == ("k1", "web", ["Why?"])


# --- duplicates ------------------------------------------------------------------------------------------------------


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    rows = [*alpaca(2), {"instruction": "Question 0?", "input": "", "output": "Answer 0."}]
    good, quarantined = read(pieces_of(tmp_path, rows), tmp_path)
    assert len(good) == len({row["id"] for row in good}) == 2
    assert quarantined == []


@pytest.mark.parametrize("ids", [["", "", ""], [None, None, None], ["a", "b", "a"], ["7", 7, "7"], [QUESTION_1, "", ""]])
def test_rows_of_different_content_are_kept_whatever_their_own_ids(ids: list[Any], tmp_path: Path) -> None:
    rows = [row | {"id": own} for row, own in zip(alpaca(3), ids, strict=True)]
    good, quarantined = read(pieces_of(tmp_path, rows), tmp_path)
    assert [row["given_id"] for row in good] == [str(own) if own else None for own in ids]
    assert len({row["id"] for row in good}) == 3 and quarantined == []


def test_duplicates_are_found_in_other_pieces(tmp_path: Path) -> None:
    pieces = pieces_of(tmp_path, alpaca(3), [*alpaca(2, start=2), *alpaca(1, start=9, id="x")], alpaca(1, start=10, id="x"))
    good, quarantined = read(pieces, tmp_path)
    assert len(pieces) == 3
    assert questions(good) == [f"Question {number}?" for number in (0, 1, 2, 3, 9, 10)]
    assert quarantined == []


def test_a_row_that_cannot_be_used_claims_nothing(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "", "id": "a"}, *alpaca(1, id="a")]
    good, quarantined = read(pieces_of(tmp_path, rows), tmp_path)
    assert [row["given_id"] for row in good] == ["a"]
    assert reasons_of(quarantined) == ["no response: output is empty"]


def test_a_piece_that_is_read_again_wins_its_own_rows_and_writes_the_same_files(tmp_path: Path) -> None:
    first, second = pieces_of(
        tmp_path, [*alpaca(3), *alpaca(1), {"output": "a"}], [*alpaca(2, start=2), *alpaca(1, start=5, id="x")]
    )
    claims = Deduplicator()
    plan = ReadOptions(DataConfig(), "alpaca", tmp_path / "out")

    def blocks(piece: Piece, number: int) -> list[Block]:
        return list(blocks_of(piece, number, plan, claims.claim))

    began = next(blocks_of(first, 0, plan, claims.claim))  # its worker died, behind what it wrote
    assert len(read_table(tmp_path / "out" / col.ROWS_FOLDER)) == len(began.rows) == 3
    other = blocks(second, 1)
    again = blocks(first, 0)
    assert again[0].rows.equals(began.rows) and again[0].quarantined == began.quarantined
    files = written(tmp_path / "out")
    assert [block.rows for block in blocks(second, 1)] == [block.rows for block in other]
    assert written(tmp_path / "out") == files


# --- bad rows --------------------------------------------------------------------------------------------------------


def test_every_bad_row_has_a_reason_and_is_kept_as_it_was(tmp_path: Path) -> None:
    bad: Rows = [
        {"instruction": "q", "output": ""},
        {"instruction": "q", "output": 7},
        {"output": "a"},
        {"instruction": "Cut \ud83d", "output": "off"},
    ]
    good, quarantined = read(pieces_of(tmp_path, [*alpaca(1), *bad, *alpaca(1)]), tmp_path)
    assert len(good) == 1
    assert [reason.split(":")[0] for reason in reasons_of(quarantined)] == [
        "no response",
        "output is not text",
        "no instruction",
        "instruction is not Unicode",
    ]
    assert [row["row"] for row in quarantined[:4]] == bad


def test_lines_that_are_no_json_are_bad_rows(tmp_path: Path) -> None:
    (piece,) = pieces_of(tmp_path, alpaca(2))
    with Path(piece.path).open("a") as file:
        file.write("{broken\nalso broken}\n")
    (piece,) = find_pieces(DataConfig(path=str(tmp_path / "data")))
    good, quarantined = read([piece], tmp_path)
    assert len(good) == 2
    assert len({reason.split(":")[0] for reason in reasons_of(quarantined)}) == 1
    assert [row["row"]["raw"] for row in quarantined] == ["{broken", "also broken}"]


HALF = "half \ud83d"


@pytest.mark.parametrize(
    "bad",
    [
        {"instruction": HALF, "output": "a"},
        {"instruction": "q", "output": HALF},
        {"instruction": "q", "output": "a", "id": HALF},
        {"instruction": "q", "output": "a", "source": HALF},
        {"instruction": "q", "output": "", "note": HALF},
        {"instruction": "q", "output": "", HALF: "note"},
    ],
)
def test_half_a_surrogate_pair_costs_one_row_and_not_the_job(bad: dict[str, Any], tmp_path: Path) -> None:
    """A truncated emoji is legal JSON but not text: it can neither be hashed nor written as UTF-8."""
    good, quarantined = read(pieces_of(tmp_path, [*alpaca(2), bad]), tmp_path)
    assert (len(good), len(quarantined)) == (2, 1)
    (file,) = (tmp_path / "out" / QUARANTINE_FOLDER).iterdir()
    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"reason": quarantined[0]["reason"], "row": bad}


def test_half_a_surrogate_pair_beside_the_point_costs_nothing(tmp_path: Path) -> None:
    good, quarantined = read(pieces_of(tmp_path, alpaca(1, note=HALF)), tmp_path)
    assert (len(good), quarantined) == (1, [])


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    bad = {"instruction": "être", "output": "", "note": "kept"}
    (piece,) = pieces_of(tmp_path, [*alpaca(3), bad])
    good, _ = read([piece], tmp_path)
    table = read_table(tmp_path / "out" / col.ROWS_FOLDER)
    assert table.schema.equals(col.ROWS)
    assert table.to_pylist() == sorted(good, key=lambda row: row["id"])
    assert {*written(tmp_path / "out")} == {
        f"{col.ROWS_FOLDER}/{piece.name}-00000.parquet",
        f"{QUARANTINE_FOLDER}/{piece.name}-00000.jsonl",
    }
    text = (tmp_path / "out" / QUARANTINE_FOLDER / f"{piece.name}-00000.jsonl").read_text(encoding="utf-8")
    assert json.loads(text) == {"reason": "no response: output is empty", "row": bad}
    assert "être" in text


def test_rows_come_in_blocks_and_every_block_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "ROWS_PER_BLOCK", 4)
    first, second = pieces_of(tmp_path, [*alpaca(9), {"output": "a"}], alpaca(2, start=20))
    good, _ = read([first, second], tmp_path)
    assert [row["messages"][0]["content"] for row in good[:9]] == [f"Question {number}?" for number in range(9)]
    files = sorted((tmp_path / "out" / col.ROWS_FOLDER).iterdir())
    names = [f"{first.name}-{count:05d}.parquet" for count in range(3)] + [f"{second.name}-00000.parquet"]
    assert [file.name for file in files] == sorted(names)
    assert [len(read_table(tmp_path / "out" / col.ROWS_FOLDER / name)) for name in names] == [4, 4, 1, 2]
    assert [file.name for file in (tmp_path / "out" / QUARANTINE_FOLDER).iterdir()] == [f"{first.name}-00002.jsonl"]


def test_positions_of_pieces_never_meet(tmp_path: Path) -> None:
    pieces = pieces_of(tmp_path, alpaca(3), alpaca(3, start=5))
    seen: list[int] = []

    def claim(ids: Sequence[str], positions: Sequence[int]) -> list[bool]:
        seen.extend(positions)
        return [True] * len(ids)

    for number, piece in enumerate(pieces):
        list(blocks_of(piece, number, ReadOptions(DataConfig(), "alpaca", tmp_path / "out"), claim))
    assert len(seen) == len(set(seen)) == 6
    assert max(seen[:3]) < min(seen[3:])
    assert max(seen) < 2**63


def test_max_rows_takes_the_first(tmp_path: Path) -> None:
    good, _ = read(pieces_of(tmp_path, alpaca(30), max_rows=7), tmp_path)
    assert questions(good) == [f"Question {number}?" for number in range(7)]


def test_an_empty_piece_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "read_piece", lambda piece: iter(()))
    assert read([Piece("p", "p.jsonl", "jsonl")], tmp_path) == ([], [])
    assert not (tmp_path / "out").exists()


def test_nothing_but_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "read_piece", lambda piece: iter([BadRow("not JSON: x", "raw text")]))
    good, quarantined = read([Piece("p", "p.jsonl", "jsonl")], tmp_path)
    assert (good, quarantined) == ([], [{"reason": "not JSON: x", "row": {"raw": "raw text"}}])
    assert read_table(tmp_path / "out" / col.ROWS_FOLDER).schema.equals(col.ROWS)


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
    for split, share in config.split_shares().items():
        assert counts[split] / 20_000 == pytest.approx(share, abs=0.015)  # more than four standard errors


def test_the_split_does_not_depend_on_order_or_company(tmp_path: Path) -> None:
    def splits(*files: Rows) -> dict[str, str]:
        good, _ = read(pieces_of(tmp_path, *files), tmp_path)
        return {row["id"]: row["split"] for row in good}

    rows = alpaca(60)
    everything = splits(rows)
    assert set(everything.values()) == {"train", "validation", "test"}
    assert splits(rows[1::2], rows[::2]) == everything
    fewer = splits(rows[20:40], [])
    assert len(fewer) == 20
    assert fewer.items() <= everything.items()


# --- the demo --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_is_the_embedded_sample(tmp_path: Path) -> None:
    good, quarantined = read(find_pieces(DataConfig()), tmp_path, format_name="demo")
    assert (len(good), quarantined) == (200, [])
    assert Counter(row["source"] for row in good) == {"open_ended": 100, "deterministic": 100}
    assert {row["split"] for row in good} == {"train", "validation", "test"}
    assert all(row["id"] == col.content_id(row["messages"]) for row in good)


def test_a_short_demo_keeps_both_sources(tmp_path: Path) -> None:
    """The mixed scenario is the point of the sample: `data.max_rows=20` must not leave the deterministic half out."""
    good, _ = read(find_pieces(DataConfig(max_rows=20)), tmp_path, format_name="demo")
    assert (len(good), {row["source"] for row in good}) == (20, {"open_ended", "deterministic"})


# --- groups ---


@pytest.mark.parametrize("columns", [{}, {"instruction": "original"}])
def test_a_group_is_in_one_split(columns: dict[str, str], tmp_path: Path) -> None:
    rows = [row | {"original": f"Question {number // 10}"} for number, row in enumerate(alpaca(300))]
    if columns:
        rows = [{**row, "instruction": "x"} for row in rows]
    good, _ = read(pieces_of(tmp_path, rows), tmp_path, group_by="original", columns=columns)
    splits: dict[int, set[str]] = {}
    for row in good:
        splits.setdefault(int(row["messages"][-1]["content"].removeprefix("Answer ").rstrip(".")) // 10, set()).add(
            row["split"]
        )
    assert len(splits) == 30 and all(len(found) == 1 for found in splits.values())
    assert len({split for found in splits.values() for split in found}) == 3


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_row_without_a_group_is_its_own(missing: Any, tmp_path: Path) -> None:
    grouped, _ = read(pieces_of(tmp_path, [row | {"g": missing} for row in alpaca(50)]), tmp_path, group_by="g")
    alone, _ = read(pieces_of(tmp_path, alpaca(50)), tmp_path)
    assert [row["split"] for row in grouped] == [row["split"] for row in alone]


def test_a_group_is_the_same_as_a_whole_number_and_as_a_float() -> None:
    """Tables turn whole numbers into floats where one is missing."""
    data = DataConfig(group_by="g")
    assert len({grouped({"g": value}, "0" * 16, data) for value in (7, 7.0, "7")}) == 1
