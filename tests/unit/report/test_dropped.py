"""What was dropped, replaced or changed after its results were seen still counts in a report's verdicts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from finished_runs import console, finished, scenario_of
from scipy import stats

from ual_ray.config import Config
from ual_ray.config.files import write_record
from ual_ray.report.caveats import absent_lines
from ual_ray.report.compare import make_findings
from ual_ray.report.findings import Findings, tried_before
from ual_ray.report.gather import StageFolders
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.promote import objection_to
from ual_ray.report.step import print_tables, write_page
from ual_ray.stats.comparison import described


@pytest.mark.slow
def test_an_arm_that_was_dropped_from_the_configuration_after_its_results_still_counts_in_the_correction(
    tmp_path: Path,
) -> None:
    """Who drops the arms that were not better would find the one that is better by chance."""
    root = with_more_arms(tmp_path / "all", ["held_out.nll_adjusted"])
    p_values = [
        next(x.p_holm for x in found_of(root, more).comparisons.entries if x.primary and x.arm == "ual")
        for more in ([], ["other"], ["other", "another"])
    ]
    assert p_values == [pytest.approx(p_values[-1])] * 3 and p_values[0] > 0
    (told,) = absent_lines(found_of(root, ["other"]).comparisons)
    assert {"another - sft", "ual - more_sft"} <= pairs_in(told) and "other - sft" not in pairs_in(told)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["none", "constant"])
def test_a_reference_that_was_dropped_from_the_configuration_after_its_results_still_counts(tmp_path: Path, role: str) -> None:
    """Without an effect, an arm was better or worse in 17% of simulations, of four references all but one dropped."""
    root = with_more_arms(tmp_path / "all", ["held_out.nll_adjusted", "held_out.nll"])
    for seed in range(3):
        for arm in ("other", "another"):
            shutil.rmtree(root / f"seed-{seed}" / "arms" / arm)
        done = root / f"seed-{seed}" / "arms" / "more_sft" / "smooth" / "k" / "done.json"
        done.write_text(json.dumps({"figures": {"map": role, "mean": 0.1}}))
    kept, dropped = found_of(root, ["more_sft"]), found_of(root, [])
    kept_entry, entry = (
        next(x for x in found.comparisons.entries if (x.arm, x.reference, x.metric) == ("ual", "sft", "nll_adjusted"))
        for found in (kept, dropped)
    )
    assert entry.p_holm == pytest.approx(2 * entry.p_value) == pytest.approx(kept_entry.p_holm)
    later = next(x for x in dropped.comparisons.entries if (x.arm, x.reference, x.metric) == ("ual", "sft", "nll"))
    assert later.exploratory, "who saw that it was not better than the dropped one may have dropped it for that"
    told = " ".join(absent_lines(dropped.comparisons))
    assert "ual - more_sft" in told and "there are results of it here" in told and not absent_lines(kept.comparisons)
    stands = objection_to("ual", dropped)
    assert (
        stands is None
        if role == "constant"
        else stands and "it was not compared with more_sft: there are results of it here" in stands
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", ["gsm8k.exact_match_strict", "win_rate", "held_out.nll_adjusted"])
@pytest.mark.parametrize("seen", [True, False])
def test_a_measure_that_is_not_measured_any_more_after_its_results_still_comes_first(
    tmp_path: Path, first: str, *, seen: bool
) -> None:
    """Who saw that it is inconclusive may have dropped it for that: without an effect, each measure would have the level."""
    root = with_more_arms(tmp_path / "all", [first, "held_out.nll"])
    home = root / "seed-1"
    if first != "win_rate":
        benchmark, metric = first.split(".")
        entry = {"benchmark": benchmark if seen else "other", "metric": metric, "source": "overall", "value": 0.1, "n": 9}
        figures = {"name": "ual", "figures": [entry | {"standard_error": 0.1}]}
        write_record(finished(home / "arms" / "ual" / "evaluate" / "earlier", {}) / "figures.json", figures)
    elif seen:
        finished(home / "judge" / "ual-vs-sft" / "k", {})
    if not seen or first != "held_out.nll_adjusted":
        for arms in root.glob("seed-*/arms/*/calibrate"):
            shutil.rmtree(arms)
    found = found_of(root, ["other", "another", "more_sft"], calibrated=False)
    entry = next(x for x in found.comparisons.entries if (x.arm, x.reference, x.metric) == ("ual", "sft", "nll"))
    assert entry.exploratory == seen and (entry.verdict == "better") == (not seen)
    told = [
        line for line in absent_lines(found.comparisons) if line.startswith(first) and "there are results of it here" in line
    ]
    assert len(told) == seen


@pytest.mark.slow
def test_an_arm_that_was_trained_with_other_settings_after_its_results_is_told(tmp_path: Path) -> None:
    root = with_more_arms(tmp_path / "all", ["held_out.nll_adjusted"])
    home = root / "seed-1" / "arms" / "ual" / "evaluate"
    answered = {
        "k": ("now", "test"),
        "a": ("before", "test"),
        "b": ("first", "test"),
        "c": ("first", "test"),
        "d": ("x", "others"),
    }
    for name, (model, questions) in answered.items():
        if name != "k":
            shutil.copytree(home / "k", home / name)
        (home / name / "started.json").write_text(
            json.dumps({"digest": name, "inputs": {"model": model, "questions": questions}})
        )
    found = found_of(root, ["other", "another", "more_sft"])
    assert found.earlier == {"ual": 2}
    page, terminal = tmp_path / "page.html", console()
    print_tables(found, terminal[0])
    write_page(root, page, found)
    told = "Earlier trainings of these arms answered the same questions: ual (2)."
    assert all(told in " ".join(text.split()) for text in (terminal[1].getvalue(), page.read_text()))
    shutil.rmtree(home / "a")
    shutil.rmtree(home / "b")
    shutil.rmtree(home / "c")
    again = found_of(root, ["other", "another", "more_sft"])
    assert again.earlier == {} and not tried_before(again), "other questions were asked"


@pytest.mark.slow
def test_a_reference_that_was_dropped_from_the_judging_after_its_results_still_counts(tmp_path: Path) -> None:
    root, rates = with_more_arms(tmp_path / "all", ["win_rate"]), (60.0, 62.0, 64.0)
    (alone,) = judged_verdicts(found_of(root, [], rates))
    for seed in range(3):
        shutil.copytree(root / f"seed-{seed}" / "judge" / "ual-vs-sft", root / f"seed-{seed}" / "judge" / "more_sft-vs-ual")
    for more in ([], ["more_sft"]):
        (found,) = [one for one in judged_verdicts(found_of(root, more, rates)) if one.rate.arm == "ual"]
        assert found.p_holm == pytest.approx(2 * alone.p_holm)


def pairs_in(text: str) -> set[str]:
    return set(re.findall(r"\w+ - \w+", text))


def with_more_arms(root: Path, measures: list[str]) -> Path:
    """Write an experiment with three arms by uncertainty, and two without smoothing."""
    scenario_of(root, [0, 1, 2], [0, 1, 2])
    (root / "primary.json").write_text(json.dumps(described(measures) | {"confidence": 0.9, "seeds": [0, 1, 2]}))
    for seed in range(3):
        home = root / f"seed-{seed}" / "arms"
        for tried in ("other", "another"):
            shutil.copytree(home / "ual", home / tried)
        shutil.copytree(home / "sft", home / "more_sft")
    return root


def found_of(root: Path, more: list[str], rates: tuple[float, ...] = (), *, calibrated: bool = True) -> Findings:
    """Compare the arms sft, ual and `more`; rates: the win rates of all but sft under each seed."""
    arms, stages = ["sft", "ual", *more], {"evaluated": "evaluate", "calibrated": "calibrate", "smoothed": "smooth"}
    by_seed = {}
    for seed in range(3):
        home = root / f"seed-{seed}"
        asked = {kind: stage for kind, stage in stages.items() if calibrated or kind != "calibrated"}
        folders = {kind: {arm: home / "arms" / arm / stage / "k" for arm in arms} for kind, stage in asked.items()}
        judged = {f"{arm}-vs-sft": home / "judge" / f"{arm}-vs-sft" / "k" for arm in arms[1:] if rates}
        for key, folder in judged.items():
            if not folder.exists():
                names = ("win_rate", "win_rate", "low", "high")
                overall = {f"length_controlled_{name}": rates[seed] for name in names} | {
                    "n": 120,
                    "n_valid": 120,
                    "longer": 0.5,
                }
                content = {"candidate": key.split("-")[0], "reference": "sft", "win_rates": {"overall": overall}}
                write_record(finished(folder, {}) / "win_rates.json", content | {"benchmarks": ["chat"], "judge": "big"})
        by_seed[seed] = StageFolders(**folders, judged=judged)
    return make_findings(by_seed, Config().evaluate.model_copy(update={"confidence": 0.9}), 0, root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "primary",
    [
        *(["win_rate"], ["win_rate", "held_out.nll_adjusted"], ["held_out.nll_adjusted"]),
        ["gsm8k.exact_match_strict"],  # which no model has
    ],
)
def test_win_rates_count_dropped_arms_as_other_measures_do(tmp_path: Path, primary: list[str]) -> None:
    """Of three arms, one has 60, 62 and 64%: t = 12 / (2 / sqrt(3)) with two degrees of freedom."""
    root = with_more_arms(tmp_path / "all", primary)
    (alone,) = judged_verdicts(found := found_of(root, [], (60.0, 62.0, 64.0)))
    p_value = 2 * stats.t.sf(12 / (2 / 3**0.5), 2)
    assert alone.p_value == pytest.approx(p_value, rel=1e-6)
    assert (alone.p_holm, alone.verdict) == (pytest.approx(3 * p_value, rel=1e-6), "better")
    told = [line for line in absent_lines(found.comparisons) if "counts in the correction" in line]
    assert [line.split(" is ")[0] for line in told] == primary
    assert all({"another - sft", "other - sft"} <= pairs_in(line) for line in told)
    assert not any("ual - more_sft" in pairs_in(line) for line in told if line.startswith("win_rate")), "they were never judged"
    # All three are as good, so each has the p-value of three.
    every = judged_verdicts(found_of(root, ["other", "another"], (60.0, 62.0, 64.0)))
    assert [(one.rate.arm, one.p_holm) for one in every] == [(arm, alone.p_holm) for arm in ("ual", "other", "another")]


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["gsm8k.exact_match_strict", "win_rate"])
def test_a_measure_that_nobody_has_is_left_out_whatever_arms_were_dropped(tmp_path: Path, measure: str) -> None:
    root = with_more_arms(tmp_path / "all", [measure, "held_out.nll_adjusted"])
    found = found_of(root, [])
    (entry,) = (x for x in found.comparisons.entries if x.primary and x.arm == "ual")
    assert (entry.p_holm, entry.verdict) == (pytest.approx(3 * 2 * entry.p_value), "better"), "three arms, two references"
    told = [line for line in absent_lines(found.comparisons) if "counts in the correction" in line]
    assert [line.split(" is ")[0] for line in told] == ["held_out.nll_adjusted"]
