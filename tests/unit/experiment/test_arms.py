"""Experiments over seeds and scenarios: the rows of a scenario, the pilot, the folders put together."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest
from rich.console import Console

from ual_ray import columns as col
from ual_ray.cli.experiment import _checked
from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.experiment import arms, scenarios
from ual_ray.experiment.arms import _say_unplanned, _together
from ual_ray.experiment.forecast import pilot_of, print_forecast
from ual_ray.experiment.scenarios import (
    check_primary,
    check_scenarios,
    check_sources,
    check_splits,
    count_sources,
    read_splits,
    select_step,
)
from ual_ray.parquet import write_table
from ual_ray.report.findings import Findings
from ual_ray.report.gather import StageFolders
from ual_ray.report.power import power_line, power_lines
from ual_ray.report.primary import record
from ual_ray.run.step import Place, Session
from ual_ray.stats.comparison import Comparison, Comparisons, role_of

NO_POWER = "smallest effect                  not known: run `ual pilot CONFIG`"
SOURCES = ["chat"] * 3 + ["maths"] * 2


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Rows and scored rows of two sources."""
    ids = [f"{place}" for place in range(len(SOURCES))]
    splits = [col.TRAIN, col.TEST, col.TRAIN, col.TRAIN, col.TEST]
    columns = {col.ID: ids, col.SPLIT: splits, col.SOURCE: SOURCES}
    for name in ("rows", "scored"):
        (tmp_path / name).mkdir()
        write_table(
            pa.table(columns | ({col.UNCERTAINTY: [0.1] * 5} if name == "scored" else {})), tmp_path / name / "a.parquet"
        )
    return tmp_path / "rows", tmp_path / "scored"


def session() -> Session:
    return Session(Config(), Console(file=io.StringIO()), None)


def test_a_scenario_holds_the_rows_of_its_sources_of_every_split(data: tuple[Path, Path], tmp_path: Path) -> None:
    rows, scored = select_step(session(), ["maths"], *data, Place(tmp_path / "scenario"))
    for folder in (rows, scored):
        table = pyarrow.dataset.dataset(str(folder), format="parquet").to_table()
        assert sorted(table[col.ID].to_pylist()) == ["3", "4"]
        assert set(table[col.SPLIT].to_pylist()) == {col.TRAIN, col.TEST}
    assert count_sources(rows) == {"maths": 2}
    assert rows != select_step(session(), ["chat"], *data, Place(tmp_path / "scenario"))[0]


def test_a_scenario_of_all_sources_copies_nothing(data: tuple[Path, Path], tmp_path: Path) -> None:
    assert select_step(session(), [], *data, Place(tmp_path / "scenario")) == data
    assert not (tmp_path / "scenario").exists()


def test_a_source_that_is_not_there_is_refused_with_those_that_are(data: tuple[Path, Path]) -> None:
    check_sources(count_sources(data[0]), {"all": (), "maths": ("maths",)})
    with pytest.raises(UserError, match=r"experiment\.scenarios\.maths(?s:.*)math(?s:.*)chat, maths"):
        check_sources(count_sources(data[0]), {"maths": ("math",)})


def test_scenarios_of_a_file_replace_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("experiment: {scenarios: {chat: [dolly], mixed: []}}")
    assert load(tmp_path / "e.yaml").experiment.scenarios == {"chat": ("dolly",), "mixed": ()}
    assert load().experiment.scenarios == {"all": ()}


@pytest.mark.parametrize(
    "bad", ["experiment.seeds=[1,1]", "experiment.seeds=[-1]", "experiment.scenarios.a/b=[]", "experiment.scenarios.elicit=[]"]
)
def test_seeds_that_repeat_and_names_that_are_no_folders_are_refused(bad: str) -> None:
    with pytest.raises(UserError, match="experiment"):
        load(None, [bad])


