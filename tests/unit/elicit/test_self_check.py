"""The self-check: which rows, whose responses, what is measured, and which estimator is taken."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import roc_auc_score

from ual_ray import columns as col
from ual_ray.config import Config, ElicitConfig
from ual_ray.config.files import read_json
from ual_ray.config.load import load
from ual_ray.data.peek import peek
from ual_ray.elicit import self_check_stage as stage
from ual_ray.elicit.replies import no_replies
from ual_ray.elicit.self_check import SelfCheck, best_of, make_self_check
from ual_ray.elicit.step import check_scored, measuring
from ual_ray.engines import make_engine
from ual_ray.engines.pool import PoolJob
from ual_ray.errors import UserError
from ual_ray.parquet import read_table, write_rows
from ual_ray.run.progress import Meter
from ual_ray.run.stage_cache import STARTED_FILE
from ual_ray.run.step import Session
from ual_ray.stats.score_quality import Quality, against_labels

Row = dict[str, Any]
FAKE = ["engine.kind=fake", "elicit.self_check=20"]


def row(number: int, source: str = "s", response: str | None = None) -> Row:
    messages = [
        {"role": "user", "content": f"q{number}"},
        {"role": "assistant", "content": f"a{number}" if response is None else response},
    ]
    values = {"id": col.content_id(messages), "source": source, "split": "train", "given_id": None}  # type: ignore[arg-type]
    return values | {"messages": messages}


ROWS = [row(number, "ab"[number % 2]) for number in range(80)]


def halves(row: Row) -> tuple[str, str]:
    return row["messages"][0]["content"], row["messages"][1]["content"]


# --- which rows ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(count=st.integers(20, 90), seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_a_fifth_has_the_response_of_another_row_of_its_source(count: int, seed: int, order: Any) -> None:
    rows = list(ROWS)
    order.shuffle(rows)
    check = make_self_check([*rows, *rows[:9]], count, seed)
    assert check == make_self_check(ROWS, count, seed), "neither order nor repetition matters"
    assert len(check.rows) == len({one["id"] for one in check.rows}) == min(count, 80)
    assert len(check.swapped) == round(0.2 * len(check.rows))
    for one in check.rows:
        question, answer = (int(text[1:]) for text in halves(one))
        assert (question != answer) == (one["id"] in check.swapped)
        assert question % 2 == answer % 2, "of the same source"
    assert not {one["id"] for one in check.rows} & {one["id"] for one in ROWS}, "never mixed with the rows of the data"
    assert {one["split"] for one in check.rows}.isdisjoint(col.SPLITS)


def test_another_seed_takes_other_rows() -> None:
    first, second = (make_self_check(ROWS, 20, seed) for seed in (0, 1))
    assert {halves(one)[0] for one in first.rows} != {halves(one)[0] for one in second.rows}


def test_a_source_of_one_row_borrows_from_another() -> None:
    alone = [row(number, f"source {number}") for number in range(30)]
    assert len(make_self_check(alone, 30, 0).swapped) == 6


def test_an_equal_response_is_no_wrong_one() -> None:
    """Nor is one with which the row is another row of the data."""
    rows = [row(number, response="yes ") for number in range(29)] + [row(99, response="no"), row(0, response="no")]
    check = make_self_check(rows, 31, 0)
    swapped = Counter(halves(one)[1] for one in check.rows if one["id"] in check.swapped)
    assert len(check.swapped) == 6 and set(swapped) <= {"no", "yes "}
    assert not any(halves(one) == ("q0", text) for one in check.rows if one["id"] in check.swapped for text in ("no", "yes "))
    with pytest.raises(UserError, match="all rows have the same response"):
        make_self_check([row(number, response="yes") for number in range(40)], 40, 0)


def test_the_last_reply_alone_is_swapped() -> None:
    talks = [row(number) for number in range(20)]
    for talk in talks:
        talk["messages"] = [{"role": "system", "content": "s"}, *talk["messages"], *talk["messages"]]
    check = make_self_check(talks, 20, 0)
    for one in check.rows:
        system, question, answer, again, last = (message["content"] for message in one["messages"])
        assert (system, answer, again) == ("s", "a" + question[1:], question)
        assert (last != answer) == (one["id"] in check.swapped)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)elicit.self_check: too few rows.*got: 19.*at least 20"):
        make_self_check(ROWS[:19], 64, 0)


# --- what is measured, and what is taken -----------------------------------------------------------------------------


def scored(check: SelfCheck, **scores: list[float | None]) -> pa.Table:
    values = {col.uncertainty_column(name): pa.array(column, pa.float64()) for name, column in scores.items()}
    return pa.table({col.ID: [one["id"] for one in check.rows], **values})


def test_the_result_against_scikit_learn() -> None:
    check = make_self_check(ROWS, 40, 0)
    random = np.random.default_rng(0)
    wrong = np.array([one["id"] in check.swapped for one in check.rows])
    nll, p_true = random.random(40) + 0.3 * wrong, random.random(40).round(1)
    order = random.permutation(40)
    table = scored(check, nll=list(nll), p_true=[None, *p_true[1:]]).take(order)
    result = check.result(table, ElicitConfig(estimators=("p_true", "nll"), uncertainty="auto", self_check=40))
    json.dumps(result, allow_nan=False)
    assert (result["rows"], result["swapped"], result["estimators"]["p_true"]["left_out"]) == (40, 8, 1)
    assert result["estimators"]["nll"]["auroc"] == pytest.approx(roc_auc_score(wrong, nll))
    assert result["estimators"]["p_true"]["auroc"] == pytest.approx(roc_auc_score(wrong[1:], p_true[1:]))
    assert (result["uncertainty"], result["reason"]) == ("nll", "highest AUROC of 2 estimators in the self-check")
    kept = check.result(table, ElicitConfig(estimators=("p_true", "nll"), uncertainty="p_true", self_check=40))
    assert (kept["uncertainty"], kept["reason"]) == ("p_true", "as configured")


def quality(auroc: float | None, left_out: int = 0) -> Quality:
    return Quality(n=100 - left_out, wrong=20, left_out=left_out, auroc=auroc, auroc_error=None, prr=None)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"a": quality(0.6), "b": quality(0.9), "c": quality(0.7)}, "b"),
        ({"a": quality(0.6), "b": quality(0.6)}, "a"),
        ({"a": quality(0.1), "b": quality(None)}, "a"),
        ({"a": quality(0.6), "b": quality(0.9, left_out=21)}, "a"),
        ({"a": quality(0.6), "b": quality(0.9, left_out=20)}, "b"),
    ],
)
def test_the_best_is_taken(found: dict[str, Quality], expected: str) -> None:
    assert best_of(found, max_left_out=0.2) == expected


def test_nothing_to_take_is_an_error() -> None:
    with pytest.raises(UserError, match=r"(?s)no estimator has enough scores.*'a': '100 of 100', 'b': '50 of 100'"):
        best_of({"a": quality(None), "b": quality(0.9, left_out=50)}, 0.2)


def test_nothing_scored_has_no_auroc() -> None:
    check = make_self_check(ROWS, 20, 0)
    found = check.result(scored(check, nll=[None] * 20), ElicitConfig(estimators=("nll",), uncertainty="nll", self_check=20))
    assert Quality(**found["estimators"]["nll"]) == against_labels(np.full(20, np.nan), np.array([1.0] * 16 + [0.0] * 4))


# --- where the rows come from ----------------------------------------------------------------------------------------


def config_of(folder: Path, *overrides: str, files: int = 3, rows: int = 100) -> Config:
    data = folder / "data"
    data.mkdir()
    for file in range(files):
        lines = ({"instruction": f"q{file}-{number}", "output": f"a{file}-{number}"} for number in range(rows))
        (data / f"{file:02d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load(None, [*FAKE, f"data.path={data}", *overrides])


@pytest.mark.slow
def test_candidates_come_from_all_over_the_data(tmp_path: Path) -> None:
    config = config_of(tmp_path, files=40, rows=30)
    found = stage.candidates_in_data(config, peek(config.data))
    by_source = Counter(one["source"] for one in found)
    assert [*by_source] == [f"{file:02d}" for file in range(0, 40, 3)]
    assert max(by_source.values()) <= 12, "8 rows for each of 20, from 14 shards"
    assert {one["split"] for one in found} == {"train"}
    assert all(one["id"] == col.content_id(one["messages"]) for one in found)
    one_file = config.model_copy(update={"data": config.data.model_copy(update={"path": str(tmp_path / "data" / "00.jsonl")})})
    assert 10 < len(stage.candidates_in_data(one_file, peek(one_file.data))) <= 30


def test_candidates_of_scored_rows_are_a_sample_of_all(tmp_path: Path) -> None:
    rows = [one | {"uncertainty": 0.5} for one in (row(number) for number in range(500))]
    schema = pa.schema([*col.ROWS, ("uncertainty", pa.float64())])
    for part in range(2):
        write_rows(rows[part::2], schema, tmp_path / f"{part}.parquet")
    found = stage.candidates_in_scores(load(None, FAKE), tmp_path)
    assert len(found) == 160 and set(found[0]) == set(col.ROWS.names)
    numbers = {int(halves(one)[0][1:]) for one in found}
    assert len(numbers) == 160 and min(numbers) < 50 and max(numbers) > 450
    chosen, of_all = (make_self_check(candidates, 20, 0).rows for candidates in (found, rows))
    assert [*map(halves, chosen)] == [*map(halves, of_all)]


# --- the stage, with a fake engine and without Ray -------------------------------------------------------------------


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Score the rows of a file in this process; returns how many were sent, call by call."""
    sent: list[int] = []

    def map_file(file: Path, job: PoolJob, meter: Meter) -> Iterator[pa.Table]:
        rows = read_table(file).to_pylist()
        sent.append(len(rows))
        scored = job.task(rows, make_engine(job.spec))
        yield pa.Table.from_pylist(
            [{name: one.get(name) for name in job.store.schema.names} for one in scored], job.store.schema
        )

    monkeypatch.setattr(stage, "map_file", map_file)
    return sent


