"""Which training seeds a verdict counts: those that were planned before the results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from finished_runs import console, evaluated, run_of, scenario_of

from ual_ray.config.files import read_json
from ual_ray.report.findings import Findings
from ual_ray.report.step import report_on
from ual_ray.stats.comparison import described


@pytest.mark.parametrize("given", ["all", "", "seeds"])
@pytest.mark.parametrize(
    ("planned", "trained", "counted", "verdict"),
    [
        ([0, 1, 2], [0, 1, 2], 3, "better"),
        ([0, 1, 2], [0, 1, 2, 3, 4], 3, "better"),
        ([0, 1, 2, 3], [0, 1, 2], 3, "inconclusive"),
        ([0, 1, 2, 3], [0, 1, 2, 4], 3, "inconclusive"),
    ],
)
@pytest.mark.slow
def test_the_verdict_is_that_of_the_planned_seeds(
    tmp_path: Path, planned: list[int], trained: list[int], counted: int, verdict: str, given: str
) -> None:
    """Reported on as a scenario, as an experiment of one, or seed by seed, which has no model before training."""
    root = scenario_of(tmp_path / "all", planned, trained)
    shutil.copy(root / "config.yaml", tmp_path)
    runs = [root / f"seed-{seed}" for seed in trained] if given == "seeds" else [tmp_path / given]
    found = report_on(runs, None, console()[0])
    (entry,) = [x for x in found.comparisons.entries if (x.arm, x.reference) == ("ual", "sft") and x.primary]
    assert (entry.seeds, entry.verdict, found.seeds["ual"]) == (counted, verdict, counted)
    assert found.added_seeds == sorted({*trained} - {*planned})
    assert (entry.reason is None) == (verdict == "better")
    assert len(found.folders["calibrated"]["ual"]) == counted and found.roles["ual"] == "ual"


@pytest.mark.slow
def test_runs_in_folders_that_are_called_as_those_of_an_experiments_seeds_all_count(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / f"seed-{seed}", seed) for seed in (5, 6, 7)]
    record = described(["held_out.nll_adjusted"]) | {"confidence": 0.9, "seeds": [0, 1, 2]}
    for run in runs:
        (run / "primary.json").write_text(json.dumps(record))
    found = report_on(runs, None, console()[0])
    (entry,) = [x for x in found.comparisons.entries if (x.arm, x.reference) == ("ual", "sft") and x.primary]
    assert (entry.seeds, entry.verdict, found.added_seeds) == (3, "better", [])


@pytest.mark.slow
def test_models_from_elsewhere_need_no_planned_seed(tmp_path: Path) -> None:
    """An evaluation alone has no training seed, which counts as 0."""
    root = scenario_of(tmp_path / "all", [4, 5, 6], [4, 5, 6])
    evaluated(tmp_path / "other" / "evaluate" / "k", "foreign", 0.2, 99)
    found = report_on([root, tmp_path / "other"], None, console()[0])
    assert found.added_seeds == [] and found.seeds == {"base": 1, "foreign": 1, "sft": 3, "ual": 3}


@pytest.mark.slow
def test_a_model_from_elsewhere_that_lacks_what_decides_is_inconclusive_wherever_it_is_shown(
    tmp_path: Path, report_folder: Path
) -> None:
    root = run_of(tmp_path / "run")
    evaluated(tmp_path / "other" / "evaluate" / "k", "foreign", 0.2, 99)
    terminal, printed = console()
    page = tmp_path / "out.html"
    found = report_on([root, tmp_path / "other"], report_folder, terminal, page)
    told = "held_out.nll_adjusted is inconclusive for foreign - sft, foreign - base: foreign has no values of it."
    words = (printed.getvalue(), page.read_text(), (report_folder / "report.md").read_text())
    assert all(told in " ".join(text.split()) for text in words)
    kept = Findings.from_dict(cast(dict[str, Any], read_json(report_folder / "findings.json")))
    assert {(one.arm, one.reference) for one in kept.comparisons.absent} == {("foreign", "sft"), ("foreign", "base")}
    assert kept.comparisons == found.comparisons
