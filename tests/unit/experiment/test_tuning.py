"""The choice of learning rates: as many trials for every arm, by validation rows, recorded, and used by all seeds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from ual_ray.config.load import load
from ual_ray.errors import DivergedError, UserError
from ual_ray.experiment import tuning
from ual_ray.experiment.forecast import print_forecast
from ual_ray.report.caveats import caveats_of
from ual_ray.report.findings import Findings
from ual_ray.report.table import tables
from ual_ray.run.step import Session
from ual_ray.stats.comparison import Comparisons

LOSSES = {
    ("sft", 1e-4): 1.5,
    ("sft", 2e-4): 1.2,
    ("sft", 5e-4): 1.2,
    ("ual", 1e-4): 1.1,
    ("ual", 2e-4): 1.3,
    ("ual", 5e-4): 1.4,
}
RATES = "experiment.learning_rates=[1e-4, 2e-4, 5e-4]"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int, Path]]:
    """Train nothing: a model's folder tells its arm and its learning rate. A rate without a loss diverges."""
    made: list[tuple[str, float, int, Path]] = []

    def train_arm(
        session: Session, arm: str, smoothed: Path, _: Path, __: Path, home: Path, *, register: bool, trial: bool
    ) -> SimpleNamespace:
        assert trial and not register and smoothed == Path(arm), "of the arm's own alphas"
        rate = session.config.arms[arm].training(session.config.train).learning_rate
        made.append((arm, rate, session.config.seed, home))
        if (arm, rate) not in LOSSES:
            raise DivergedError(f"the loss is nan at {rate:g}", fix="nothing")
        return SimpleNamespace(folder=Path(f"{arm}={rate}"))

    def validation_step(_: Session, arm: str, model: str, *__: Any) -> SimpleNamespace:
        trained, rate = Path(model).parent.name.split("=")
        assert trained == arm
        return SimpleNamespace(metrics={"scaled_nll": LOSSES[arm, float(rate)]})

    monkeypatch.setattr(tuning, "smooth_arm", lambda _, arm, *__: Path(arm))
    monkeypatch.setattr(tuning, "train_arm", train_arm)
    monkeypatch.setattr(tuning, "validation_step", validation_step)
    return made


def session(*overrides: str, parent: Any = None) -> Session:
    return Session(load(None, [*overrides]), Console(file=io.StringIO(), width=200), None, parent=parent)


def test_every_arm_gets_its_best_rate_after_as_many_trials_of_the_first_seed(tmp_path: Path, trials: list[Any]) -> None:
    tables: dict[str, Any] = {}
    parent = SimpleNamespace(table=lambda columns, name: tables.update({name: columns}))
    own = session(RATES, "experiment.seeds=[4, 5]", parent=parent)
    found = tuning.tuned(own, tmp_path, tmp_path, tmp_path, tmp_path)
    assert {arm: spec.learning_rate for arm, spec in found.config.arms.items()} == {"sft": 2e-4, "ual": 1e-4}
    assert found.config.experiment.learning_rates == (), "its configuration can be read again"
    assert type(found.config).model_validate(found.config.model_dump()) == found.config
    assert sorted(trials) == sorted((arm, rate, 4, tmp_path / "seed-4") for arm, rate in LOSSES)
    recorded = json.loads((tmp_path / tuning.TRIALS_FILE).read_text())["trials"]
    assert {(x["arm"], x["learning_rate"]): x["validation_nll_scaled"] for x in recorded} == LOSSES
    assert [(x["arm"], x["learning_rate"]) for x in recorded if x["chosen"]] == [("sft", 2e-4), ("ual", 1e-4)]
    assert tables["tables/learning_rates.json"]["arm"] == [x["arm"] for x in recorded]
    printed = own.console.file.getvalue()  # type: ignore[attr-defined]
    assert "ual: 0.0001, of 3 by validation NLL after scaling (0.0001: 1.1000" in printed


def test_without_rates_nothing_is_tried(tmp_path: Path, trials: list[Any]) -> None:
    own = session()
    assert tuning.tuned(own, tmp_path, tmp_path, tmp_path, tmp_path) is own
    assert not trials and not (tmp_path / tuning.TRIALS_FILE).exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([RATES, "arms.ual.learning_rate=1e-3"], "arms.ual.learning_rate is set"),
        ([RATES, "data.validation_share=0"], "data.validation_share above 0"),
        (["experiment.learning_rates=[1e-4, 1e-4]"], "must be different, and above 0"),
        (["experiment.learning_rates=[0]"], "must be different, and above 0"),
    ],
)
def test_rates_that_cannot_be_tried_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        session(*overrides)


