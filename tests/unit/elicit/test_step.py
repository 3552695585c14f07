"""The line that elicitation prints, and what its scores depend on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.elicit.step import _line, _warnings, measuring
from ual_ray.stats.score_quality import Quality

METRICS: dict[str, Any] = {
    "rows": 7,
    "total_rows": 10,
    "splits": {"train": 7, "test": 3},
    "sources": {"s": 10},
    "bad": 0,
    "bad_reasons": {},
    "duplicates": 0,
    "mean_uncertainty": {"nll": 0.25, "p_true": None},
    "quarantined": 0,
    "reasons": {},
    "prompt_tokens": 1,
    "generated_tokens": 1,
    "calls": 1234,
}


def test_the_line_in_full() -> None:
    expected = "7 of 10 rows scored by demo (7 train, 3 test; 10 s); mean uncertainty: nll 0.250; 0 quarantined; 1,234 calls"
    assert _line(Config(), METRICS) == expected


def test_what_was_left_out_is_in_the_line() -> None:
    shown = _line(Config(), METRICS | {"bad": 2, "bad_reasons": {"no response": 2}, "duplicates": 3})
    assert "; 2 bad rows (2 no response); 3 duplicates left out; mean" in shown
    assert "duplicates" not in _line(Config(), {key: value for key, value in METRICS.items() if key != "duplicates"})


def test_the_cost_is_in_the_line_or_that_it_is_unknown() -> None:
    priced = load(None, ["engine.price_per_million_prompt_tokens=2"])
    assert "; 1,234 calls; cost 2.00" in _line(priced, METRICS | {"prompt_tokens": 1_000_000})
    assert "; 1,234 calls; cost unknown, as the server counts no tokens" in _line(priced, METRICS | {"prompt_tokens": 0})
    assert "cost" not in _line(priced, METRICS | {"prompt_tokens": 0, "calls": 0})


def test_what_auto_took_is_in_the_line() -> None:
    config = load(None, ["elicit.uncertainty=auto", "elicit.self_check=20"])
    taken: dict[str, Any] = METRICS | {
        "uncertainty": "nll",
        "self_check": {"reason": "highest AUROC of 3 estimators in the self-check"},
    }
    assert "nll 0.250; uncertainty = nll, highest AUROC of 3 estimators in the self-check; 0 q" in _line(config, taken)
    sure, unsure = (asdict(Quality(64, 13, 0, 0.75, None, None, low, 0.9)) for low in (0.6, 0.5))
    taken["self_check"]["estimators"] = {"nll": sure, "verbalized_error": unsure}
    warned = {name: [f"{name}!"] for name in ("verbalized_error", "nll")}
    assert _warnings(config, taken | {"truncated": 0, "warnings": warned}) == ["nll!"]
    taken["self_check"]["estimators"]["nll"] = unsure
    assert _warnings(config, taken | {"truncated": 0}) == [
        "the self-check does not show that nll depends on the response: AUROC 0.75 (0.50 to 0.90); not told from chance"
    ]


def test_warnings_are_about_what_smoothing_reads() -> None:
    found = {name: [f"{name}!"] for name in ("verbalized_error", "p_true", "nll", "uncertainty")}
    metrics = METRICS | {"truncated": 1, "warnings": found}
    cut = "14% of rows were truncated for the elicitor"
    assert _warnings(Config(), metrics) == [cut, "verbalized_error!", "uncertainty!"]
    arm = load(None, ["arms.ual.uncertainty=nll"])
    assert _warnings(arm, metrics | {"truncated": 0}) == ["verbalized_error!", "uncertainty!", "nll!"]
    ensemble = load(None, ["elicit.uncertainty=ensemble", "elicit.ensemble=[p_true,nll]", "arms.ual.uncertainty=nll"])
    assert _warnings(ensemble, metrics | {"truncated": 0}) == ["p_true!", "nll!", "uncertainty!"]
    assert _warnings(Config(), METRICS | {"truncated": 0}) == [], "the metrics of a run before there were warnings"


@pytest.mark.parametrize("kind", ["embedding", "nli"])
def test_a_local_grouping_model_counts_by_its_files_and_not_by_its_place(kind: str, tmp_path: Path) -> None:
    def key_of(folder: Path) -> dict[str, Any]:
        return measuring(load(None, [f"elicit.grouping={kind}", f"elicit.{kind}_model={folder}"]))

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "config.json").write_text("{}")
    before = key_of(first)
    assert before["grouping"] is not None
    first.rename(second)
    assert key_of(second) == before
    (second / "model.safetensors").write_text("weights")
    assert key_of(second) != before
    assert measuring(Config())["grouping"] is None
