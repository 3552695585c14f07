"""The choice of learning rates: as many trials for every arm, by validation rows, recorded, and used by all seeds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.experiment import tuning
from ual_ray.experiment.forecast import print_forecast
from ual_ray.run.step import Session

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
    """Train nothing: a model's name tells its arm and its learning rate."""
    made: list[tuple[str, float, int, Path]] = []

    def train_arms(session: Session, _: Path, __: Path, ___: Path, home: Path, ____: Any) -> dict[str, str]:
        rates = {arm: spec.training(session.config.train).learning_rate for arm, spec in session.config.arms.items()}
        made.extend((arm, rate, session.config.seed, home) for arm, rate in rates.items())
        return {arm: json.dumps([arm, rate]) for arm, rate in rates.items()}

    def validation_step(_: Session, arm: str, model: str, *__: Any) -> SimpleNamespace:
        assert json.loads(model)[0] == arm
        return SimpleNamespace(metrics={"scaled_nll": LOSSES[tuple(json.loads(model))]})

    monkeypatch.setattr(tuning, "train_arms", train_arms)
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
    assert "12 (2 arms x (4 seeds + 2 learning rates) x 1 scenarios); 9 models to evaluate" in printed


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    assert tuning.best_rate({1e-3: float("nan"), 1e-4: 1.0, 1e-5: float("inf"), 1e-6: 1.0}) == 1e-4
