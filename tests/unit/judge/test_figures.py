"""Win rates, agreement and their line from verdicts, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import EvaluateConfig
from ual_ray.errors import UserError
from ual_ray.judge.verdicts import agreement, metrics, win_rate_line, win_rates


def verdict(number: int, preference: float | None, **values: Any) -> dict[str, Any]:
    row = {name: None for name in col.VERDICTS.names} | {
        **{"id": digest(number), "benchmark": "chat", "candidate": "ual", "reference": "sft", "judge": "big"},
        **{"text_candidate": "a" * number, "text_reference": "b" * 9, "length_candidate": number, "length_reference": 9},
        **{"candidate_first": number % 2 == 0, "preference": preference},
        **{"status": "quarantined" if preference is None else "ok", "error": None if preference else "overlong: 9"},
    }
    return row | values


def quick() -> EvaluateConfig:
    return EvaluateConfig(resamples=100)


@pytest.mark.slow
def test_figures_by_benchmark() -> None:
    rows = [verdict(number, 1.75) for number in range(8)] + [verdict(number, 1.25, benchmark="b") for number in range(8, 16)]
    rows += [verdict(number, None, benchmark="c") for number in range(16, 18)]
    figures = win_rates(rows, quick())
    assert {name: rate["win_rate"] for name, rate in figures["win_rates"].items()} == {"overall": 50, "b": 25, "chat": 75}
    assert (figures["judge"], figures["reasons"], figures["parse_rate"]) == ("big", {"overlong": 2}, pytest.approx(16 / 18))


@pytest.mark.slow
def test_a_pair_that_two_benchmarks_have_counts_once_overall() -> None:
    def asked(number: int, *values: float | None, **more: Any) -> list[dict[str, Any]]:
        messages = [{"role": "user", "content": f"Question {number}?"}]
        return [verdict(number, value, messages=messages, candidate_first=n == 0) | more for n, value in enumerate(values)]

    chat = [row for number in range(8) for row in asked(number, 1.9, 1.7)]
    missing = asked(8, None, None, text_candidate=None)
    again = [row | {"benchmark": "koala", "id": f"koala {row['id']}"} for row in [*chat[:12], *missing]]
    others = [row for number in range(10, 14) for row in asked(number, 1.2, 1.2, benchmark="koala")]
    longer = [row | {"text_candidate": "another answer", "benchmark": "koala", "id": "long"} for row in asked(7, 1.2, 1.2)]
    chat[14:] = asked(7, None, None)
    again += [row | {"benchmark": "koala", "id": "read"} for row in asked(7, 1.9, 1.7)]
    for rows in ([*chat, *missing, *again, *others, *longer], [*longer, *others, *again, *missing, *chat]):
        rates = win_rates(rows, quick())["win_rates"]
        assert {name: (rate["n_valid"], rate["n"]) for name, rate in rates.items()} == {
            "overall": (13, 14),
            "chat": (7, 9),
            "koala": (12, 13),
        }
        assert rates["overall"]["win_rate"] == pytest.approx(100 * (8 * 0.8 + 5 * 0.2) / 13)


@pytest.mark.slow
def test_a_benchmark_that_is_called_as_all_of_them_does_not_take_their_place() -> None:
    rows = [verdict(number, 1.75) for number in range(8)]
    rows += [verdict(number, 1.25, benchmark="overall") for number in range(8, 16)]
    assert win_rates(rows, quick())["win_rates"]["overall"]["win_rate"] == 50


@pytest.mark.slow
def test_the_order_of_verdicts_does_not_matter() -> None:
    rows = [verdict(number, 1 + number / 20) for number in range(20)]
    one, other = win_rates(rows, quick()), win_rates(rows[::-1], quick())
    assert one["win_rates"] == other["win_rates"]


def test_agreement_by_hand() -> None:
    # 10 questions: both candidate 4, both reference 2, candidate/reference 1, reference/candidate 2, both a tie 1; one unread.
    one = [1.9] * 4 + [1.1] * 2 + [1.9] + [1.1] * 2 + [1.5] + [1.9]
    two = [1.6] * 4 + [1.4] * 2 + [1.2] + [1.8] * 2 + [1.5] + [None]
    rows = [[verdict(number, value) for number, value in enumerate(values)] for values in (one, two)]
    found = agreement(*rows)
    by_chance = (5 * 6 + 4 * 3 + 1 * 1) / 100
    assert (found["n"], found["share"]) == (10, 0.7)
    assert found["kappa"] == pytest.approx((0.7 - by_chance) / (1 - by_chance))
    assert agreement(rows[0][:4], rows[1][:4]) == {"n": 4, "share": 1.0, "kappa": None}
    assert agreement(rows[0][:2], rows[1][2:4]) == {"n": 0, "share": None, "kappa": None}


def test_no_verdict_at_all() -> None:
    with pytest.raises(UserError, match="no pair has a verdict"):
        win_rates([verdict(1, None)], quick())


@pytest.mark.slow
def test_metrics_have_their_interval_and_n_beside_them() -> None:
    named = metrics(win_rates([verdict(number, 1 + number / 20) for number in range(20)], quick()))
    for name in ("win_rate.overall", "length_controlled_win_rate.overall"):
        low, value, high = named[f"{name}.ci_low"], named[name], named[f"{name}.ci_high"]
        assert low is not None and value is not None and high is not None and low <= value <= high
        assert named[f"{name}.n"] == 20
    assert (named["mean_length_candidate.overall"], named["mean_length_reference.overall"]) == (9.5, 9)
    assert named["parse_rate"] == 1


def test_the_line_says_rates_numbers_and_lengths() -> None:
    rate: Mapping[str, Any] = {
        "win_rate": 61.25,
        "win_rate_low": 50.0,
        "win_rate_high": 70.04,
        "length_controlled_win_rate": None,
        "n": 20,
        "n_valid": 19,
        "mean_length_candidate": 100.4,
        "mean_length_reference": 80.0,
    }
    line = win_rate_line({"reference": "sft", "win_rates": {"overall": rate}, "position_bias": {"difference": 0.123}})
    assert line == (
        "wins 61.2% [50.0, 70.0] against sft, unknown at equal lengths; 19 of 20 verdicts; 100 and 80 characters; "
        "position bias +0.12"
    )


@pytest.mark.slow
def test_models_are_ranked_by_the_deciding_judges_win_rates_alone() -> None:
    from ual_ray.judge.step import RANKED

    rows = [verdict(number, 1 + number / 20) for number in range(20)]
    named = metrics(
        win_rates(rows, quick()) | {"others": {"small": win_rates(rows, quick())}, "agreement": {"big and small": {}}}
    )
    assert "judge_2.win_rate.overall" in named and "win_rate.overall.ci_low" in named
    assert {key for key in named if RANKED.match(key)} == {"win_rate.overall", "length_controlled_win_rate.overall"}