def test_the_pilot_is_the_first_arm_by_uncertainty_and_its_shuffled_control() -> None:
    config = load(
        None,
        [
            "experiment.learning_rates=[1e-4,2e-4]",
            "arms.ual.map=rank",
            "arms.ual.alpha_max=0.3",
            "experiment.seeds=[5,6,7,8]",
            "output=runs/x",
            "judge.model=demo",
            "judge.more_models=[other]",
            "judge.against=sft",
        ],
    )
    pilot = pilot_of(config, 300)
    assert [*pilot.arms] == ["shuffled", "ual"]
    control = pilot.arms["shuffled"]
    assert (control.map, control.base, control.alpha_max) == ("shuffled_within", "rank", 0.3)
    assert pilot.experiment.learning_rates == ()
    judge = pilot.judge
    assert (judge.models, judge.references) == (("demo",), ("shuffled",)), "its arms alone, by the judge that decides"
    assert (pilot.data.max_rows, pilot.experiment.seeds, pilot.output) == (300, (5, 6, 7), "runs/x-pilot")
    assert pilot_of(load(None, ["data.max_rows=100"]), 300).data.max_rows == 100


def test_a_pilot_without_an_arm_by_uncertainty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("arms: {sft: {map: none}}")
    with pytest.raises(UserError, match="no arm smooths by uncertainty"):
        pilot_of(load(tmp_path / "e.yaml"), 300)


