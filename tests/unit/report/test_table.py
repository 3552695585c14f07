"""The tables: their rows and columns, arrows, missing values, and that three models fit a terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from ual_ray.report.findings import Findings
from ual_ray.report.table import cell, difference_text, forgetting, models, p_text, rate_text, tables
from ual_ray.stats.comparison import Comparison, Comparisons
from ual_ray.stats.metrics import MetricValue
from ual_ray.stats.results import Rate

ENTRY = Comparison("ual", "sft", "held_out", "nll", -0.0123, -0.02, -0.0041, 0.004, 0.012, "better", 20, 1, True)
NULL = Comparison("ual", "sft", "gsm8k", "exact_match_strict", 0.0, -0.01, 0.01, 1.0, 1.0, "inconclusive", 16, 1, False)
TOKENS = {
    "raw": {
        "n": 900,
        "nll": 2.0,
        "nll_standard_error": 0.1,
        "ece_width": 0.081,
        "ece_mass": 0.08,
        "brier": 0.7,
        "accuracy": 0.4,
    },
    "scaled": {"n": 900, "nll": 1.9, "ece_width": 0.02, "ece_mass": 0.021, "brier": 0.69, "accuracy": 0.4},
    "adjusted": {"n": 900, "nll": 1.8},
}

RATE = {
    **{"win_rate": 52.5, "win_rate_low": 44.0, "win_rate_high": 61.0, "length_controlled_win_rate": None},
    **{"n": 80, "n_valid": 78, "mean_length_candidate": 410.2},
}


def findings() -> Findings:
    base = [
        MetricValue("gsm8k", "exact_match_strict", "overall", 0.25, 0.125, 16),
        MetricValue("held_out", "nll", "overall", 2.0, 0.5, 20),
    ]
    arm = [MetricValue("held_out", "nll", "overall", 1.5, None, 18), MetricValue("held_out", "nll", "maths", 1.0, 0.1, 8)]
    return Findings(
        {"base": base, "sft": arm, "ual": arm},
        Comparisons((ENTRY, NULL), 0.95, 2000, 0),
        alphas={"sft": 0.0, "ual": 0.1},
        token_alphas={"sft": 0.0, "ual": 0.112},
        calibration={
            "sft": {"temperature": 1.25, "token": TOKENS, "answer": {"gsm8k": {"raw": {"aurc": 0.5, "auroc": None}, "n": 9}}},
            "ual": {},
        },
        clusters={"ual": {"before_norm": {"nc1": 3.25, "silhouette": -0.125, "n": 40}}},
        win_rates={"ual": {"reference": "sft", "win_rates": {"overall": RATE}}},
    )


def test_the_models_by_hand() -> None:
    assert models(findings()).markdown().splitlines() == [
        "| metric | n | base | sft | ual |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| **arms** |  |  |  |  |",
        "| mean alpha per training row | – | – | 0.000 | 0.100 |",
        "| mean alpha per token | – | – | 0.000 | 0.112 |",
        "| **held_out** |  |  |  |  |",
        "| NLL per token, nats ↓ | 18-20 | 2.000 ± 0.500 | 1.500 | 1.500 |",
        "| … maths ↓ | 8 | – | 1.000 ± 0.100 | 1.000 ± 0.100 |",
        "| **gsm8k** |  |  |  |  |",
        "| exact match, strict ↑ | 16 | 25.0% ± 12.5 | – | – |",
        "| **calibration of tokens** |  |  |  |  |",
        "| NLL per token, nats ↓ | 900 | – | 2.000 ± 0.100 | – |",
        "| NLL per token, nats, scaled ↓ | 900 | – | 1.900 | – |",
        "| NLL per token, nats, adjusted ↓ | 900 | – | 1.800 | – |",
        "| accuracy ↑ | 900 | – | 40.0% | – |",
        "| ECE, equal width ↓ | 900 | – | 8.1% | – |",
        "| ECE, equal width, scaled ↓ | 900 | – | 2.0% | – |",
        "| ECE, equal mass ↓ | 900 | – | 8.0% | – |",
        "| ECE, equal mass, scaled ↓ | 900 | – | 2.1% | – |",
        "| Brier score ↓ | 900 | – | 0.700 | – |",
        "| Brier score, scaled ↓ | 900 | – | 0.690 | – |",
        "| temperature, fitted on validation rows | – | – | 1.250 | – |",
        "| **calibration of answers, gsm8k** |  |  |  |  |",
        "| AURC ↓ | 9 | – | 0.500 | – |",
        "| **clusters before the final norm** |  |  |  |  |",
        "| NC1 ↓ | 40 | – | – | 3.250 |",
        "| silhouette ↑ | 40 | – | – | -0.125 |",
    ]


def test_differences_with_intervals_and_words_and_win_rates() -> None:
    _, differences, judged = tables(findings()).values()
    assert differences.title == "Differences by question, paired"
    assert differences.markdown().splitlines()[2:] == [
        "| **held_out: NLL per token, nats ↓ (primary)** |  |  |  |  |",
        "| ual - sft | better | -0.0123 [-0.0200, -0.0041] | 0.012 | 20 |",
        "| **gsm8k: exact match, strict, points ↑** |  |  |  |  |",
        "| ual - sft | inconclusive | +0.00 [-1.00, +1.00] | 1.000 | 16 |",
    ]
    assert judged.rows[0].cells == ("ual - sft", "78 of 80", "52.5 [44.0, 61.0]", "–", "410 / –", "–")
    assert judged.columns()["win rate, %"] == ["52.5 [44.0, 61.0]"]


def test_forgetting_by_hand() -> None:
    def change(arm: str, benchmark: str, metric: str, verdict: Any, difference: float) -> Comparison:
        ends = (difference, difference - 0.01, difference + 0.01)
        return Comparison(arm, "base", benchmark, metric, *ends, 0.01, 0.01, verdict, 16, 3, False)

    entries = (
        change("ual", "gsm8k", "exact_match_strict", "worse", -0.0625),
        change("sft", "gsm8k", "exact_match_strict", "inconclusive", 0.0),
        change("ual", "lm_eval.mmlu", "accuracy", "better", 0.02),
        change("ual", "held_out", "nll", "better", -0.5),
    )
    found = forgetting(replace(findings(), comparisons=Comparisons(entries, 0.9, 100, 0)))
    assert found.markdown().splitlines() == [
        "| arm | verdict | before training | after | change [90% interval] | n |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| **gsm8k: exact match, strict, points ↑** |  |  |  |  |  |",
        "| ual | worse | 25.0% ± 12.5 | – | -6.25 [-7.25, -5.25] | 16 |",
        "| sft | inconclusive | 25.0% ± 12.5 | – | +0.00 [-1.00, +1.00] | 16 |",
        "| **lm_eval.mmlu: accuracy, points ↑** |  |  |  |  |  |",
        "| ual | better | – | – | +2.00 [+1.00, +3.00] | 16 |",
    ]
    assert "forgetting" not in tables(findings())


def test_every_judge_has_its_win_rates_and_its_position_bias_and_their_agreement_is_shown() -> None:
    def by(judge: str, rate: float, flipped: float) -> dict[str, Any]:
        rates = {"overall": RATE | {"win_rate": rate}, "koala": RATE}
        return {"judge": judge, "reference": "sft", "win_rates": rates, "position_bias": {"flipped": flipped}}

    agreed = {"big and small": {"n": 70, "share": 0.8, "kappa": 0.456}}
    content = by("big", 60.0, 0.125) | {"others": {"small": by("small", 40.0, 0.5)}, "agreement": agreed}
    found = replace(findings(), win_rates={"ual": content})
    *_, judged, agreement = tables(found).values()
    assert [(row.section, row.cells[2], row.cells[-1]) for row in judged.rows] == [
        ("big (decides)", "60.0 [44.0, 61.0]", "12.5%"),
        ("big (decides) koala", "52.5 [44.0, 61.0]", "12.5%"),
        ("small (shown)", "40.0 [44.0, 61.0]", "50.0%"),
        ("small (shown) koala", "52.5 [44.0, 61.0]", "50.0%"),
    ]
    assert [(row.section, row.cells) for row in agreement.rows] == [("big and small", ("ual - sft", "70", "80.0%", "0.46"))]


def test_a_terminal_shows_the_brief_rows_of_the_same_tables() -> None:
    whole, kept = models(findings()), models(findings()).brief()
    assert [row.cells[0] for row in kept.rows if row.section == "calibration of tokens"] == [
        "NLL per token, nats, scaled ↓",
        "NLL per token, nats, adjusted ↓",
        "ECE, equal width ↓",
        "ECE, equal width, scaled ↓",
        "Brier score ↓",
    ]
    measured = [row for row in whole.rows if row.section in ("arms", "held_out", "gsm8k")]
    assert [row for row in kept.rows if row in measured] == measured
    assert kept.heads == whole.heads


def test_nothing_found_makes_no_table() -> None:
    assert tables(Findings({}, Comparisons((), 0.95, 2000, 0))) == {}


def test_three_models_fit_a_terminal_of_110_columns() -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    for grid in tables(findings()).values():
        console.print(grid.rich())
    text = console.export_text()
    for whole in ("ECE, equal width, scaled ↓", "25.0% ± 12.5", "-0.0123 [-0.0200, -0.0041]", "inconclusive", "44.0, 61.0"):
        assert whole in text, whole
    assert max(map(len, text.splitlines())) <= 110


def test_untrusted_names_stay_names() -> None:
    name = "[red]a|b\n[/red]"
    found = Findings({name: [MetricValue(name, "nll", "overall", 1.0, None, 1)]}, Comparisons((), 0.95, 2000, 0))
    (grid,) = tables(found).values()
    assert "a\\|b [/red]" in grid.markdown()
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(grid.rich())
    assert "[red]a|b" in console.export_text()


def test_many_sources_are_cut_to_the_largest() -> None:
    figures = [MetricValue("held_out", "nll", f"s{n:02}", 1.0, None, n) for n in range(1, 30)]
    figures.append(MetricValue("held_out", "nll", "overall", 1.0, None, 500))
    labels = [row.cells[0] for row in models(Findings({"base": figures}, Comparisons((), 0.95, 1, 0))).rows]
    assert labels == ["NLL per token, nats ↓"] + [f"… s{n} ↓" for n in range(29, 21, -1)]


def test_several_seeds_are_told() -> None:
    found = Findings({"ual": [MetricValue("b", "nll", "overall", 1.0, None, 1)]}, Comparisons((), 0.95, 1, 0), seeds={"ual": 3})
    assert models(found).rows[0].cells == ("training seeds", "–", "3")


def test_small_parts() -> None:
    assert cell(None) == "–"
    assert cell(MetricValue("b", "exact_match_strict", "overall", 0.0, 0.0, 5)) == "0.0% ± 0.0"
    assert [p_text(value, 0.95) for value in (0.0004, 0.0123, 0.05, 0.1)] == ["<0.001", "0.012", "0.050", "0.100"]
    assert [rate_text(Rate(51.25, 50.0, 52.5)), rate_text(Rate(None, None, None))] == ["51.2 [50.0, 52.5]", "–"]


def test_what_excludes_the_mark_is_not_rounded_to_it() -> None:
    """As with a verdict: an interval shown as [+0.00, +1.00] would seem to hold 0, and a p-value of 0.050 to be either."""
    shown = [
        ("exact_match_strict", (0.005, 0.00002, 0.01), "+0.500 [+0.002, +1.000]"),
        ("exact_match_strict", (-0.005, -0.01, -0.00002), "-0.500 [-1.000, -0.002]"),
        ("exact_match_strict", (-0.00001, -0.01, 0.01), "+0.00 [-1.00, +1.00]"),
        ("exact_match_strict", (0.01, 0.0, 0.02), "+1.00 [+0.00, +2.00]"),
        ("nll", (-0.001, -0.002, -0.00004), "-0.00100 [-0.00200, -0.00004]"),
    ]
    for metric, values, text in shown:
        difference, low, high = values
        entry = replace(ENTRY, metric=metric, difference=difference, ci_low=low, ci_high=high)
        assert difference_text(entry) == text
    assert [p_text(value, 0.95) for value in (0.0498, 0.0504)] == ["0.0498", "0.0504"]
    rates = [Rate(52.0, 50.03, 54.0), Rate(48.0, 46.0, 49.97), Rate(50.04, 48.0, 52.0)]
    assert [rate_text(rate, "%") for rate in rates] == ["52.00% [50.03, 54.00]", "48.00% [46.00, 49.97]", "50.0% [48.0, 52.0]"]
    assert cell(MetricValue("b", "prr", "overall", -0.0001, None, 5)) == "0.000"


def test_findings_read_what_they_wrote() -> None:
    found = findings()
    assert Findings.from_dict(json.loads(json.dumps(found.as_dict()))) == found