def console() -> Console:
    return Console(file=io.StringIO(), width=160)


def test_the_stage_scores_and_writes(pool: list[int], tmp_path: Path) -> None:
    config = config_of(tmp_path, "elicit.uncertainty=auto")
    candidates = stage.candidates_in_data(config, peek(config.data))
    folder = tmp_path / "out"
    folder.mkdir()
    result = stage.self_check(config, candidates, folder, tmp_path / "store", Meter(console(), "self-check", 20, "rows"))
    assert pool == [20] and read_json(folder / col.SELF_CHECK_FILE) == result
    assert [*result["estimators"]] == ["verbalized_error", "p_true", "nll"] and result["uncertainty"] in result["estimators"]
    assert all(found["n"] == 20 and found["wrong"] == 4 for found in result["estimators"].values())


def scores_of(config: Config, folder: Path) -> Path:
    """Make the output folder of an elicitation."""
    folder.mkdir(parents=True)
    write_rows(ROWS, col.ROWS, folder / "scored.parquet")
    (folder / "scored").mkdir()
    (folder / "scored.parquet").rename(folder / "scored" / "part.parquet")
    (folder / STARTED_FILE).write_text(json.dumps({"digest": "d", "inputs": {"measuring": measuring(config)}}, default=str))
    return folder / "scored"


def test_scored_rows_are_checked_by_the_settings_that_scored_them(
    pool: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Session, "connect", lambda self: None)
    monkeypatch.setattr("ual_ray.elicit.step._known", lambda session, store: no_replies)  # it needs a cluster
    scored = scores_of(load(None, FAKE), tmp_path / "elicit" / "key")
    shown = console()
    check_scored(Session(load(None, FAKE), shown, None), scored)
    assert (tmp_path / "elicit" / "key" / col.SELF_CHECK_FILE).is_file() and pool == [20]
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "20 rows, 4 of them with another row's response" in text and "p_true               AUROC 0." in text
    with pytest.raises(UserError, match=r"(?s)made with other settings.*different: elicit\n.*--config"):
        check_scored(Session(load(None, [*FAKE, "elicit.scale=1-5"]), console(), None), scored)
    assert pool == [20]
