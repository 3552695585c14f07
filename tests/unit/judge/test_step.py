"""From results to verdicts and win rates, with the pool replaced by a loop: the trial, the store, the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest
from judge_bench import STORES, Bench, config, result, write_results

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import TrackingConfig
from ual_ray.config.files import read_json
from ual_ray.engines.requests import Choice, ChoiceResult, Failure, Request, Result
from ual_ray.engines.row_store import RowStore
from ual_ray.engines.traces import chat
from ual_ray.errors import UserError
from ual_ray.judge.alpaca_eval import read_model_outputs
from ual_ray.judge.pairs import PAIRS
from ual_ray.judge.stage import judge_pairs
from ual_ray.judge.step import judged_set, sampled_traces
from ual_ray.judge.verdicts import metrics, win_rate_line
from ual_ray.parquet import read_table, write_rows

# --- judging ---------------------------------------------------------------------------------------------------------


def test_pairs_become_verdicts_and_win_rates(bench: Bench) -> None:
    work = bench.judging()
    figures = judge_pairs(config(), work)
    verdicts = read_table(work.folder / "verdicts.parquet")
    assert verdicts.schema.equals(col.VERDICTS)
    assert set(verdicts["id"].to_pylist()) == {digest(number) for number in range(30)}
    # Ten first, then the rest.
    assert bench.sent == [("judge: trial", 10), ("judge", 20)]
    assert bench.said == ["tried big as judge: 10 of 10 verdicts can be parsed (100%)"]
    overall = figures["win_rates"]["overall"]
    mean = sum(verdicts["preference"].to_pylist()) / 30
    assert (overall["win_rate"], overall["n_valid"]) == (pytest.approx(100 * (mean - 1)), 30)
    assert (figures["parse_rate"], figures["quarantined"], figures["candidate"]) == (1, 0, "ual")
    assert read_json(work.folder / "win_rates.json") == json.loads(json.dumps(figures))
    annotations = json.loads((work.folder / "annotations.json").read_text())
    assert len(annotations) == 30 and annotations[0]["generator_1"] == "sft"
    numbers = [int(entry["instruction"].split()[1].rstrip("?")) for entry in annotations]
    assert numbers == sorted(range(30), key=digest), "by the ids of questions, as rates are computed"
    outputs, others = (read_model_outputs(work.folder / f"{name}_outputs.json") for name in ("model", "reference"))
    assert {row["model"] for row in outputs} == {"ual"} and {row["prediction"] for row in others} == {"Other"}


def test_candidates_that_were_judged_on_the_same_questions_share_a_data_set(tmp_path: Path) -> None:
    def verdicts(preference: float, *ids: str) -> tuple[str, str]:
        rows = [{col.ID: name, col.PREFERENCE: preference} for name in ids]
        write_rows(rows, col.VERDICTS, tmp_path / "verdicts.parquet")
        return judged_set(tmp_path / "verdicts.parquet", "sft")

    first = verdicts(1.2, "a", "b")
    assert first == verdicts(1.9, "b", "a", "b") != verdicts(1.9, "b", "c")


@pytest.mark.slow
def test_what_was_judged_is_not_judged_again(bench: Bench) -> None:
    first = judge_pairs(config(), bench.judging())
    again = judge_pairs(config(), bench.judging("again"))
    assert (again, len(bench.sent)) == (first, 2)
    rows = [result(number) for number in range(31)]
    write_results(bench.candidate, rows)
    write_results(bench.reference, [result(number, model="sft", prediction="Other") for number in range(31)])
    grown = judge_pairs(config(), bench.judging("more"))
    assert (grown["rows"], bench.sent[2:]) == (31, [("judge", 1)])


def test_verdicts_go_by_the_names_of_the_candidate_at_hand(bench: Bench) -> None:
    judge_pairs(config(), bench.judging())
    write_results(bench.candidate, [result(number, model="copy") for number in range(30)])
    work = bench.judging("copy")
    figures = judge_pairs(config(), work)
    assert (len(bench.sent), figures["candidate"]) == (2, "copy")
    assert read_table(work.folder / "verdicts.parquet")["candidate"].unique().to_pylist() == ["copy"]


def test_a_judge_that_cannot_be_read_is_found_after_ten_rows(bench: Bench) -> None:
    # What the stand-in says is no verdict.
    with pytest.raises(UserError, match="10 of 10 verdicts are missing") as raised:
        judge_pairs(config(mode="sampled"), bench.judging())
    assert "judge.min_parse_share = 0.5" in str(raised.value) and "unparsable" in str(raised.value)
    assert bench.sent == [("judge: trial", 10)]
    assert "0 of 10 verdicts can be parsed (0%)" in bench.said[0]


def test_fewer_missing_verdicts_than_allowed_are_counted_and_left_out(bench: Bench) -> None:
    def answer(request: Request) -> Result:
        assert isinstance(request, Choice)
        if "Question 7?" in request.prompt[-1][1]:
            return Failure("template: no")
        return ChoiceResult((-0.5, -1.5), prompt_tokens=3)

    bench.answer = answer
    figures = judge_pairs(config(), bench.judging())
    assert (figures["rows"], figures["quarantined"], figures["reasons"]) == (30, 1, {"template": 1})
    assert figures["parse_rate"] == pytest.approx(29 / 30)
    assert figures["win_rates"]["overall"]["n_valid"] == 29
    bias = figures["position_bias"]
    assert bias["n_first"] + bias["n_second"] == 29 and bias["difference"] == pytest.approx(2 * 0.7310586 - 1)


@pytest.mark.slow
def test_rows_that_the_engine_failed_on_are_sent_again(bench: Bench) -> None:
    away = True

    def answer(request: Request) -> Result:
        assert isinstance(request, Choice)
        if away and "Question 7?" in request.prompt[-1][1]:
            return Failure("engine: away")
        return ChoiceResult((-0.5, -1.5), prompt_tokens=3)

    bench.answer = answer
    assert judge_pairs(config(), bench.judging())["reasons"] == {"engine": 1}
    away = False
    assert judge_pairs(config(), bench.judging("again"))["reasons"] == {}
    assert bench.sent[-1] == ("judge", 1)


def test_a_file_that_a_kill_tore_is_not_read(bench: Bench) -> None:
    judge_pairs(config(), bench.judging())
    store = RowStore(bench.folder / "store", col.VERDICTS)
    (store.finished / "torn-0.parquet").write_bytes(b"PAR1 half")
    store.checkpoint.mkdir()
    (store.checkpoint / "torn-0.pending.parquet").write_bytes(b"")
    assert judge_pairs(config(), bench.judging("again"))["rows"] == 30
    assert len(bench.sent) == 2


def test_pairs_that_lack_an_answer_are_not_sent_and_count(bench: Bench) -> None:
    write_results(bench.candidate, [result(number, prediction=None if number < 3 else "Yes") for number in range(30)])
    work = bench.judging()
    figures = judge_pairs(config(), work)
    assert bench.sent == [("judge: trial", 10), ("judge", 17)]
    assert (figures["rows"], figures["reasons"], figures["parse_rate"]) == (30, {"no answer": 3}, 1)
    assert (figures["win_rates"]["overall"]["n"], figures["win_rates"]["overall"]["n_valid"]) == (30, 27)
    rows = [row for row in read_table(work.folder / "verdicts.parquet").to_pylist() if row["status"] != "ok"]
    assert len(rows) == 3 and all(row["preference"] is None for row in rows)
    assert len(json.loads((work.folder / "annotations.json").read_text())) == 27


def test_no_judge_is_a_users_mistake(bench: Bench) -> None:
    with pytest.raises(UserError, match="no judge is configured"):
        judge_pairs(config(model=None), bench.judging())


def test_every_pair_is_shown_in_both_orders_and_counts_once(bench: Bench) -> None:
    # The candidate's letter comes with 0.731 where it is first and 0.269 where it is second: all bias.
    bench.answer = lambda request: ChoiceResult((-0.5, -1.5), prompt_tokens=3)
    work = bench.judging()
    figures = judge_pairs(config(orders="both"), work)
    assert bench.sent == [("judge: trial", 20), ("judge", 40)]
    verdicts = read_table(work.folder / "verdicts.parquet").to_pylist()
    shown = {(row["id"], row["candidate_first"]) for row in verdicts}
    assert len(verdicts) == len(shown) == 60 and len({row["id"] for row in verdicts}) == 30
    overall, bias = figures["win_rates"]["overall"], figures["position_bias"]
    assert (overall["win_rate"], overall["n"], overall["n_valid"], figures["rows"]) == (pytest.approx(50), 30, 30, 30)
    assert (bias["flipped"], bias["n_both"]) == (1, 30) and bias["difference"] == pytest.approx(2 * 0.7310586 - 1)
    assert figures["prompt_tokens"] == 180
    annotations = json.loads((work.folder / "annotations.json").read_text())
    assert len(annotations) == 30 and {round(entry["preference"], 9) for entry in annotations} == {1.5}
    assert "100% of the verdicts change with the order" in win_rate_line(figures)


def test_the_other_order_is_all_that_is_sent_where_one_was_judged(bench: Bench) -> None:
    judge_pairs(config(), bench.judging())
    judge_pairs(config(orders="both"), bench.judging("both"))
    assert bench.sent[2:] == [("judge", 30)]


def test_a_verdict_in_one_order_alone_is_missing(bench: Bench) -> None:
    def answer(request: Request) -> Result:
        assert isinstance(request, Choice)
        text = request.prompt[-1][1]
        candidate_first = text.index("Answer") < text.index("Other")
        return (
            Failure("template: no")
            if "Question 7?" in text and candidate_first
            else ChoiceResult((-0.5, -1.5), prompt_tokens=3)
        )

    bench.answer = answer
    figures = judge_pairs(config(orders="both"), bench.judging())
    overall = figures["win_rates"]["overall"]
    assert (overall["n"], overall["n_valid"], overall["win_rate"]) == (30, 29, pytest.approx(50))
    assert (figures["quarantined"], figures["parse_rate"]) == (1, pytest.approx(59 / 60))


def test_every_judge_has_its_own_verdicts_and_the_first_decides(bench: Bench) -> None:
    several = config(more_models=["small"])
    alone = judge_pairs(config(), bench.judging())
    work = bench.judging("several")
    # The judge that was there before is not asked again.
    figures = judge_pairs(several, work)
    assert bench.sent[2:] == [("judge: trial", 10), ("judge", 20)]
    assert bench.said[-1].startswith("tried small as judge")
    assert (figures["judge"], figures["win_rates"]) == ("big", alone["win_rates"])
    assert figures["others"]["small"]["judge"] == "small"
    verdicts = read_table(work.folder / "verdicts.parquet").to_pylist()
    by_judge = {judge: {row["id"]: row["preference"] for row in verdicts if row["judge"] == judge} for judge in STORES}
    assert [len(own) for own in by_judge.values()] == [30, 30]
    same = [(by_judge["big"][key] > 1.5) == (by_judge["small"][key] > 1.5) for key in by_judge["big"]]
    found = figures["agreement"]["big and small"]
    assert (found["n"], found["share"]) == (30, pytest.approx(sum(same) / 30))
    assert len(json.loads((work.folder / "annotations.json").read_text())) == 30
    named = metrics(figures)
    assert named["judge_2.win_rate.overall"] == figures["others"]["small"]["win_rates"]["overall"]["win_rate"]
    assert named["agreement.judge_1.judge_2.share"] == found["share"]
    assert "; by small " in win_rate_line(figures) and "; big and small agree on " in win_rate_line(figures)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_pairs_file_is_whole(bench: Bench) -> None:
    work = bench.judging()
    judge_pairs(config(), work)
    assert pyarrow.parquet.read_schema(work.folder / "pairs.parquet").equals(PAIRS)


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_sample_of_verdicts_stands_with_its_prompts(bench: Bench) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> Result:
        asked.append(request)
        return ChoiceResult((-0.5, -1.5), 1)

    bench.answer = answer
    rows = [result(number) for number in range(29)] + [result(29, prediction=None, error="overlong: 2000")]
    write_results(bench.candidate, rows)
    settings, judging = config(orders="both").model_copy(update={"tracking": TrackingConfig(traces=40)}), bench.judging()
    judge_pairs(settings, judging)
    traces = sampled_traces(settings, judging)
    assert len({trace["id"] for trace in traces}) == 40
    assert traces == sampled_traces(settings, judging)
    prompts = {chat(request.prompt)["messages"][0]["content"] for request in asked if isinstance(request, Choice)}
    for trace in traces:
        (span,) = trace["spans"]
        assert span["inputs"]["messages"][0]["content"] in prompts
        assert (span["outputs"]["preference"] > 1.5) == span["attributes"]["candidate_first"]
        assert (span["attributes"]["model"], span["outputs"]["error"]) == ("big", None)
    every = settings.model_copy(update={"tracking": TrackingConfig(traces=1000)})
    assert len(sampled_traces(every, judging)) == 58, "of what was not sent there is no call"
