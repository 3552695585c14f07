"""Promotion: only what the comparison calls better, and nothing that it calls worse anywhere."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ual_ray.errors import UserError
from ual_ray.report import promote
from ual_ray.report.caveats import guard_lines
from ual_ray.report.findings import Findings
from ual_ray.report.promote import objection_to
from ual_ray.stats.comparison import PRIMARY, Comparison, Comparisons, Role


def compared(
    arm: str, verdict: Any, reference: str = "sft", metric: str = PRIMARY[1], benchmark: str = "held_out"
) -> Comparison:
    numbers = {"difference": -0.1, "ci_low": -0.2, "ci_high": -0.01, "p_value": 0.01, "p_holm": 0.02, "n": 200, "seeds": 3}
    primary = (benchmark, metric) == PRIMARY
    return Comparison(arm, reference, benchmark, metric, verdict=verdict, primary=primary, **numbers)  # type: ignore[arg-type]


def findings_of(comparisons: list[Comparison], trained: dict[str, list[str]] | None = None) -> Findings:
    roles: dict[str, Role] = {"base": "base", "sft": "sft", "shuffled": "control"}
    return Findings({}, Comparisons(tuple(comparisons), 0.95, 100, 0), roles, folders={"trained": trained} if trained else {})


BETTER, WORSE, UNSURE = "better", "worse", "inconclusive"


@pytest.mark.parametrize(
    ("comparisons", "words"),
    [
        ([compared("ual", BETTER)], None),
        ([compared("ual", BETTER), compared("ual", UNSURE, metric="exact_strict", benchmark="gsm8k")], None),
        ([compared("ual", UNSURE)], "inconclusive"),
        ([compared("ual", BETTER), compared("ual", WORSE, metric="exact_strict", benchmark="gsm8k")], "exact_strict on gsm8k"),
        ([compared("ual", BETTER), compared("ual", WORSE, "shuffled")], "against shuffled: worse"),
        ([compared("ual", UNSURE), compared("ual", BETTER, "base")], "against sft: inconclusive"),
        ([compared("ual", BETTER, "base")], None),
        ([compared("ual", BETTER), compared("ual", WORSE, metric="nll")], None),
        ([compared("ual", BETTER), compared("ual", WORSE, metric="nll_scaled")], None),
        (
            [compared("ual", BETTER), replace(compared("ual", WORSE, metric="nll_scaled"), primary=True)],
            "nll_scaled on held_out",
        ),
        ([compared("ual", BETTER), compared("ual", WORSE, metric="token_aurc")], "token_aurc on held_out"),
        ([compared("ual", BETTER, metric="nll")], "set evaluate.calibration.enabled=true"),
        ([compared("ual", BETTER, "shuffled")], "was not compared with an arm without smoothing"),
        ([compared("ual", BETTER, metric="exact_strict", benchmark="gsm8k")], "there is no primary comparison"),
        ([compared("other", BETTER)], "the arms are other"),
        ([], "the arms are none"),
    ],
)
def test_what_stands_against_an_arm(comparisons: list[Comparison], words: str | None) -> None:
    objection = objection_to("ual", findings_of(comparisons))
    assert (objection is None) if words is None else (objection is not None and words in objection)


def judged_of(rates: dict[str, tuple[float, float]], first: list[Comparison], **roles: Role) -> Findings:
    """Find an arm that was judged, by reference, over three seeds."""
    found = findings_of(first)
    contents = {}
    for name, (low, high) in rates.items():
        overall = {"length_controlled_win_rate": (low + high) / 2, "length_controlled_low": low, "length_controlled_high": high}
        rate = {"overall": overall | {"n": 99, "n_valid": 99, "longer": 0.5}}
        contents[f"ual-vs-{name}"] = {"candidate": "ual", "reference": name, "win_rates": rate, "benchmarks": ["chat"]}
    folders = {"judged": {pair: ["0", "1", "2"] for pair in contents}}
    comparisons = replace(found.comparisons, primary=("win_rate", ".".join(PRIMARY)))
    roles = {**found.roles, "ual": "ual", **roles}
    return replace(found, roles=roles, comparisons=comparisons, win_rates=contents, folders=folders)


WON, EVEN, LOST = (60.0, 62.0), (45.0, 55.0), (38.0, 40.0)


@pytest.mark.parametrize(
    ("rates", "against", "roles", "words"),
    [
        ({"sft": WON}, "sft", {}, None),
        ({"sft": WON}, "sft", {"plain": "sft"}, "inconclusive"),
        ({"sft": WON, "plain": WON}, "sft", {"plain": "sft"}, None),
        ({"sft": WON, "plain": EVEN}, "sft", {"plain": "sft"}, "inconclusive"),
        ({"base": WON}, "base", {}, None),
        ({"base": WON}, "sft", {}, "inconclusive"),
        ({"shuffled": EVEN, "sft": LOST}, "sft", {}, "the judge prefers other answers"),
        ({"shuffled": EVEN, "sft": EVEN}, "sft", {}, "inconclusive"),
    ],
)
def test_win_rates_promote_an_arm_that_beats_every_baseline_as_other_measures_do(
    rates: dict[str, tuple[float, float]], against: str, roles: dict[str, Role], words: str | None
) -> None:
    """A baseline whose answers were not judged is not beaten; a loss counts even where it was not reached in the order."""
    there = [compared("ual", UNSURE, against), *(compared("ual", UNSURE, name) for name in roles)]
    objection = objection_to("ual", judged_of(rates, there, **roles))
    assert (objection is None) if words is None else (objection is not None and words in objection)


def test_an_arm_of_which_answers_alone_were_judged_is_promoted_by_them() -> None:
    found = replace(judged_of({"sft": WON}, []), metrics={"sft": [], "ual": []})
    assert objection_to("ual", found) is None


def test_a_guard_that_was_not_tested_for_an_arm_stands_against_it() -> None:
    guard = compared("rank", UNSURE, metric="token_aurc")
    first = compared("ual", BETTER)
    for others in ([guard], [replace(guard, arm="ual", seeds=2)], [replace(guard, arm="ual", reason="no value")]):
        assert "AURC of tokens, was not tested against sft" in (objection_to("ual", findings_of([first, *others])) or "")
    assert objection_to("ual", findings_of([first, guard, replace(guard, arm="ual")])) is None
    lines = guard_lines(findings_of([first, guard]).comparisons)
    assert "not tested for ual" in lines[1] and "no arm is worse" in lines[0]


def test_measures_that_were_chosen_after_the_results_promote_nothing() -> None:
    found = findings_of([compared("ual", BETTER)])
    found = replace(found, comparisons=replace(found.comparisons, chosen_after=True))
    assert "chosen after the results" in (objection_to("ual", found) or "")


def test_a_measure_that_was_not_reached_still_stands_against_an_arm_that_is_worse_in_it() -> None:
    worse = replace(compared("ual", UNSURE, "shuffled"), difference=0.1, exploratory=True)
    assert "exploratory" in (
        objection_to("ual", findings_of([compared("ual", BETTER), replace(worse, reason="exploratory")])) or ""
    )
    found = findings_of([compared("ual", BETTER), replace(worse, p_value=0.2)])
    assert objection_to("ual", found) is None
    lower = replace(found, comparisons=replace(found.comparisons, level=0.75))
    assert "against shuffled" in (objection_to("ual", lower) or ""), "the level of the verdicts counts"


def test_an_arm_has_to_be_better_than_every_arm_without_smoothing() -> None:
    found = findings_of([compared("ual", BETTER), compared("ual", UNSURE, "plain")])
    found = replace(found, roles={**found.roles, "plain": "sft"})
    assert "against plain: inconclusive" in (objection_to("ual", found) or "")


def test_better_than_the_untrained_model_is_not_enough_where_an_arm_without_smoothing_lacks_the_measure() -> None:
    """Its calibration is missing, or it was trained with other seeds."""
    against_base = compared("ual", BETTER, "base")
    assert objection_to("ual", findings_of([against_base])) is None
    there = [against_base, compared("sft", UNSURE, "base", "nll"), compared("plain", UNSURE, "base")]
    objection = objection_to("ual", findings_of(there))
    assert objection is not None and objection.endswith("it was not compared with sft")
    found = findings_of([*there, compared("ual", BETTER)])
    assert objection_to("ual", found) is None
    # Of two arms without smoothing, both count; and neither is compared with the other.
    found = replace(found, roles={**found.roles, "plain": "sft"})
    objection = objection_to("ual", found)
    assert objection is not None and objection.endswith("it was not compared with plain")
    better = replace(found, comparisons=replace(found.comparisons, entries=(compared("plain", BETTER, "base"), *there[1:2])))
    assert objection_to("plain", better) is None


VERDICTS = st.sampled_from([BETTER, WORSE, UNSURE])
ENTRIES = st.lists(
    st.builds(
        compared,
        arm=st.sampled_from(["ual", "other"]),
        verdict=VERDICTS,
        reference=st.sampled_from(["sft", "base", "shuffled"]),
        metric=st.sampled_from([PRIMARY[1], "exact_strict"]),
        benchmark=st.sampled_from(["held_out", "gsm8k"]),
    ),
    max_size=8,
)


@given(ENTRIES)
def test_worse_anywhere_or_better_nowhere_is_never_promoted(comparisons: list[Comparison]) -> None:
    mine = [x.verdict for x in comparisons if x.arm == "ual"]
    if WORSE in mine or BETTER not in mine:
        assert objection_to("ual", findings_of(comparisons)) is not None


def write(folder: Path, comparisons: list[Comparison], trained: dict[str, list[str]] | None = None) -> Path:
    """Leave a report, and a training `k` of every arm."""
    for arm in {entry.arm for entry in comparisons}:
        train(folder, arm, "k")
    findings = findings_of(comparisons, trained)
    (folder / "report").mkdir()
    (folder / "report" / "findings.json").write_text(json.dumps(findings.as_dict()))
    return folder


def train(folder: Path, arm: str, key: str, loss: float | None = None) -> Path:
    place = folder / "arms" / arm / "train" / key
    place.mkdir(parents=True)
    (place / "done.json").write_text(
        json.dumps({"figures": {"exported": {"validation_smoothed_loss": loss, "validation_nll": -(loss or 0)}}})
    )
    return place


@pytest.fixture
def promoted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take the place of the store; return the arms that were promoted."""
    arms: list[str] = []

    def note(_: Path, arm: str, __: Path, ___: str | None, ____: str) -> tuple[str, str]:
        arms.append(arm)
        return f"ual-{arm}", "3"

    monkeypatch.setattr(promote, "_promote_version", note)
    return arms