def test_a_dry_run_counts_the_trainings_and_names_the_pilot(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    config = load(None, ["experiment.seeds=[0,1]", "experiment.scenarios={chat: [a], mixed: []}", "arms={sft: {map: none}}"])
    print_forecast(config, tmp_path / "x", console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "12 (2 arms x 2 seeds x 3 scenarios); 15 models to evaluate" in printed
    assert NO_POWER in printed


def found(deviation: float, n: int = 40) -> Findings:
    """Make the findings of a pilot of three seeds."""
    entry = Comparison("ual", "shuffled", "held_out", "x", 0.0, -1, 1, 1, 1, "inconclusive", n, 3, True, deviation, deviation)
    return Findings({}, Comparisons((entry,), 0.95, 1, 0))


@pytest.mark.parametrize("output", ["runs/x", "runs/x/", "./runs/x"])
def test_a_dry_run_reads_the_pilot_of_each_scenario_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["experiment.seeds=[0,1,2,3]", "experiment.scenarios={chat: []}", f"output={output}"]
    config = load(None, given)
    pilot = Path(pilot_of(config, 300).output)
    assert pilot.resolve() == tmp_path / "runs" / "x-pilot"
    for scenario, deviation in (("all", 0.1), ("chat", 0.2), ("dropped", 0.3)):
        folder = pilot / scenario / "report"
        folder.mkdir(parents=True)
        (folder / "findings.json").write_text(json.dumps(found(deviation).as_dict()))
    done = pilot / "all" / "seed-0" / "arms" / "ual" / "train" / "key"
    done.mkdir(parents=True)
    (done / "done.json").write_text(json.dumps({"figures": {"train_rows": 280}, "seconds": 7.0}))
    console = Console(file=io.StringIO(), width=300)
    print_forecast(config, Path(config.output), console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "trainings finished in the pilot  1, 7 s each over 280 rows" in printed
    assert "in 'all', by the pilot, which has fewer questions, that" in printed
    assert "in 'chat', by the pilot" in printed and "dropped" not in printed
    assert "3 seeds " in printed and ", 4 seeds " in printed, "those of the experiment too"
    assert "deviation between seeds 0.1000, from 3 seeds: 0.0521 to 0.6285; n = 40" in printed
    assert NO_POWER not in printed


def test_a_pilot_without_seeds_to_compare_does_not_count_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "x-pilot" / "all" / "report"
    folder.mkdir(parents=True)
    (folder / "findings.json").write_text(json.dumps(Findings({}, Comparisons((), 0.95, 1, 0)).as_dict()))
    console = Console(file=io.StringIO(), width=300)
    print_forecast(load(None, []), tmp_path / "x", console)
    assert NO_POWER in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seeds", "expected"), [([0], (0, 1, 2)), ([1, 0], (1, 0, 2)), ([7], (7, 0, 1)), ([5, 6, 7, 8], (5, 6, 7))]
)
def test_a_pilot_has_the_seeds_that_its_deviation_needs(seeds: list[int], expected: tuple[int, ...]) -> None:
    assert pilot_of(load(None, [f"experiment.seeds={seeds}"]), 300).experiment.seeds == expected


def test_the_control_of_a_pilot_reads_no_uncertainty_by_its_weight() -> None:
    pilot = pilot_of(load(None, ["arms.ual.weight=filter"]), 300)
    assert pilot.arms["ual"].weight == "filter"
    roles = {name: role_of(arm.map, arm.weight) for name, arm in pilot.arms.items()}
    assert roles == {"shuffled": "control", "ual": "ual"}


@pytest.mark.parametrize(
    ("override", "key"),
    [("evaluate.calibration.enabled=false", "evaluate.calibration.enabled"), ("data.validation_share=0", "validation_share")],
)
def test_a_pilot_that_would_measure_nothing_is_refused(override: str, key: str) -> None:
    with pytest.raises(UserError, match=f"(?s)a pilot compares likelihoods.*{key}"):
        pilot_of(load(None, [override]), 300)


def test_a_pilot_decides_by_likelihoods_whatever_the_experiment_does() -> None:
    found = pilot_of(load(None, ["report.primary=[gsm8k.exact_match_strict]"]), 300)
    assert found.primary_measures() == ("held_out.nll_adjusted",)


def test_power_is_given_for_more_seeds_than_were_run() -> None:
    entry = Comparison("ual", "sft", "held_out", "nll", 0.0, -1, 1, 1, 1, "inconclusive", 10, 3, True, 0.3, 0.3)
    line = power_line(entry, 0.95)
    shown = [float(part.split()[-1]) for part in line.split(": ")[1].split(" (")[0].split(", ")]
    assert shown == sorted(shown, reverse=True)
    assert line.startswith("NLL per token, nats, ual - sft: 3 seeds ")


def test_power_against_the_model_before_training_is_told_where_there_is_no_other() -> None:
    entry = Comparison("ual", "base", "held_out", "nll", 0.0, -1, 1, 1, 1, "inconclusive", 10, 3, True, 0.3, 0.3)
    both = (entry, replace(entry, reference="sft"))
    for entries, references in ((both, ["sft"]), (both[:1], ["base"])):
        found = Findings({}, Comparisons(entries, 0.95, 1, 0), {"base": "base", "sft": "sft"})
        assert [line.split(": ")[0].split(" - ")[1] for line in power_lines(found)] == references


def test_power_of_shares_is_in_points_and_given_for_measures_that_will_decide() -> None:
    """A pilot decides by likelihoods alone; at the floor no answer differs, so its variance tells nothing."""
    numbers = (0.0, -1, 1, 1, 1, "inconclusive", 40, 3)
    entry = Comparison("ual", "sft", "gsm8k", "exact_match_strict", *numbers, False, 0.01, 0.02)
    line = power_line(entry, 0.95)
    assert line.startswith("exact match, strict, points, ual - sft: 3 seeds 10.31, ") and "between seeds 1.00, from" in line
    for found, measures, told in (
        (entry, (), False),
        (entry, ("gsm8k.exact_match_strict",), True),
        (replace(entry, seed_deviation=0.0, error=0.0), ("gsm8k.exact_match_strict",), False),
    ):
        lines = power_lines(Findings({}, Comparisons((found,), 0.95, 1, 0)), measures=measures)
        assert ("gsm8k, exact match, strict, points, ual - sft" in "".join(lines)) is told


def test_the_folders_of_all_seeds_are_put_together(tmp_path: Path) -> None:
    base = StageFolders(evaluated={"base": Path("b")}, calibrated={"base": Path("bc")})

    def of_seed(seed: int) -> StageFolders:
        home = Path(f"{seed}")
        evaluated: dict[str, Any] = {"base": Path("b"), "ual": home / "e"}
        return StageFolders(trained={"ual": home / "t"}, evaluated=evaluated, calibrated={"ual": home / "c"})

    found = _together(base, {4: of_seed(4), 7: of_seed(7)}, 0)
    evaluated = {seed: one.evaluated for seed, one in found.items()}
    assert evaluated == {0: {"base": Path("b")}, 4: {"ual": Path("4/e")}, 7: {"ual": Path("7/e")}}
    assert (found[0].calibrated, found[7].calibrated) == ({"base": Path("bc")}, {"ual": Path("7/c")})
    # The seed of the configuration may be one that arms are trained with.
    assert _together(base, {4: of_seed(4)}, 4)[4].evaluated == {"base": Path("b"), "ual": Path("4/e")}


def test_seeds_that_will_not_count_are_said_before_they_are_trained(tmp_path: Path) -> None:
    sink = io.StringIO()
    for seeds in ("[0,1,2]", "[0,1,2,5]"):
        config = load(None, [f"experiment.seeds={seeds}"])
        record(config, tmp_path)
        _say_unplanned(Session(config, Console(file=sink, width=200), None), tmp_path)
        place = tmp_path / "seed-0" / "arms" / "ual" / "evaluate" / "k"
        place.mkdir(parents=True, exist_ok=True)
        (place / "figures.json").write_text("{}")
    (line,) = sink.getvalue().splitlines()
    assert line.split(maxsplit=1)[1].startswith("5 do not count: no plan of 3 or more named them")


def test_a_source_that_small_data_do_not_have_is_found_before_scoring(tmp_path: Path) -> None:
    rows = [f'{{"instruction": "q{n}", "output": "a", "source": "{source}"}}' for n, source in enumerate(20 * SOURCES)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    given = [f"data.path={tmp_path / 'rows.jsonl'}", "experiment.scenarios.one=[maths]"]
    check_scenarios(load(None, given))
    with pytest.raises(UserError, match=r"(?s)scenarios\.two.*art.*expected: chat, maths"):
        check_scenarios(load(None, [*given, "experiment.scenarios.two=[art]"]))
    # A mixture is of the sources that a scenario trains on.
    both = [given[0], "experiment.scenarios.both=[maths, chat]", "train.mixture={maths: 2, chat: 1}"]
    check_scenarios(load(None, both))
    with pytest.raises(UserError, match=r"(?s)train\.mixture does not have .*scenarios\.one.*no row to train on is of 'chat'"):
        check_scenarios(load(None, [*both, "experiment.scenarios.one=[maths]"]))


def test_a_mixture_needs_no_weight_for_sources_that_no_scenario_trains_on(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "output": "a", "source": source} for n, source in enumerate(40 * ["maths", "chat", "art"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment = {"scenarios": {"main": ["maths", "chat"]}}
    train = {"mixture": {"maths": 2, "chat": 1}}
    content = {
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "experiment": experiment,
        "train": train,
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    _checked(load(tmp_path / "config.yaml"))
    for change, says in (
        ("train.mixture.art=1", r"scenarios\.main.*no row to train on is of 'art'"),
        ("experiment.scenarios.every=[]", r"scenarios\.every.*no weight for 'art'"),
    ):
        with pytest.raises(UserError, match=f"(?s){says}"):
            _checked(load(tmp_path / "config.yaml", [change]))


def test_a_scenario_without_rows_of_a_split_is_found_before_training(tmp_path: Path) -> None:
    config = load(None, ["experiment.scenarios={one: [maths], two: [art]}"])
    everywhere = {(source, split) for source in ("maths", "art", "chat") for split in col.SPLITS}
    check_splits(everywhere, config)
    with pytest.raises(
        UserError, match=r"(?s)scenarios\.two: no row of its sources is in the split 'validation'.*art: rows in"
    ):
        check_splits(everywhere - {("art", "validation")}, config)
    none = load(None, ["experiment.scenarios={two: [art]}", "data.validation_share=0"])
    check_splits(everywhere - {("art", "validation")}, none)
    columns = {col.SOURCE: ["art", "art", "chat"], col.SPLIT: ["train", "train", "test"]}
    write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert read_splits(tmp_path) == {("art", "train"), ("chat", "test")}


@pytest.mark.parametrize(
    ("primary", "sources", "more", "found"),
    [
        ("gsm8k.exact_match_strict", "[chat]", (), "no question of evaluate.benchmarks.gsm8k"),
        ("gsm8k.exact_match_strict", "[maths]", (), None),
        ("gsm8k.exact_match_strict", "[]", (), None),
        ("gsm8k.exact_match_strict", "[chat]", ("evaluate.benchmarks.gsm8k.path=questions.jsonl",), None),
        ("win_rate", "[maths]", (), "no question of evaluate.benchmarks.open"),
        ("win_rate", "[chat]", (), None),
        ("held_out.nll_adjusted", "[chat]", (), None),
    ],
)
def test_a_primary_measure_of_which_a_scenario_has_no_question_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, primary: str, sources: str, more: tuple[str, ...], found: str | None
) -> None:
    replies = {"maths": "It is 3.\n#### 3", "chat": "Blue."}
    rows = [{"instruction": f"q{n}", "output": replies[name], "source": name} for n in range(60) for name in replies]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = ["judge.model=demo", "evaluate.benchmarks.open.kind=open_ended", f"data.path={tmp_path / 'rows.jsonl'}"]
    named = [f"experiment.scenarios={{one: {sources}, two: []}}", f"experiment.primary.one=[{primary}]"]
    config = load(None, [*judge, *named, *more])
    asked = {"role": "user", "content": "q"}
    table = [
        {"source": row["source"], "split": "test", "messages": [asked, {"role": "assistant", "content": row["output"]}]}
        for row in rows
    ]
    write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    for check in (partial(check_primary, tmp_path / "rows.parquet"), check_scenarios):
        with (
            nullcontext()
            if found is None
            else pytest.raises(UserError, match=f"(?s)experiment.primary.one: '{primary}'.*{found}")
        ):
            check(config)
    monkeypatch.setattr(scenarios, "PEEKED", 20)
    check_scenarios(config)


def test_judging_waits_for_the_arm_that_it_is_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[list[str], str | None]] = []

    def measure(session: Session, root: Path, rows: Path, questions: Path, models: Any, results: Any, **_: Any) -> None:
        judged.append(([*models, *results.evaluated], session.config.judge.model))
        results.evaluated |= {name: root / name for name in models}

    for name, stub in {
        "measure": measure,
        "train_seeds": lambda seeds, *_: {seed: StageFolders(trained={"sft": tmp_path, "ual": tmp_path}) for seed in seeds},
        "ask": lambda *_: tmp_path,
        "tokens_step": lambda *_: tmp_path,
        "report": lambda *_: Findings({}, Comparisons((), 0.95, 1, 0)),
        "_write_config": lambda *_: None,
    }.items():
        monkeypatch.setattr(arms, name, stub)
    config = load(None, ["judge.model=demo", "experiment.seeds=[0,1]"])
    arms._scenario(Session(config, Console(file=io.StringIO()), None), "all", tmp_path, tmp_path)
    assert judged == [(["base"], None)] + 2 * [(["sft", "ual", "base"], "demo")]


@pytest.mark.parametrize("rates", ["[]", "[1e-4, 2e-4]"])
def test_a_forced_experiment_trains_the_chosen_trials_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: str) -> None:
    forced: dict[int, Any] = {}

    def train_seeds(sessions: dict[int, Session], *_: Any) -> dict[int, StageFolders]:
        forced.update({seed: one.force for seed, one in sessions.items()})
        return {seed: StageFolders() for seed in sessions}

    for name, stub in {
        "measure": lambda *_, **__: None,
        "tuned": lambda session, *_: session,
        "train_seeds": train_seeds,
        "ask": lambda *_: tmp_path,
        "tokens_step": lambda *_: tmp_path,
        "report": lambda *_: Findings({}, Comparisons((), 0.95, 1, 0)),
        "_write_config": lambda *_: None,
    }.items():
        monkeypatch.setattr(arms, name, stub)
    config = load(None, ["experiment.seeds=[4,5]", f"experiment.learning_rates={rates}"])
    every: Any = frozenset({"train", "evaluate"})
    arms._scenario(Session(config, Console(file=io.StringIO()), None, every), "all", tmp_path, tmp_path)
    assert forced == {4: every if rates == "[]" else {"evaluate"}, 5: every}
