"""Pairs of two models' answers: by question, in which order, and under which names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judge_bench import Bench, result, write_results

from ual_ray.columns import digest
from ual_ray.config import EvaluateConfig
from ual_ray.errors import UserError
from ual_ray.judge.pairs import AnswerSet, make_pairs, name_of, shown_first
from ual_ray.judge.stage import read_answers
from ual_ray.judge.verdicts import win_rate_line, win_rates


def test_pairs_by_question(bench: Bench) -> None:
    pairs = make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), seed=0)
    assert [pair["id"] for pair in pairs] == sorted({pair["id"] for pair in pairs})
    by_question = {pair["question"]: pair for pair in pairs}
    assert set(by_question) == {digest(number) for number in range(30)}
    one = by_question[digest(3)]
    assert (one["candidate"], one["reference"], one["text_candidate"]) == ("ual", "sft", "Answer 3!!!")
    assert (one["text_reference"], one["length_candidate"], one["length_reference"]) == ("Other", 11, 5)
    assert one["error"] is None
    # Both orders, by chance, and the same every time.
    orders = [pair["candidate_first"] for pair in pairs]
    assert 5 < sum(orders) < 25
    assert [shown_first(pair["question"], 0) for pair in pairs] == orders
    assert [shown_first(pair["question"], 1) for pair in pairs] != orders


def test_the_order_is_about_even() -> None:
    assert 0.45 < sum(shown_first(digest(number), 0) for number in range(2000)) / 2000 < 0.55


def test_the_id_is_of_what_is_compared(bench: Bench) -> None:
    before = {pair["question"]: pair["id"] for pair in make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), 0)}
    write_results(bench.candidate, [result(number, model="new") for number in range(29)] + [result(29, prediction="New")])
    after = {
        pair["question"]: pair["id"] for pair in make_pairs(AnswerSet(bench.candidate, "x"), AnswerSet(bench.reference), 0)
    }
    assert [key for key in before if before[key] != after[key]] == [digest(29)]


def test_the_questions_own_reference(tmp_path: Path) -> None:
    rows = [result(0, reference="Given"), result(1)]
    (pair,) = make_pairs(AnswerSet(write_results(tmp_path / "a.parquet", rows)), AnswerSet(None), 0)
    assert (pair["reference"], pair["text_reference"], pair["question"]) == ("reference", "Given", digest(0))


def test_an_answer_that_is_missing_is_a_pair_without_a_verdict(bench: Bench) -> None:
    rows = [result(0), result(1, prediction=None, status="quarantined", error="overlong: 2000"), result(2)]
    write_results(bench.candidate, rows)
    write_results(bench.reference, [result(0, prediction=None), result(1), result(9)])
    pairs = {pair["question"]: pair for pair in make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), 0)}
    assert set(pairs) == {digest(0), digest(1), digest(2), digest(9)}
    assert pairs[digest(0)]["error"] == "no answer: the reference gave none"
    assert pairs[digest(1)]["error"] == "no answer: the candidate gave none (overlong: 2000)"
    assert pairs[digest(1)]["length_candidate"] is None


def test_a_question_that_one_side_was_not_asked_is_counted_and_has_no_verdict(bench: Bench) -> None:
    """Which questions were asked may depend on the model, as where a run of it was interrupted or its hard ones left out."""
    write_results(bench.candidate, [result(number, model="ual") for number in range(4)])
    write_results(bench.reference, [result(number, model="sft", prediction="Other") for number in range(2, 6)])
    pairs = {pair["question"]: pair for pair in make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), seed=0)}
    assert [pairs[digest(number)]["error"] for number in range(6)] == [
        *["asked of one side only: the reference was not"] * 2,
        *[None] * 2,
        *["asked of one side only: the candidate was not"] * 2,
    ]
    told = [(pairs[digest(number)]["text_candidate"], pairs[digest(number)]["text_reference"]) for number in (1, 5)]
    assert told == [("Answer 1!", None), (None, "Other")]
    assert {(pair["candidate"], pair["reference"], pair["benchmark"]) for pair in pairs.values()} == {("ual", "sft", "chat")}
    rows = [
        pair
        | dict.fromkeys(("preference", "prompt_hash", "judge", "prompt_tokens", "generated_tokens"))
        | {"status": "quarantined"}
        for pair in pairs.values()
    ]
    for row in rows:
        row["preference"], row["status"] = (1.5, "ok") if row["error"] is None else (None, "quarantined")
    figures = win_rates(rows, EvaluateConfig(resamples=100))
    assert (figures["win_rates"]["overall"]["n"], figures["win_rates"]["overall"]["n_valid"]) == (6, 2)
    assert figures["reasons"] == {"asked of one side only": 4}
    assert "2 of 6 verdicts (4 asked of one side only);" in win_rate_line(figures)


def test_an_empty_answer_is_an_answer(bench: Bench) -> None:
    write_results(bench.candidate, [result(0, prediction="")])
    write_results(bench.reference, [result(0, model="sft")])
    (pair,) = make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), 0)
    assert (pair["error"], pair["length_candidate"]) == (None, 0)


def test_only_open_ended_questions(tmp_path: Path) -> None:
    rows = [
        result(0),
        result(1, benchmark="gsm8k", answer="4"),
        result(2, benchmark="held_out", prediction=None),
        result(3, benchmark="mt_bench"),
    ]
    path = write_results(tmp_path / "a.parquet", rows)
    every = make_pairs(AnswerSet(path), AnswerSet(path), 0)
    assert {pair["benchmark"] for pair in every} == {"chat", "mt_bench"}
    named = make_pairs(AnswerSet(path), AnswerSet(path), 0, ["mt_bench"])
    assert [pair["question"] for pair in named] == [digest(3)]


def test_follow_ups_have_their_own_history(bench: Bench) -> None:
    turns = [{"role": "user", "content": text} for text in ("One?", "Two?")]
    write_results(bench.candidate, [result(0, messages=turns, extracted={"turn_1": "Mine"}, prediction="Then")])
    write_results(bench.reference, [result(0, messages=turns, extracted={"turn_1": "Theirs"}, prediction="So")])
    (pair,) = make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), 0)
    assert pair["messages"] == [{"role": "user", "content": "One?"}]
    assert pair["earlier_candidate"] == "Assistant: Mine\n\nUser: Two?\n\nAssistant: "
    assert pair["earlier_reference"] == "Assistant: Theirs\n\nUser: Two?\n\nAssistant: "
    assert (pair["text_candidate"], pair["length_candidate"]) == ("Then", 4)


def test_a_shared_history_is_told_once(bench: Bench) -> None:
    turns = [{"role": "user", "content": text} for text in ("One?", "Two?")]
    for path, text in ((bench.candidate, "a"), (bench.reference, "b")):
        write_results(path, [result(0, messages=turns, extracted={"turn_1": "Same"}, prediction=text)])
    (pair,) = make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), 0)
    assert [message["content"] for message in pair["messages"]] == ["One?", "Same", "Two?"]
    assert (pair["earlier_candidate"], pair["earlier_reference"]) == ("", "")


def test_nothing_to_compare(bench: Bench) -> None:
    write_results(bench.reference, [result(99)])
    with pytest.raises(UserError, match="no question of ual can be compared with ual"):
        make_pairs(AnswerSet(bench.candidate), AnswerSet(bench.reference), 0)


def test_a_candidate_without_answers(bench: Bench) -> None:
    with pytest.raises(UserError, match="the candidate has no answers"):
        make_pairs(AnswerSet(None), AnswerSet(bench.reference), 0)


def test_names(bench: Bench) -> None:
    assert (name_of(AnswerSet(bench.candidate)), name_of(AnswerSet(bench.candidate, "mine"))) == ("ual", "mine")
    assert name_of(AnswerSet(None)) == "reference"


def test_alpaca_evals_outputs_can_be_judged(tmp_path: Path) -> None:
    sides = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([{"instruction": "Say hi.", "output": f"hi {name}", "generator": name}]))
        sides.append(read_answers(path, None, tmp_path / "work"))
    (pair,) = make_pairs(*sides, 0)
    assert (pair["candidate"], pair["reference"], pair["text_candidate"]) == ("a", "b", "hi a")
    assert read_answers(tmp_path / "rows.parquet", "n", tmp_path) == AnswerSet(tmp_path / "rows.parquet", "n")