def test_the_only_arm_that_may_be_is_found(tmp_path: Path, promoted: list[str]) -> None:
    folder = write(
        tmp_path, [compared("ual", BETTER), compared("shuffled", UNSURE), compared("sft", BETTER, "base", metric="ece")]
    )
    console = Console(record=True, width=300)
    assert promote.promote([folder], console) == "3"
    assert promoted == ["ual"]
    assert "ual-ual version 3 is now the champion: nll_adjusted on held_out against sft: better" in console.export_text()


def test_an_arm_that_beats_the_arm_without_smoothing_is_preferred_to_it_where_both_may_be(
    tmp_path: Path, promoted: list[str]
) -> None:
    """As plain fine-tuning nearly always beats the model before training."""
    trained = [compared("sft", BETTER, "base"), compared("ual", BETTER, "base"), compared("shuffled", UNSURE)]
    folder = write(tmp_path, [*trained, compared("ual", BETTER)])
    promote.promote([folder], Console(quiet=True))
    promote.promote([folder], Console(quiet=True), "sft")
    assert promoted == ["ual", "sft"]


@pytest.mark.parametrize(
    ("comparisons", "arm", "words"),
    [
        (
            [compared("ual", UNSURE), compared("rank", WORSE)],
            None,
            ["no arm may be", "ual: nll_adjusted", "rank: nll_adjusted", "n 200"],
        ),
        ([compared("ual", BETTER), compared("rank", BETTER)], None, ["several arms", "rank, ual"]),
        ([compared("ual", WORSE)], "ual", ["'ual' is not promoted", "against sft: worse", "-0.1 (-0.2 to -0.01), p 0.02"]),
    ],
)
def test_refusals(
    tmp_path: Path, promoted: list[str], comparisons: list[Comparison], arm: str | None, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        promote.promote([write(tmp_path, comparisons)], Console(quiet=True), arm)
    assert not promoted
    for word in words:
        assert word in str(error.value)


def test_without_a_report_nothing_is_promoted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no report of a run"):
        promote.promote([tmp_path], Console(quiet=True))


@pytest.mark.parametrize("version", [None, 1, 999])
def test_a_report_of_another_version_promotes_nothing(tmp_path: Path, promoted: list[str], version: int | None) -> None:
    file = write(tmp_path, [compared("ual", BETTER)]) / "report" / "findings.json"
    content = {key: value for key, value in json.loads(file.read_text()).items() if key != "version"}
    file.write_text(json.dumps(content | ({} if version is None else {"version": version})))
    with pytest.raises(UserError, match=r"(?s)another version of ual.*ual report RUN --out RUN/report"):
        promote.promote([tmp_path], Console(quiet=True))
    assert not promoted


def test_without_a_training_nothing_is_promoted(tmp_path: Path) -> None:
    findings = promote.read_findings(write(tmp_path, []))
    with pytest.raises(UserError, match="no finished training"):
        promote.trained_folder(tmp_path, "ual", findings)


def test_the_training_that_was_compared_is_promoted_not_a_later_one(tmp_path: Path) -> None:
    folder = write(tmp_path, [compared("ual", BETTER)], {"ual": ["arms/ual/train/k"]})
    later = train(folder, "ual", "later")
    os.utime(later / "done.json", (2e9, 2e9))
    assert promote.trained_folder(folder, "ual", promote.read_findings(folder)) == folder / "arms/ual/train/k"
    (folder / "arms/ual/train/k/done.json").unlink()
    with pytest.raises(UserError, match="no finished training"):
        promote.trained_folder(folder, "ual", promote.read_findings(folder))


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ((1.5, 1.2, 1.3), 1),
        ((1.5, None, 1.2), 0),
        ((float("nan"), 1.2, 1.3), 1),
        ((1.5, float("nan"), 1.3), 2),
        ((float("inf"), 1.2, float("-inf")), 1),
    ],
)
def test_of_several_training_seeds_the_best_on_validation_rows_is_promoted(
    tmp_path: Path, losses: tuple[float | None, ...], best: int
) -> None:
    seeds = [train(tmp_path / f"seed-{seed}", "ual", "k", loss) for seed, loss in enumerate(losses)]
    named = {"ual": [str(place.relative_to(tmp_path)) for place in seeds]}
    findings = promote.read_findings(write(tmp_path, [compared("ual", BETTER)], named))
    assert promote.trained_folder(tmp_path, "ual", findings) == seeds[best]
    (seeds[2] / "done.json").unlink()
    with pytest.raises(UserError, match="no finished training"):
        promote.trained_folder(tmp_path, "ual", findings)