def test_a_dry_run_counts_the_trials(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_forecast(load(None, [RATES, "experiment.seeds=[0,1,2,3]"]), tmp_path / "x", console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "12 (2 arms x (4 seeds + 2 learning rates) x 1 scenario); 9 models to evaluate" in printed


def test_a_rate_that_diverges_has_lost_and_is_recorded_with_its_reason(tmp_path: Path, trials: list[Any]) -> None:
    own = session("experiment.learning_rates=[1e-4, 2e-4, 9]")
    found = tuning.tuned(own, tmp_path, tmp_path, tmp_path, tmp_path)
    assert {arm: spec.learning_rate for arm, spec in found.config.arms.items()} == {"sft": 2e-4, "ual": 1e-4}
    recorded = json.loads((tmp_path / tuning.TRIALS_FILE).read_text())["trials"]
    lost = [x for x in recorded if x["validation_nll_scaled"] is None]
    assert [(x["arm"], x["learning_rate"], x["diverged"], x["chosen"]) for x in lost] == [
        ("sft", 9.0, "the loss is nan at 9", False),
        ("ual", 9.0, "the loss is nan at 9", False),
    ]
    printed = own.console.file.getvalue()  # type: ignore[attr-defined]
    assert "sft: 0.0002, of 3, 1 of them diverged, by validation NLL after scaling (" in printed and "9: diverged)" in printed


def test_an_arm_that_diverges_at_every_rate_is_an_error_that_names_the_key(tmp_path: Path, trials: list[Any]) -> None:
    with pytest.raises(UserError, match=r"(?s)experiment\.learning_rates: the arm 'sft' diverged.*8: the loss is nan.*lower"):
        tuning.tuned(session("experiment.learning_rates=[8, 9]"), tmp_path, tmp_path, tmp_path, tmp_path)
    assert len(json.loads((tmp_path / tuning.TRIALS_FILE).read_text())["trials"]) == len(trials) == 4


@pytest.mark.parametrize("nll", [float("nan"), float("inf")])
def test_a_model_whose_nll_is_not_finite_has_lost(
    tmp_path: Path, trials: list[Any], monkeypatch: pytest.MonkeyPatch, nll: float
) -> None:
    monkeypatch.setitem(LOSSES, ("sft", 2e-4), nll)
    found = tuning.tuned(session(RATES), tmp_path, tmp_path, tmp_path, tmp_path)
    assert found.config.arms["sft"].learning_rate == 5e-4
    recorded = json.loads((tmp_path / tuning.TRIALS_FILE).read_text())["trials"]
    assert [x["diverged"] for x in recorded if x["diverged"]] == [f"the validation NLL is {nll}"]


def test_trials_of_an_earlier_configuration_are_forgotten(tmp_path: Path, trials: list[Any]) -> None:
    (tmp_path / tuning.TRIALS_FILE).write_text("{}")
    tuning.tuned(session(), tmp_path, tmp_path, tmp_path, tmp_path)
    assert not (tmp_path / tuning.TRIALS_FILE).exists()


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ("[1e-4, 2e-4, 5e-4]", ["ual 0.0001, the smallest"]),
        ("[5e-4, 1e-4]", ["sft 0.0005, the largest", "ual 0.0001, the smallest"]),
        ("[1e-4, 9]", ["sft 0.0001, the smallest", "ual 0.0001, the smallest"]),
        ("[1e-4]", []),
    ],
)
def test_a_rate_at_an_end_of_those_that_were_tried_is_told(
    tmp_path: Path, trials: list[Any], rates: str, told: list[str]
) -> None:
    own = session(f"experiment.learning_rates={rates}")
    tuning.tuned(own, tmp_path, tmp_path, tmp_path, tmp_path)
    listed = json.loads((tmp_path / tuning.TRIALS_FILE).read_text())["trials"]
    caveats = caveats_of(Findings({}, Comparisons((), 0.95, 1, 0), trials=listed), 0)
    printed = cast(io.StringIO, own.console.file).getvalue()
    for texts in (caveats, " ".join(printed.split()).split("learning rate")):
        found = [text for text in texts if "at an end of those" in text]
        assert len(found) == bool(told)
        assert all(one in found[0] for one in told) and (not told or found[0].count(", the ") == len(told))


def test_the_report_shows_every_trial(tmp_path: Path, trials: list[Any]) -> None:
    tuning.tuned(session("experiment.learning_rates=[1e-4, 9]"), tmp_path, tmp_path, tmp_path, tmp_path)
    listed = json.loads((tmp_path / tuning.TRIALS_FILE).read_text())["trials"]
    findings = Findings.from_dict(json.loads(json.dumps(Findings({}, Comparisons((), 0.95, 1, 0), trials=listed).as_dict())))
    text = tables(findings)["trials"].markdown()
    assert "| sft | 0.0001 | 1.5000 | chosen |" in text and "| ual | 9 | – | diverged: the loss is nan at 9 |" in text
