"""The primary measures: which there are, that they are recorded before the results, and what happens when they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ual_ray.config.evaluate import ADJUSTED_NLL
from ual_ray.config.load import dump, load
from ual_ray.errors import UserError
from ual_ray.report.primary import PRIMARY_FILE, decisive, not_counted, planned_seeds, record
from ual_ray.stats.comparison import PRIMARY, UNRECORDED

JUDGE = ["judge.model=big", "evaluate.benchmarks.chat.kind=open_ended"]
NO_CALIBRATION = "evaluate.calibration.enabled=false"
MATCH = "gsm8k.exact_match_strict"


@pytest.mark.parametrize(
    ("overrides", "measures"),
    [
        ([], (MATCH, ADJUSTED_NLL)),
        (JUDGE, (MATCH, "win_rate", ADJUSTED_NLL)),
        ([NO_CALIBRATION], (MATCH,)),
        (["evaluate.benchmarks.sums.kind=math"], (MATCH, "sums.exact_match_math", ADJUSTED_NLL)),
        ([f"report.primary=[{ADJUSTED_NLL},gsm8k.exact_match_flexible]"], (ADJUSTED_NLL, "gsm8k.exact_match_flexible")),
    ],
)
def test_what_decides_by_default_is_what_the_run_measures(overrides: list[str], measures: tuple[str, ...]) -> None:
    assert load(overrides=overrides).primary_measures() == measures
    assert ".".join(PRIMARY) == ADJUSTED_NLL


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["report.primary=[win_rate]"], "'win_rate' needs judge.model, and a benchmark of kind open_ended"),
        (["report.primary=[win_rate]", "judge.model=big"], "'win_rate' needs"),
        ([f"report.primary=[{ADJUSTED_NLL}]", NO_CALIBRATION], "needs evaluate.calibration.enabled=true"),
        ([f"report.primary=[{ADJUSTED_NLL}]", "data.validation_share=0"], "data.validation_share above 0"),
        (["report.primary=[held_out.nll]"], f"'held_out.nll' is not measured; expected {MATCH}, gsm8k.exact_match_flexible, "),
        (["report.primary=[]"], "one measure or more"),
        ([f"report.primary=[{MATCH},{MATCH}]"], "each once"),
    ],
)
def test_what_is_not_measured_cannot_decide(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        load(overrides=overrides)
    assert words in str(error.value)


CHAT = "experiment.primary.chat=[win_rate,held_out.nll_scaled]"
SCENARIOS = ["experiment.scenarios={chat: [dolly], sums: [gsm8k]}"]


def test_a_scenario_has_measures_of_its_own() -> None:
    config = load(overrides=[*JUDGE, *SCENARIOS, CHAT])
    assert config.in_scenario("chat").primary_measures() == ("win_rate", "held_out.nll_scaled")
    assert config.in_scenario("sums").primary_measures() == config.primary_measures() == (MATCH, "win_rate", ADJUSTED_NLL)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (SCENARIOS, "experiment.primary.chat: 'win_rate' needs judge.model"),
        ([*SCENARIOS, *JUDGE, "experiment.primary.chat=[chat.exact]"], "experiment.primary.chat: 'chat.exact' is not measured"),
        ([*SCENARIOS, *JUDGE, "experiment.primary.sums=[]"], "experiment.primary.sums: one measure or more, each once"),
        (JUDGE, "there is no scenario chat; expected all"),
    ],
)
def test_what_a_scenario_does_not_measure_cannot_decide_there(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        load(overrides=[CHAT, *overrides])
    assert words in str(error.value)


def run_with(root: Path, *overrides: str) -> Path:
    """Start a run: its configuration, and its record."""
    root.mkdir(parents=True, exist_ok=True)
    config = load(overrides=overrides)
    (root / "config.yaml").write_text(dump(config))
    record(config, root)
    return root


def answered(root: Path, below: str = "arms/ual/evaluate/k") -> None:
    (root / below).mkdir(parents=True)
    (root / below / "figures.json").write_text("{}")


OTHER = f"report.primary=[{ADJUSTED_NLL}]"


@pytest.mark.parametrize("below", ["arms/ual/evaluate/k", "seed-1/arms/ual/evaluate/k"])
def test_measures_that_change_after_the_first_results_are_told(tmp_path: Path, below: str) -> None:
    run_with(tmp_path)
    assert decisive([run_with(tmp_path, OTHER)]) == ((ADJUSTED_NLL,), False), "nothing was seen yet"
    answered(tmp_path, below)
    assert decisive([run_with(tmp_path, OTHER)]) == ((ADJUSTED_NLL,), False)
    assert decisive([run_with(tmp_path, f"report.primary=[{MATCH}]")]) == ((MATCH,), True)


def test_a_benchmark_that_is_added_later_does_not_decide(tmp_path: Path) -> None:
    answered(run_with(tmp_path))
    run_with(tmp_path, "evaluate.benchmarks.sums.kind=math")
    assert decisive([tmp_path]) == ((MATCH, ADJUSTED_NLL), False)


def test_a_record_that_was_edited_or_differs_between_runs_is_told(tmp_path: Path) -> None:
    one, two = run_with(tmp_path / "one"), run_with(tmp_path / "two", OTHER)
    assert decisive([one, two]) == ((MATCH, ADJUSTED_NLL), True)
    content = json.loads((one / PRIMARY_FILE).read_text())
    (one / PRIMARY_FILE).write_text(json.dumps(content | {"measures": [ADJUSTED_NLL]}))
    assert decisive([one]) == ((ADJUSTED_NLL,), True)


def test_results_without_a_record_have_the_measure_of_older_versions(tmp_path: Path) -> None:
    answered(tmp_path)
    run_with(tmp_path)
    assert not (tmp_path / PRIMARY_FILE).exists()
    assert decisive([tmp_path]) == (UNRECORDED, False)
    assert decisive([tmp_path / "elsewhere"]) == (UNRECORDED, False)


@pytest.mark.parametrize("level", ["0.6", "0.99"])
def test_a_level_that_changes_after_the_first_results_is_told(tmp_path: Path, level: str) -> None:
    root = run_with(tmp_path)
    answered(root)
    assert decisive([root]) == ((MATCH, ADJUSTED_NLL), False)
    assert decisive([run_with(root, f"evaluate.confidence={level}")]) == ((MATCH, ADJUSTED_NLL), True)


def test_a_level_is_the_configurations_until_there_are_results(tmp_path: Path) -> None:
    run_with(tmp_path)
    assert not decisive([run_with(tmp_path, "evaluate.confidence=0.9")])[1]


def test_a_record_without_a_level_is_of_an_older_version(tmp_path: Path) -> None:
    root = run_with(tmp_path, "evaluate.confidence=0.9")
    content = json.loads((root / PRIMARY_FILE).read_text())
    (root / PRIMARY_FILE).write_text(json.dumps({key: content[key] for key in ("measures", "digest")}))
    answered(root)
    assert not decisive([root])[1]


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([[0, 1, 2], [0, 1, 2, 3]], {0, 1, 2}),
        ([[0], [0, 7]], {0, 7}),
        ([[0], [7], [0, 7, 9]], {0, 7}),
        ([[0], [1, 2, 3]], {1, 2, 3}),
        ([[0], [0, 1, 2, 3, 4]], {1, 2, 3, 4}),
        ([[0, 1], [0, 1, 2]], {0, 1}),
        ([[0, 1], [0, 1, 2, 3]], {0, 1}),
        ([[0, 1], [0, 1, 2], [2, 3, 4]], {0, 1}),
        ([[0, 1], [0, 1, 2], [0, 1, 2, 3, 4, 5]], {3, 4, 5}),
        ([[0, 1], [2, 3, 4], [5, 6, 7, 8]], {2, 3, 4}),
    ],
)
def test_seeds_that_were_looked_at_before_a_plan_of_enough_do_not_count(
    tmp_path: Path, tried: list[list[int]], expected: set[int]
) -> None:
    """Simulated without an effect: two seeds, then the best of six numbers of further ones, is `better` or `worse` in 9%."""
    for seeds in tried:
        run_with(tmp_path, f"experiment.seeds={seeds}")
        for seed in seeds:
            (tmp_path / f"seed-{seed}/arms/ual/evaluate/k").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"seed-{seed}/arms/ual/evaluate/k/figures.json").write_text("{}")
    assert planned_seeds([tmp_path]) == planned_seeds([tmp_path / "seed-0"]) == expected
    assert not decisive([tmp_path])[1]


def test_planned_seeds_without_results_stay_in_the_plan_that_follows(tmp_path: Path) -> None:
    run_with(tmp_path, "experiment.seeds=[0,1]")
    answered(tmp_path, "seed-0/arms/ual/evaluate/k")
    run_with(tmp_path, "experiment.seeds=[0,1,2,3]")
    assert planned_seeds([tmp_path]) == {1, 2, 3}


@pytest.mark.parametrize(("planned", "fix"), [(2, "Name 3 or more without results."), (3, "Plan them in a new output folder.")])
def test_seeds_that_do_not_count_are_told_with_what_to_do(planned: int, fix: str) -> None:
    told = f"5, 9 do not count: no plan of 3 or more named them before the first results. {fix}"
    assert not_counted([5, 9], planned) == told


@pytest.mark.parametrize("name", ["run", "seed-7", "run/seed-7"])
def test_a_run_and_a_folder_without_a_record_have_no_planned_seeds(tmp_path: Path, name: str) -> None:
    """Also where a run is called as the folder of an experiment's seed, or is in another run's folder."""
    around, run = run_with(tmp_path / "run"), run_with(tmp_path / name, "seed=7")
    assert planned_seeds([run]) == planned_seeds([around]) == planned_seeds([tmp_path / "elsewhere"]) == set()