def test_of_several_runs_the_store_of_the_promoted_model_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tmp_path / name for name in ("one", "two", "three")]
    named = [str(train(run, "ual", "k", loss)) for run, loss in zip(runs, (1.5, 1.2, 1.3), strict=True)]
    monkeypatch.setattr(promote, "compare_runs", lambda _: findings_of([compared("ual", BETTER)], {"ual": named}))
    used: list[tuple[Path, Path]] = []

    def note(run: Path, _: str, folder: Path, *__: Any) -> tuple[str, str]:
        used.append((run, folder))
        return "ual-ual", "1"

    monkeypatch.setattr(promote, "_promote_version", note)
    promote.promote(runs, Console(quiet=True))
    assert used == [(runs[1], Path(named[1]))]


def test_a_report_that_names_no_training_will_do_where_there_is_one_only(tmp_path: Path) -> None:
    folder = write(tmp_path, [compared("ual", BETTER)])
    findings = promote.read_findings(folder)
    (tmp_path / "arms/ual/train/interrupted").mkdir()
    assert promote.trained_folder(folder, "ual", findings) == folder / "arms/ual/train/k"
    train(folder, "ual", "other")
    with pytest.raises(UserError, match="does not state which training") as error:
        promote.trained_folder(folder, "ual", findings)
    assert "k, other" in str(error.value)


