"""Estimators of other packages: tried before a run, and never believed with what is not a number in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import pytest
from added import add
from scoring_engines import HALVES, by_kind, config, row

from ual_ray import preflight
from ual_ray.config.load import load
from ual_ray.config.registry import ENGINES, ESTIMATORS
from ual_ray.elicit.known import asked_of
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.elicit.step import measuring
from ual_ray.errors import UserError

CODE = """
from dataclasses import dataclass
from ual_ray.elicit.estimators import Estimate, Estimator
from ual_ray.engines.requests import Choice, Likelihood, turns

@dataclass(frozen=True)
class Mine(Estimator):
    summary = "Mine."

    @classmethod
    def build(cls, config, seed):
        return cls()

    def requests(self, messages, attempt=0):
        return [Choice((*turns(messages), ("user", "Is it?")), ("Yes", "No"))]

    def reduce(self, results, messages):
        return Estimate(0.25, 1.5)
"""
ASKED = '[Choice((*turns(messages), ("user", "Is it?")), ("Yes", "No"))]'
REDUCED = {
    "Estimate(float('nan'), 1.0)": "estimator: returned uncertainty nan, raw 1.0: not finite numbers",
    "Estimate(0.5, float('inf'))": "estimator: returned uncertainty 0.5, raw inf: not finite numbers",
    "Estimate('0.5', 1.0)": "estimator: returned uncertainty '0.5', raw 1.0: not finite numbers",
    "Estimate(7, 1.0)": "estimator: returned uncertainty 7, which is not in [0, 1]",
    "Estimate(-0.1, 1.0)": "estimator: returned uncertainty -0.1, which is not in [0, 1]",
    "0.5": "estimator: returned float in place of an Estimate",
    "None": "estimator: returned NoneType in place of an Estimate",
}
OTHERS = {
    (ASKED, "[]"): "cannot be used\n  got: []",
    (ASKED, "['What?']"): "cannot be used\n  got: ['What?']",
    (ASKED, "[Likelihood(turns(messages))]"): "needs_likelihood",
    ('    summary = "Mine."', ""): "no summary",
    ("Estimate(0.25, 1.5)", "1 / 0"): "fails\n  got: ZeroDivisionError: division by zero (line 18 of",
    ("return cls()", "raise KeyError('bug')"): "fails\n  got: KeyError: 'bug' (line 12 of",
    ("    def requests", "    def asks"): "fails\n  got: TypeError: Can't instantiate abstract class Mine",
}


def added(patch: pytest.MonkeyPatch, folder: Path, old: str = "", new: str = "") -> Path:
    assert old in CODE
    return add(patch, folder, ESTIMATORS, CODE.replace(old, new) if old else CODE, mine="Mine")


def elicit() -> object:
    return load(None).elicit.model_copy(update={"estimators": ("mine",), "uncertainty": "mine"})


@pytest.mark.parametrize(("body", "why"), REDUCED.items())
def test_a_row_has_no_score_where_an_estimator_gives_none(
    body: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(monkeypatch, tmp_path, "Estimate(0.25, 1.5)", f"Estimate(0.25, 1.5) if 'ok' in messages[-1]['content'] else {body}")
    settings = config("p_true").model_copy(update={"estimators": ("mine",), "uncertainty": "mine"})
    good, bad = ScoreRows(settings)([row("a0", answer="ok"), row("b0", answer="bad")], by_kind(HALVES, HALVES))
    assert (good["uncertainty_mine"], good["raw_mine"], good["status"], good["error"]) == (0.25, 1.5, "ok", None)
    assert (bad["uncertainty_mine"], bad["raw_mine"], bad["status"]) == (None, None, "quarantined")
    assert bad["error"] == f"{why} (mine)"


@pytest.mark.parametrize(("body", "why"), REDUCED.items())
def test_estimates_are_tried_before_a_run(body: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added(monkeypatch, tmp_path, "Estimate(0.25, 1.5)", body)
    with pytest.raises(UserError) as error:
        preflight.check_elicitor(load(None).model_copy(update={"elicit": elicit()}))
    assert f"the estimator 'mine' cannot be used\n  got: {why}\n" in str(error.value)
    assert "fix: correct added_by_others:Mine" in str(error.value)


@pytest.mark.parametrize(("change", "why"), OTHERS.items())
def test_estimators_are_tried_before_a_run(
    change: tuple[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(monkeypatch, tmp_path, *change)
    with pytest.raises(UserError) as error:
        preflight.check_elicitor(load(None).model_copy(update={"elicit": elicit()}))
    assert "the estimator 'mine'" in str(error.value) and why in str(error.value)


def test_a_good_one_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added(monkeypatch, tmp_path)
    preflight.check_elicitor(load(None).model_copy(update={"elicit": elicit()}))


def test_with_other_code_rows_are_scored_again_and_nothing_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = added(monkeypatch, tmp_path)
    settings = load(None).model_copy(update={"elicit": elicit()})
    before = measuring(settings)
    file.write_text(CODE.replace("0.25", "0.75"), encoding="utf-8")
    after = measuring(settings)
    assert before["elicit"]["added"] != after["elicit"]["added"]
    assert before | {"elicit": after["elicit"]} == after and asked_of(before) == asked_of(after)


def test_an_engine_of_other_code_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = add(monkeypatch, tmp_path, ENGINES, "class Mine: pass", mine="Mine")
    engine = load(None).engine.model_copy(update={"kind": "mine"})
    settings = load(None).model_copy(update={"engine": engine})
    before = asked_of(measuring(settings))
    file.write_text("class Mine: x = 1", encoding="utf-8")
    assert asked_of(measuring(settings)) != before
