"""What a report says of its measures, and the guard: an arm whose errors it can no longer hold back is not promoted."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from ual_ray import columns as col
from ual_ray.report.caveats import guard_lines, notes
from ual_ray.report.findings import Findings
from ual_ray.report.promote import objection_to
from ual_ray.report.step import print_tables, write_files
from ual_ray.stats.alignment import COLUMNS
from ual_ray.stats.comparison import Role, compare_models
from ual_ray.stats.metrics import METRICS, MetricValue
from ual_ray.stats.primary import settle

ROLES: dict[str, Role] = {"base": "base", "sft": "sft", "ual": "ual"}
QUESTIONS, PER_QUESTION, SEEDS = 120, 6, (0, 1, 2)


def tokens(seed: int, ranked: float, better: float) -> pa.Table:
    """Make tokens of a model of which 70% are right; ranked: how much surer it is where it is right; better: nats."""
    random, n = np.random.default_rng(seed), QUESTIONS * PER_QUESTION
    right = np.random.default_rng(99).random(n) < 0.7
    sure = 1 / (1 + np.exp(-ranked * right - random.normal(0, 1, n)))
    nll = np.random.default_rng(98).gamma(4, 0.5, n) + random.normal(-better, 0.05, n)
    columns = {"id": [f"q{place // PER_QUESTION}" for place in range(n)], "confidence": sure, "correct": right}
    rows = pa.table({**columns, "adjusted_nll": nll})
    missing = {name: pa.nulls(n, col.TOKEN_STATISTICS.field(name).type) for name in col.TOKEN_STATISTICS.names}
    return pa.table({name: rows[name] if name in rows.column_names else missing[name] for name in missing})


def findings_of(ranked: float, others: int = 0) -> Findings:
    """Compare an arm that is better in the primary measure, and ranks its tokens so well, with SFT, which has 3.

    others: benchmarks besides, on which there is no difference.
    """
    counted = {"sft": {seed: tokens(seed, 3.0, 0.0) for seed in SEEDS}}
    counted["ual"] = {seed: tokens(seed + 10, ranked, 0.2) for seed in SEEDS}
    rows = [
        {"id": f"{name}{place}", "benchmark": f"b{name}", "scores": [("accuracy", float(place % 2))]}
        for name in range(others)
        for place in range(20)
    ]
    answers = pa.Table.from_pylist(rows, schema=col.RESULTS).select(COLUMNS)
    models = {model: dict.fromkeys(SEEDS, answers) for model in counted}
    found, _ = settle(compare_models(models, ROLES, counted), ROLES)
    assert next(entry for entry in found.entries if entry.primary).verdict == "better"
    return Findings(metrics={model: [] for model in models}, comparisons=found, roles=ROLES)


@pytest.mark.slow
@pytest.mark.parametrize("others", [0, 30])
def test_an_arm_that_ranks_its_errors_worse_is_not_promoted_however_much_else_is_compared(others: int) -> None:
    objection = objection_to("ual", findings_of(2.2, others))
    assert objection is not None
    assert "token_aurc on held_out against sft: worse" in objection


@pytest.mark.parametrize("ranked", [3.0, 4.0])
def test_as_good_or_better_a_ranking_is_no_objection(ranked: float) -> None:
    found = findings_of(ranked)
    assert objection_to("ual", found) is None
    assert guard_lines(found.comparisons) == [
        "Guard, AURC of tokens: no arm is worse with certainty than a model that it was compared with."
    ]


def test_the_report_names_the_arm_that_the_guard_stands_against(tmp_path: Path) -> None:
    found, sink = findings_of(1.0), io.StringIO()
    write_files(found, tmp_path)
    print_tables(found, Console(file=sink, width=1000))
    for text in ((tmp_path / "report.md").read_text(), sink.getvalue()):
        assert "Guard, not to be promoted: ual is worse than sft" in text
        assert "held_out.token_aurc (AURC of tokens; lower is better)" in text


@pytest.mark.slow
def test_the_guard_names_an_arm_that_ranks_its_errors_worse_than_the_model_before_training() -> None:
    entries = findings_of(1.0).comparisons.entries
    against = tuple(replace(entry, reference="base") for entry in entries)
    found = replace(findings_of(3.0), comparisons=replace(findings_of(3.0).comparisons, entries=against))
    assert "token_aurc on held_out against base: worse" in str(objection_to("ual", found))
    assert [line.partition(":")[2][:23] for line in guard_lines(found.comparisons)] == [" ual is worse than base"]


def test_without_token_statistics_nothing_is_said_of_the_guard() -> None:
    found = findings_of(3.0)
    assert guard_lines(replace(found.comparisons, entries=())) == []


def test_every_measure_says_what_it_tells_and_what_it_does_not() -> None:
    for name, metric in METRICS.items():
        does, _, does_not = metric.tells.partition("; ")
        assert does and does_not.startswith("not "), name


@pytest.mark.parametrize("name", ["exact_match_strict", "length_controlled_win_rate", "nll_adjusted"])
def test_the_documents_say_the_same(name: str) -> None:
    text = " ".join((Path(__file__).parents[3] / "docs" / "evaluation.md").read_text().split())
    assert f": {METRICS[name].tells}." in text


def test_a_report_has_the_sentence_of_each_measure_that_is_in_it_and_of_no_other(tmp_path: Path) -> None:
    values = [MetricValue("x", name, "overall", 0.5, None, 3) for name in ("exact_match_strict", "f1_of_others")]
    found = replace(
        findings_of(3.0),
        metrics={"ual": values},
        calibration={"ual": {"token": {"raw": {"ece_width": 0.1, "prr": None}}}},
        clusters={"ual": {"after_norm": {"nc1": 0.3}}},
        win_rates={"ual-vs-sft": {"candidate": "ual", "reference": "sft"}},
    )
    assert [label for label, _ in notes(found)] == [
        *("NLL per token after removing temperature and smoothing floor, nats", "top-1 accuracy of tokens", "AURC of tokens"),
        *("exact match, strict", "win rate", "win rate, length-controlled", "ECE, equal width", "NC1"),
    ]
    write_files(found, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"- exact match, strict: {METRICS['exact_match_strict'].tells}." in text


def test_a_guard_that_was_not_tested_does_not_say_that_no_arm_is_worse() -> None:
    found = findings_of(3.0).comparisons
    few = replace(found, entries=tuple(replace(entry, seeds=2) for entry in found.entries))
    (line,) = guard_lines(few)
    assert line.startswith("Guard, AURC of tokens: not tested for ual, as that needs 3 training seeds, and the calibration")
