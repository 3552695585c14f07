"""The report of a folder: which results count, several seeds, the files it leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet
import pytest
from finished_runs import MAPS, N, calibrated, console, evaluated, finished, run_of, scenario_of
from typer.testing import CliRunner

from ual_ray.cli.app import app
from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.config.files import read_json, write_json, write_record
from ual_ray.errors import UserError
from ual_ray.report.findings import Findings
from ual_ray.report.gather import StageFolders, find_results, newest_stage, relative_to
from ual_ray.report.step import report, report_on, write_page
from ual_ray.run.metrics_log import MetricsLog
from ual_ray.run.output import Workspace
from ual_ray.run.stage_cache import point_to
from ual_ray.run.step import Session


@pytest.mark.slow
def test_a_folder_is_compared_with_its_own_settings_and_words_are_printed(tmp_path: Path) -> None:
    terminal, printed = console()
    page = tmp_path / "pages" / "out.html"
    findings = report_on([run_of(tmp_path / "run")], None, terminal, page)
    assert findings.models == ("base", "sft", "ual")
    assert (findings.comparisons.level, findings.comparisons.resamples) == (0.9, 300)
    words = " ".join(printed.getvalue().split())
    assert "ual is inconclusive against sft: -0." in words
    assert "n = 60, 1 training seed of the 3 that a verdict needs" in words
    assert findings.folders["evaluated"]["ual"] == ["arms/ual/evaluate/k"]
    assert "Whether uncertainty helps stays open after 1 training seed." in words and "so far is in docs/results.md." in words
    assert "Effect of uncertainty-aware label smoothing" in page.read_text()


@pytest.mark.slow
def test_without_calibration_the_report_says_what_to_set(tmp_path: Path, report_folder: Path) -> None:
    root = run_of(tmp_path / "run")
    for file in root.rglob("calibration.json"):
        file.unlink()
    terminal, printed = console()
    report_on([root], report_folder, terminal)
    for text in (printed.getvalue(), (report_folder / "report.md").read_text()):
        assert "There is no primary comparison" in text
        assert "evaluate.calibration.enabled=true" in text
        assert "Primary comparison" not in text


@pytest.mark.slow
def test_the_newest_results_of_a_model_count_and_copies_do_not(tmp_path: Path) -> None:
    root = run_of(tmp_path / "run")
    newer = evaluated(root / "arms" / "ual" / "evaluate" / "l", "ual", 0.3, 5)
    os.utime(newer / "figures.json", (2e9, 2e9))
    copy = root / "mlflow-artifacts" / "run"
    copy.mkdir(parents=True)
    (copy / "figures.json").write_text((newer / "figures.json").read_text().replace('"ual"', '"copy"'))
    terminal, _ = console()
    findings = report_on([root], None, terminal)
    assert findings.folders["evaluated"]["ual"] == ["arms/ual/evaluate/l"]
    assert "copy" not in findings.models


def test_what_a_run_went_on_with_counts_more_than_what_is_newer(tmp_path: Path) -> None:
    root = run_of(tmp_path / "run")
    newer = evaluated(root / "arms" / "ual" / "evaluate" / "l", "ual", 0.3, 5)
    os.utime(newer / "figures.json", (2e9, 2e9))
    point_to(root / "arms" / "ual" / "evaluate", root / "arms" / "ual" / "evaluate" / "k")
    findings = report_on([root], None, console()[0])
    assert findings.folders["evaluated"]["ual"] == ["arms/ual/evaluate/k"]


def test_one_stage_folder_is_the_newest(tmp_path: Path) -> None:
    assert newest_stage(tmp_path) is None
    first, second = (finished(tmp_path / name, {}) for name in ("a", "b"))
    os.utime(first / "done.json", (1e9, 1e9))
    assert newest_stage(tmp_path) == second
    point_to(tmp_path, first)
    assert newest_stage(tmp_path) == first
    (first / "done.json").unlink()
    assert newest_stage(tmp_path) == second, "what is not finished does not count"
    assert newest_stage(second) == second, "a command's own --out is the stage's folder"


def test_calibration_goes_with_the_model_as_its_evaluation_calls_it(tmp_path: Path) -> None:
    evaluated(tmp_path / "out" / "evaluate" / "k", "my model", 0.0, 5)
    place = tmp_path / "out" / "calibrate" / "k"
    place.mkdir(parents=True)
    (place / "calibration.json").write_text(json.dumps({"token": {"raw": {"n": 7, "ece_width": 0.25}, "scaled": None}}))
    (place / "started.json").write_text("{}")
    terminal, printed = console()
    findings = report_on([tmp_path / "out"], None, terminal)
    assert list(findings.calibration) == ["my model"]
    assert "25.0%" in printed.getvalue()


def test_calibration_is_of_the_model_that_it_measured_and_not_of_a_later_one_in_the_same_folder(tmp_path: Path) -> None:
    """As of `ual evaluate A --rows scored` and `ual evaluate B`, both with one --out."""
    for key, name in (("k", "first"), ("l", "second")):
        folder = evaluated(tmp_path / "evaluate" / key, name, 0.0, 1)
        write_json(folder / "started.json", {"digest": "0", "inputs": {"model": digest([name])}})
    os.utime(tmp_path / "evaluate" / "l" / "figures.json", (2e9, 2e9))
    measured = calibrated(tmp_path / "calibrate" / "k", 0.0, 1)
    write_json(measured / "started.json", {"digest": "0", "inputs": {"model": ["first"]}})
    assert find_results([tmp_path])[0].calibrated == {"first": measured}


def test_two_evaluations_of_one_name_below_a_folder_are_not_mixed_up_in_silence(tmp_path: Path) -> None:
    for place in ("old", "new"):
        evaluated(tmp_path / place / "evaluate" / "k", "ual", 0.0, 1)
    with pytest.raises(UserError, match="two folders hold results of 'ual' with the training seed 0") as error:
        find_results([tmp_path])
    assert "old/evaluate/k" in str(error.value) and "new/evaluate/k" in str(error.value)


@pytest.mark.slow
def test_runs_with_other_seeds_are_one_arm_with_several_seeds(tmp_path: Path) -> None:
    roots = [run_of(tmp_path / f"run{seed}", seed) for seed in (1, 2, 3)]
    terminal, printed = console()
    findings = report_on(roots, None, terminal)
    assert findings.seeds == {"base": 3, "sft": 3, "ual": 3}
    (entry,) = [x for x in findings.comparisons.entries if (x.arm, x.reference) == ("ual", "sft") and x.primary]
    assert (entry.seeds, entry.n, entry.verdict) == (3, N, "better")
    assert "n = 60, 3 training seeds" in printed.getvalue()
    assert "ual - sft: 3 seeds 0.0" in " ".join(printed.getvalue().split()), "what more seeds would find"


@pytest.mark.slow
def test_the_mean_alpha_is_that_of_all_seeds(tmp_path: Path) -> None:
    roots = [run_of(tmp_path / f"run{seed}", seed) for seed in (1, 2)]
    write_record(
        roots[1] / "arms" / "ual" / "smooth" / "k" / "done.json", {"figures": {"map": "rank", "mean": 0.2}, "seconds": 1.0}
    )
    assert report_on(roots, None, console()[0]).alphas["ual"] == pytest.approx(0.15)


def test_the_elicitation_that_scenarios_share_moves_with_them(tmp_path: Path) -> None:
    root = tmp_path / "experiment" / "mixed"
    assert relative_to(root.parent / "elicit" / "k", root) == "../elicit/k"
    assert relative_to(root / "seed-0" / "arms", root) == "seed-0/arms"
    assert relative_to(tmp_path / "other", root) == str(tmp_path / "other")


def test_the_regime_is_that_of_the_trainings_of_all_runs(tmp_path: Path) -> None:
    roots = [run_of(tmp_path / f"run{seed}", seed) for seed in (1, 2)]
    for root, end in zip(roots, (1.9, 2.1), strict=True):
        folder = finished(root / "arms" / "sft" / "train" / "k", {})
        lines = [{"step": step, "validation_nll": loss} for step, loss in ((0, 2.5), (4, 2.0), (8, end))]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    terminal, printed = console()
    findings = report_on(roots, None, terminal)
    assert [curve[-1] for curve in findings.validation["sft"]] == [[8, 1.9], [8, 2.1]]
    assert findings.folders["trained"]["sft"][0] == "arms/sft/train/k" and len(findings.folders["trained"]["sft"]) == 2
    assert "sft overfitted in 1 of 2 training seeds" in " ".join(printed.getvalue().split())


def test_metrics_of_a_training_that_were_cut_are_no_shorter_curve(tmp_path: Path) -> None:
    folder = finished((root := run_of(tmp_path / "run")) / "arms" / "sft" / "train" / "k", {"last": {"step": 2}})
    log = MetricsLog(file := folder / "metrics.jsonl", 0, writes=True)
    for step in range(3):
        log.write(step, {"validation_nll": 2.5 - step})
    assert report_on([root], None, console()[0]).validation == {"sft": [[[0, 2.5], [1, 1.5], [2, 0.5]]]}
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match=r"(?s)do not end with its last step.*metrics\.jsonl: step 1.*expected: step 2"):
        report_on([root], None, console()[0])


@pytest.mark.slow
def test_every_reference_of_the_judge_is_in_the_report(tmp_path: Path, report_folder: Path) -> None:
    root = run_of(tmp_path / "run")
    for reference in ("sft", "base"):
        folder = finished(root / "judge" / f"ual-vs-{reference}" / "k", {})
        rate = {"win_rate": 60.0, "length_controlled_win_rate": 61.0, "n": 9, "n_valid": 9}
        content = {"candidate": "ual", "reference": reference, "win_rates": {"overall": rate}}
        (folder / "win_rates.json").write_text(json.dumps(content))
    terminal, printed = console()
    findings = report_on([root], report_folder, terminal)
    assert {*findings.win_rates} == {"ual-vs-sft", "ual-vs-base"}
    for text in (printed.getvalue(), (report_folder / "report.md").read_text()):
        assert "ual - sft" in text and "ual - base" in text
        words = " ".join(text.split())
        assert words.index("inconclusive against sft: no win rate") < words.index("inconclusive against base: no win rate")


def test_two_pairs_of_one_name_are_not_mixed_up_in_silence(tmp_path: Path) -> None:
    root = run_of(tmp_path / "run")
    for number, (candidate, reference) in enumerate((("a-vs-b", "c"), ("a", "b-vs-c"))):
        folder = finished(root / "judge" / str(number) / "k", {})
        (folder / "win_rates.json").write_text(json.dumps({"candidate": candidate, "reference": reference}))
    with pytest.raises(UserError, match="two pairs of models are both called a-vs-b-vs-c"):
        report_on([root], None, console()[0])


@pytest.mark.slow
def test_two_runs_with_one_seed_are_not_mixed_up_in_silence(tmp_path: Path) -> None:
    roots = [run_of(tmp_path / name, seed=3) for name in ("first", "second")]
    with pytest.raises(UserError, match="results of 'sft' with the training seed 3") as error:
        report_on(roots, None, console()[0])
    assert "first/arms/sft" in str(error.value) and "second/arms/sft" in str(error.value)
    assert report_on([roots[0], roots[0]], None, console()[0]).seeds["sft"] == 1, "the same folder twice is one"


def test_no_results_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results to report"):
        report_on([tmp_path], None, console()[0])


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_results_next_to_one_with_results_is_the_users_mistake(tmp_path: Path, made: bool) -> None:
    root, other = run_of(tmp_path / "run"), tmp_path / "other"
    if made:
        other.mkdir()
    with pytest.raises(UserError, match=r"(?s)no results to report.*other'\]"):
        report_on([root, other], None, console()[0])


def test_the_command_locks_its_out(tmp_path: Path) -> None:
    root, out = run_of(tmp_path / "run"), tmp_path / "out"
    with Workspace(out).held():
        refused = CliRunner().invoke(app, ["report", str(root), "--out", str(out)])
    assert isinstance(refused.exception, UserError) and "another run is working in" in str(refused.exception)
    assert not (out / "report.md").exists()


@pytest.mark.slow
def test_the_pipelines_report_leaves_all_its_files(tmp_path: Path) -> None:
    root = run_of(tmp_path / "run")
    places = {"base": "base", "sft": "arms/sft", "ual": "arms/ual"}
    stages = StageFolders(evaluated={name: root / place / "evaluate" / "k" for name, place in places.items()})
    stages.calibrated = {name: root / place / "calibrate" / "k" for name, place in places.items()}
    for folder in stages.calibrated.values():
        (folder / "calibration.json").unlink()
    stages.elicited = finished(root / "elicit" / "k", {"histograms": {"s": [1, 2, 3]}})
    for arm, alphas in {"sft": [0.0, 0.0], "ual": [0.1, 0.2]}.items():
        stages.smoothed[arm] = finished(root / "arms" / arm / "smooth" / "l", {"mean": sum(alphas) / 2, "map": MAPS[arm]})
        pa.parquet.write_table(pa.table({"alpha": alphas}), stages.smoothed[arm] / "smoothed.parquet")
        stages.trained[arm] = finished(root / "arms" / arm / "train" / "k", {})
        lines = [{"step": step, "nll": 2.0, "nll/uncertainty_bin_1": 1.9, "validation_nll": 2.1} for step in (1, 2)]
        (stages.trained[arm] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logged: dict[str, Any] = {"artifact": [], "table": [], "metrics": {}, "tags": {}}
    parent = SimpleNamespace(
        artifact=lambda path, folder=None: logged["artifact"].append(path.name),
        table=lambda columns, name: logged["table"].append(name),
        metrics=logged["metrics"].update,
        tags=logged["tags"].update,
        describe=lambda text: logged["tags"].update({"description": text}),
    )
    terminal, printed = console()
    session = Session(Config(), terminal, None, parent=cast(Any, parent), label="chat")
    findings = report(session, {0: stages}, root / "report")
    assert printed.getvalue().split()[:2] == ["scenario", "chat"], "of which the tables below are"
    left = {path.name for path in (root / "report").iterdir()}
    names = ("uncertainty_by_source", "alpha_by_arm", "loss_curves", "loss_by_uncertainty", "differences")
    drawn = {f"{name}.png" for name in names}
    assert left == {"report.md", "comparison.json", "findings.json", "report.html"} | drawn
    assert set(logged["artifact"]) == left
    assert logged["table"] == ["tables/models.json", "tables/differences.json"]
    assert logged["metrics"]["ual.held_out.nll.overall"] == findings.metrics["ual"][0].value
    assert logged["metrics"]["ual-vs-sft.held_out.nll"] < 0
    described = logged["tags"].pop("description")
    assert logged["tags"] == {"verdict.ual-vs-sft": "inconclusive"}, (
        "one training seed; those with the untrained model left out"
    )
    assert "- ual is inconclusive against sft: " in described and described in (root / "report" / "report.md").read_text()
    assert findings.alphas == {"sft": 0.0, "ual": pytest.approx(0.15)}
    content = json.loads((root / "report" / "comparison.json").read_text())
    assert len(content["comparisons"]) == 6 and content["comparisons"][0]["verdict"] == "inconclusive"
    text = (root / "report" / "report.md").read_text()
    assert "- ual is inconclusive against sft: " in text
    assert "- evaluated, ual: `arms/ual/evaluate/k`" in text
    assert Findings.from_dict(read_json(root / "report" / "findings.json")) == findings
    left_page = root / "report" / "report.html"
    write_page(root, tmp_path / "later.html")
    # Matplotlib's ids of a plot of four panels differ between two drawings of the same numbers.
    pages = [re.sub(r"\b[mp][0-9a-f]{10}\b", "ID", page.read_text()) for page in (tmp_path / "later.html", left_page)]
    assert pages[0] == pages[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"train": {"learning_rate": 1e-4}}, "training settings"),
        ({"model": "other"}, "models to train"),
        ({"rows": "other"}, "rows"),
    ],
)
def test_arms_of_one_name_and_different_trainings_are_not_one_method(
    tmp_path: Path, inputs: dict[str, Any], words: str
) -> None:
    same = {"train": {}, "model": "one", "rows": "one"}
    roots = [run_of(tmp_path / f"run{seed}", seed) for seed in (1, 2)]
    for root, own in zip(roots, (same | inputs, same), strict=True):
        folder = finished(root / "arms" / "ual" / "train" / "k", {})
        (folder / "started.json").write_text(json.dumps({"digest": "0", "inputs": own}))
    with pytest.raises(UserError, match=f"two folders hold an arm 'ual' with different {words}"):
        report_on(roots, None, console()[0])


@pytest.mark.parametrize("seeds", [(1, 2), (1, 1)])
def test_two_models_before_training_are_not_one(tmp_path: Path, seeds: tuple[int, int]) -> None:
    roots = [tmp_path / name for name in ("one", "two")]
    for root, seed, model in zip(roots, seeds, ("135M", "360M"), strict=True):
        evaluated(root / "base" / "evaluate" / "k", "base", 0.5, 1, model)
        evaluated(root / "arms" / root.name / "evaluate" / "k", root.name, 0.5, 1, root.name)
        (root / "config.yaml").write_text(f"seed: {seed}\n")
    with pytest.raises(UserError, match=r"(?s)different models before training.*one/base.*135M.*two/base.*360M"):
        report_on(roots, None, console()[0])
    shutil.rmtree(roots[1] / "base")
    evaluated(roots[1] / "base" / "evaluate" / "k", "base", 0.5, 1, "135M")
    assert {*report_on(roots, None, console()[0]).models} == {"base", "one", "two"}


@pytest.mark.slow
def test_arms_of_one_name_and_different_maps_are_not_one_method(tmp_path: Path) -> None:
    roots = [run_of(tmp_path / f"run{seed}", seed) for seed in (1, 2)]
    started = {"digest": "0", "inputs": {"spec": {"map": "shuffled"}}}
    (roots[1] / "arms" / "ual" / "smooth" / "k" / "started.json").write_text(json.dumps(started))
    with pytest.raises(UserError, match="two folders hold an arm 'ual' with different maps"):
        report_on(roots, None, console()[0])


@pytest.mark.slow
def test_copies_of_one_training_do_not_count_as_seeds_and_the_report_names_them(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(seed), seed) for seed in (0, 1, 2)]
    assert {entry.verdict for entry in report_on(runs, None, console()[0]).comparisons.entries if entry.primary} == {"better"}
    for seed in (1, 2):
        for part in ("evaluate", "calibrate"):
            copy = tmp_path / str(seed) / "arms" / "ual" / part
            shutil.rmtree(copy)
            shutil.copytree(tmp_path / "0" / "arms" / "ual" / part, copy)
    terminal, printed = console()
    page = tmp_path / "page.html"
    found = report_on(runs, None, terminal, page)
    mine = [entry for entry in found.comparisons.entries if entry.arm == "ual"]
    assert {(entry.verdict, entry.seeds) for entry in mine} == {("inconclusive", 1)}
    assert found.seeds == {"base": 3, "sft": 3, "ual": 1}
    for text in (printed.getvalue(), page.read_text()):
        words = " ".join(text.split())
        assert "ual: the training seed 2 has the likelihoods of the seed 0, in every question" in words


@pytest.mark.slow
def test_what_is_named_as_compared_is_of_a_seed_that_counts(tmp_path: Path) -> None:
    """Whatever the order of the folders: of two copies, the one of the larger seed is left out."""
    runs = {seed: run_of(tmp_path / str(seed), seed) for seed in (0, 1)}
    for part in ("evaluate", "calibrate"):
        shutil.rmtree(copy := runs[1] / "arms" / "ual" / part)
        shutil.copytree(runs[0] / "arms" / "ual" / part, copy)
    found = report_on([runs[1], runs[0]], None, console()[0])
    assert found.copies == {"ual": {"1": 0}}
    for kind in ("evaluated", "calibrated", "smoothed"):
        (named,) = found.folders[kind]["ual"]
        assert named.startswith(f"{runs[0]}/arms/ual/"), kind


@pytest.mark.slow
def test_a_model_that_was_not_trained_here_is_no_copy_of_a_training(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(seed), seed) for seed in (0, 1)]
    for run in runs:
        evaluated(run / "other" / "evaluate" / "k", "foreign", 0.2, 99)
    terminal, printed = console()
    found = report_on(runs, None, terminal)
    assert found.seeds["foreign"] == 1 and found.copies == {"foreign": {"1": 0}}
    assert "both are one model, which counts once" in " ".join(printed.getvalue().split())


def test_scenarios_are_not_mixed_up_in_silence(tmp_path: Path) -> None:
    for name in ("one", "two"):
        scenario_of(tmp_path / name, [0], [0])
    with pytest.raises(UserError, match=r"(?s)an experiment of several scenarios.*one, two"):
        report_on([tmp_path], None, console()[0])


def test_a_copied_file_of_results_is_an_error(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    file = next((run / "arms" / "ual" / "evaluate").rglob("results.parquet"))
    shutil.copy(file, file.with_name("results (1).parquet"))
    with pytest.raises(UserError, match="the results of 'ual' on held_out have questions twice"):
        report_on([run], None, console()[0])


@pytest.mark.slow
def test_the_settings_of_the_trainings_are_read(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    for arm, epochs in (("sft", 3), ("ual", 4)):
        folder = finished(run / "arms" / arm / "train" / "k", {"train_rows": 7})
        (folder / "started.json").write_text(json.dumps({"digest": "0", "inputs": {"train": {"epochs": epochs}}}))
    page = tmp_path / "page.html"
    found = report_on([run], None, console()[0], page)
    assert found.trainings == {arm: {"epochs": epochs, "train_rows": 7} for arm, epochs in (("sft", 3), ("ual", 4))}
    assert "The trainings of the arms differ in epochs (sft 3, ual 4)." in page.read_text()
