"""Questions: one file for all models, from files and from the run's own test split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ual_ray import columns as col
from ual_ray.benchmarks.held_out import HeldOut
from ual_ray.benchmarks.math import Math
from ual_ray.columns import Message
from ual_ray.config import BenchmarkConfig
from ual_ray.errors import UserError
from ual_ray.evaluate.questions import check, digests, write_questions
from ual_ray.parquet import read_table, write_rows


def rows_file(folder: Path) -> Path:
    replies = ["#### 3", "Blue.", r"\boxed{4}", "#### 5"]
    rows = []
    for number, reply in enumerate(replies):
        messages = [Message(role="user", content=f"q{number}"), Message(role="assistant", content=reply)]
        split = "train" if number == 3 else "test"
        rows.append({"id": col.content_id(messages), "source": f"s{number % 2}", "split": split, "messages": messages})
    write_rows(rows, col.ROWS, folder / "rows.parquet")
    return folder / "rows.parquet"


def chat(number: int) -> list[Message]:
    return [Message(role="user", content=f"q{number}"), Message(role="assistant", content=f"a{number}")]


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def written(folder: Path) -> list[dict[str, Any]]:
    table = read_table(folder / col.QUESTIONS_FILE)
    assert table.schema.equals(col.QUESTIONS)
    return table.to_pylist()


def test_each_benchmark_takes_its_rows_of_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Math, "check", lambda self: None)
    kinds = ("held_out", "gsm8k", "math", "open_ended", "multiple_choice")
    counts = write_questions({kind: BenchmarkConfig(kind=kind) for kind in kinds}, rows_file(tmp_path), tmp_path)  # type: ignore[arg-type]
    assert [counts[kind]["questions"] for kind in kinds] == [3, 1, 1, 1, 0]
    found = {row["benchmark"]: row for row in written(tmp_path)}
    assert (found["gsm8k"]["answer"], found["math"]["answer"], found["open_ended"]["reference"]) == ("3", "4", "Blue.")
    assert found["gsm8k"]["messages"] == [{"role": "user", "content": "q0", "extra": None}]
    assert {row["source"] for row in written(tmp_path) if row["benchmark"] == "held_out"} == {"s0", "s1"}


def test_files_bring_their_own_questions_bad_rows_and_repeated_ones_counted(tmp_path: Path) -> None:
    good = {"question": "q", "answer": "#### 3"}
    path = lines(
        tmp_path / "grade.jsonl", good, good, {"question": "q", "answer": "three"}, {"question": "r", "answer": "#### 4"}
    )
    counts = write_questions({"g": BenchmarkConfig(kind="gsm8k", path=path)}, None, tmp_path)
    assert counts["g"] == {
        "kind": "gsm8k",
        "questions": 2,
        "repeated": 1,
        "bad": 1,
        "bad_reasons": {"no question": 1},
    }
    assert {row["source"] for row in written(tmp_path)} == {"grade"}
    limited = write_questions({"g": BenchmarkConfig(kind="gsm8k", path=path, max_rows=1)}, None, tmp_path)
    assert limited["g"]["questions"] == 1


@pytest.mark.parametrize("most", [1, 7, 20, 40])
def test_fewer_held_out_rows_are_those_with_the_lowest_ids_wherever_they_lie(tmp_path: Path, most: int) -> None:
    rows = [
        {
            "source": "s",
            "split": "train" if number % 4 == 3 else "test",
            "messages": chat(number),
            "id": col.content_id(chat(number)),
        }
        for number in range(40)
    ]
    config = {"held_out": BenchmarkConfig(max_rows=most), "first": BenchmarkConfig(kind="open_ended", max_rows=most)}
    for name, order in (("a", rows), ("b", rows[::-1])):
        folder = tmp_path / name / "rows"
        folder.mkdir(parents=True)
        for part in range(4):
            write_rows(order[10 * part : 10 * part + 10], col.ROWS, folder / f"{part}.parquet")
        counts = write_questions(config, folder, tmp_path / name)
        assert counts["held_out"]["questions"] == min(most, 30)
    found, reversed_ = (
        sorted(row["messages"][0]["content"] for row in written(tmp_path / name) if row["benchmark"] == "held_out")
        for name in "ab"
    )
    test = sorted((row for row in rows if row["split"] == "test"), key=lambda row: row["id"])
    assert found == reversed_ == sorted(row["messages"][0]["content"] for row in test[:most])


def test_fewer_held_out_rows_of_a_file_do_not_depend_on_its_order(tmp_path: Path) -> None:
    records = [{"messages": chat(number)} for number in range(30)]
    asked = []
    for order in (records, records[::-1]):
        config = BenchmarkConfig(path=lines(tmp_path / "rows.jsonl", *order, order[0]), max_rows=5)
        counts = write_questions({"held_out": config}, None, tmp_path)
        assert (counts["held_out"]["questions"], counts["held_out"]["repeated"]) == (5, 1)
        asked.append({row["id"] for row in written(tmp_path)})
    assert asked[0] == asked[1]
    write_questions({"held_out": BenchmarkConfig(path=str(tmp_path / "rows.jsonl"))}, None, tmp_path)
    assert asked[0] == {row["id"] for row in written(tmp_path)[:5]}, "all are written in order of their ids, the lowest first"


def test_the_number_of_held_out_rows_is_limited_and_part_of_the_digest() -> None:
    assert digests({"held_out": BenchmarkConfig()})["held_out"]["max_rows"] == HeldOut.default_max_rows == 20_000
    assert digests({"held_out": BenchmarkConfig(max_rows=30_000)})["held_out"]["max_rows"] == 30_000
    assert digests({"gsm8k": BenchmarkConfig(kind="gsm8k")})["gsm8k"]["max_rows"] is None


def test_ids_do_not_depend_on_other_benchmarks_or_on_the_order(tmp_path: Path) -> None:
    rows = rows_file(tmp_path)
    alone = {"gsm8k": BenchmarkConfig(kind="gsm8k")}
    write_questions(alone, rows, tmp_path)
    (first,) = written(tmp_path)
    write_questions({"held_out": BenchmarkConfig(), **alone}, rows, tmp_path)
    assert first in written(tmp_path)


def test_a_path_without_a_question_is_the_users_error_before_anything_starts(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"prompt": "p"}, {"prompt": "r"})
    config = {"mine": BenchmarkConfig(kind="gsm8k", path=path)}
    for call in (lambda: check(config, 4096), lambda: write_questions(config, None, tmp_path)):
        with pytest.raises(UserError, match=r"(?s)evaluate.benchmarks.mine: no row.*2 x unknown format.*question and answer"):
            call()
    assert not (tmp_path / col.QUESTIONS_FILE).exists()
    check({"koala": BenchmarkConfig(kind="open_ended", path=path)}, 4096)


def test_a_path_that_is_not_there_names_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)evaluate.benchmarks.mine.path cannot be used.*none.jsonl"):
        check({"mine": BenchmarkConfig(kind="gsm8k", path=str(tmp_path / "none.jsonl"))}, 4096)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"question": "q", "answer": "#### 1"})
    with pytest.raises(UserError, match=r"(?s)mine.columns: there is no column frage.*answer.*question"):
        check({"mine": BenchmarkConfig(kind="gsm8k", path=path, columns={"question": "frage"})}, 4096)


def test_no_question_at_all_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no benchmark has a question"):
        write_questions({"mc": BenchmarkConfig(kind="multiple_choice")}, rows_file(tmp_path), tmp_path)


def test_the_digest_goes_by_content_settings_and_version(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", {"question": "q", "answer": "#### 1"})
    (tmp_path / "b").mkdir()
    moved = lines(tmp_path / "b" / "a.jsonl", {"question": "q", "answer": "#### 1"})
    changed = lines(tmp_path / "c.jsonl", {"question": "q", "answer": "#### 2"})

    def of(path: str, **more: Any) -> dict[str, Any]:
        return digests({"g": BenchmarkConfig(kind="gsm8k", path=path, **more)})

    assert of(first) == of(moved)
    assert len({json.dumps(one) for one in (of(first), of(changed), of(first, shots=5), of(first, max_rows=3))}) == 4


def test_of_a_datasets_directory_the_test_split_is_asked(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_list([{"question": name, "answer": "#### 1"}]) for name in ("train", "test")}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    config = BenchmarkConfig(kind="gsm8k", path=str(tmp_path / "data"))
    write_questions({"g": config}, None, tmp_path)
    assert [row["messages"][0]["content"] for row in written(tmp_path)] == ["test"]
    write_questions({"g": config.model_copy(update={"split": "train"})}, None, tmp_path)
    assert [row["messages"][0]["content"] for row in written(tmp_path)] == ["train"]


@pytest.mark.parametrize(
    ("kind", "set_to", "context", "longest"),
    [("gsm8k", None, 1024, 1024), ("math", None, 4096, 4096), ("gsm8k", 300, 256, 300)],
)
def test_answers_that_cannot_fit_the_context_are_refused(kind: str, set_to: int | None, context: int, longest: int) -> None:
    config = {"mine": BenchmarkConfig(kind=kind, max_new_tokens=set_to)}
    with pytest.raises(UserError, match=rf"mine\.max_new_tokens(?s:.*){longest} of engine\.max_model_len = {context}"):
        check(config, context)
    check(config, longest + 1)
    check({"rows": BenchmarkConfig(kind="held_out"), "choices": BenchmarkConfig(kind="multiple_choice")}, 16)