@pytest.mark.parametrize("recorded", [None, "gone"])
def test_the_store_of_a_scenario_is_that_of_its_experiment_wherever_it_was_moved(
    tmp_path: Path, recorded: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions recorded the first place; MLflow would make an empty store there."""
    root, old = tmp_path / "moved to" / "all", tmp_path / "old" / "mlflow.db"
    place = train(root / "seed-1", "ual", "k", 1.2)
    (place / "model").mkdir()
    (place / "registered.json").write_text(json.dumps({"version": "4"}))
    folder = write(root, [compared("ual", BETTER)], {"ual": ["seed-1/arms/ual/train/k"]})
    (root / "config.yaml").write_text(f"tracking: {{uri: 'sqlite:///{old}'}}\n" if recorded else "{}\n")
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("ual_ray.tracking.models.champion_of", lambda *given: asked.append(given[:3]) or "4")
    with pytest.raises(UserError, match="there is no MLflow store with the model(?s:.*)--uri"):
        promote.promote([folder], Console(quiet=True))
    (tmp_path / "moved to" / "mlflow.db").touch()
    assert promote.promote([folder], Console(quiet=True)) == "4"
    promote.promote([folder], Console(quiet=True), uri="http://127.0.0.1:9")
    (root / "config.yaml").write_text("tracking: {uri: 'http://127.0.0.1:8'}\n")
    promote.promote([folder], Console(quiet=True))
    addresses = [f"sqlite:///{tmp_path}/moved to/mlflow.db", "http://127.0.0.1:9", "http://127.0.0.1:8"]
    assert asked == [(address, "ual-ual", "4") for address in addresses]
    assert not old.parent.exists()
