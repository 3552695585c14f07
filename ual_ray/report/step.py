"""Stage 5: what the stages found, compared: tables on the terminal, report.md, plots, the page, and MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from ual_ray import columns as col
from ual_ray.config import BASE, EvaluateConfig, TrackingConfig
from ual_ray.errors import UserError
from ual_ray.plots import scores, training
from ual_ray.report import plots
from ual_ray.report.comparison import COLUMNS, PRIMARY, Comparison, Comparisons, compare_models
from ual_ray.report.findings import COMPARISON_FILE, FINDINGS_FILE, Findings, judged_rates, place_of, read_all
from ual_ray.report.table import Grid, tables
from ual_ray.run.output import CONFIG_FILE
from ual_ray.run.stage_cache import STARTED_FILE, newest
from ual_ray.run.step import STAGE_TAG, Session
from ual_ray.stats.metrics import figures, over_seeds
from ual_ray.stats.results import metrics_of, read_figures, read_results
from ual_ray.tracking.run import Run
from ual_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

REPORT_FILE = "report.md"
PAGE_FILE = "report.html"
NOTE = (
    "± is one standard error; [ ] is a bootstrap interval over questions. NLL is unsmoothed: training losses of different arms "
    "are not comparable, this NLL is. All models answer the same questions, and differences are paired by question. Verdicts "
    "(better, worse, inconclusive) are after Holm's correction over all comparisons. Scaled: after dividing logits "
    "by a temperature fitted on validation rows, the baseline that smoothing has to beat."
)


@dataclass
class Results:
    """Where the stages left what they found: folders by model ('base' or an arm), alphas and metrics by arm.

    evaluated, calibrated and judged: the folders of these stages; of judging by candidate. histograms: rows per interval of
    the uncertainty, by source. elicited, smoothed and trained: the folders the run went on with, for the page; without
    them it takes the newest.
    """

    evaluated: dict[str, Path] = field(default_factory=dict)
    calibrated: dict[str, Path] = field(default_factory=dict)
    judged: dict[str, Path] = field(default_factory=dict)
    alphas: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    elicited: Path | None = None
    smoothed: dict[str, Path] = field(default_factory=dict)
    trained: dict[str, Path] = field(default_factory=dict)


# model -> training seed -> the folder of its evaluation
BySeed = Mapping[str, Mapping[int, Path]]


def find(results: Results, settings: EvaluateConfig, seed: int, root: Path, by_seed: BySeed | None = None) -> Findings:
    """Read what the stages found and compare the arms with their references; no text of a row is read.

    root: what the folders are named from. by_seed: the evaluations of every training seed, where there are several.
    """
    evaluated = by_seed or {model: {seed: folder} for model, folder in results.evaluated.items()}
    rows = {
        model: {number: read_results(folder, COLUMNS) for number, folder in folders.items()}
        for model, folders in evaluated.items()
    }
    stages = {
        "evaluated": {model: list(folders.values()) for model, folders in evaluated.items()},
        **{
            name: {model: [folder] for model, folder in getattr(results, name).items()}
            for name in ("calibrated", "judged", "smoothed", "trained")
        },
        "elicited": {"rows": [results.elicited]} if results.elicited else {},
    }
    return Findings(
        figures={model: over_seeds([figures(table) for table in tables.values()]) for model, tables in rows.items()},
        comparisons=compare_models(rows, settings.confidence, settings.resamples, seed),
        alphas={arm: sum(values) / len(values) for arm, values in results.alphas.items() if values},
        seeds={model: len(folders) for model, folders in evaluated.items()},
        calibration=read_all(results.calibrated, col.CALIBRATION_FILE),
        clusters=read_all(results.calibrated, col.CLUSTERS_FILE),
        win_rates=read_all(results.judged, col.WIN_RATES_FILE),
        folders={
            kind: {model: [place_of(folder, root) for folder in folders] for model, folders in found.items()}
            for kind, found in stages.items()
        },
    )


def report(session: Session, results: Results, folder: Path) -> Findings:
    """Compare all models; print the tables, and write them, the plots and the page to `folder` and to MLflow."""
    config = session.config
    findings = find(results, config.evaluate, config.seed, folder.parent)
    session.console.print()
    _print(findings, session.console)
    _write(findings, folder)
    drawn = draw(results, findings)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    write_page(folder.parent, folder / PAGE_FILE, findings)
    if session.parent is not None:
        _log(session.parent, findings, folder)
        session.parent.artifact(folder / PAGE_FILE)
        for name in drawn:
            session.parent.artifact(folder / f"{name}.png", "plots")
    return findings


def report_on(folders: Sequence[Path], out: Path | None, console: Console, page: Path | None = None) -> Findings:
    """Compare the newest results of every model below the folders; write the report to `out` and log it there.

    An arm that several folders trained with different seeds is one arm with these seeds. page: an HTML file to write, about
    the first folder. Raises UserError when there are no results, and when two folders have the same arm with the same seed.
    """
    by_seed, results = _gather(folders)
    settings, seed = _settings_of(folders[0])
    findings = find(results, settings, seed, folders[0], by_seed)
    _print(findings, console)
    if out is not None:
        _write(findings, out)
        with Tracker(TrackingConfig(), out) as tracker, tracker.run("report", out, {STAGE_TAG: "report"}) as run:
            _log(run, findings, out)
    if page is not None:
        write_page(folders[0], page, findings)
        console.print(f"page: {page}", highlight=False)
    return findings


def write_page(root: Path, page: Path, findings: Findings | None = None) -> None:
    """Write the story of a run as one HTML page; `findings` are those of its last report where none are given."""
    from ual_ray.report.page import to_html
    from ual_ray.report.page_data import collect

    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(to_html(collect(root, findings)), encoding="utf-8")


def draw(results: Results, findings: Findings) -> dict[str, Plot]:
    """Draw every plot there are numbers for, by the name of its file."""
    import numpy as np

    from ual_ray.plots.calibration import reliability_diagrams
    from ual_ray.plots.clusters import clusters

    drawn: dict[str, Plot] = {}
    if results.histograms:
        drawn["uncertainty_by_source"] = scores.uncertainty_by_source(results.histograms)
    if results.alphas:
        drawn["alpha_by_arm"] = scores.alpha_by_arm(results.alphas)
    if results.metrics:
        drawn["loss_curves"] = training.loss_curves(results.metrics)
        drawn["loss_by_uncertainty"] = training.loss_by_arm_and_bin(results.metrics)
    if findings.comparisons.entries:
        drawn["differences"] = plots.differences(findings.comparisons)
    if findings.win_rates:
        drawn["win_rates"] = plots.win_rates(judged_rates(findings.win_rates))
    if findings.calibration:
        tokens = {model: content["token"] for model, content in findings.calibration.items()}
        drawn["reliability"] = reliability_diagrams(tokens, "Test tokens")
    points = {model: folder / col.CLUSTER_POINTS_FILE for model, folder in results.calibrated.items()}
    if any(file.is_file() for file in points.values()):
        drawn["clusters"] = clusters({model: dict(np.load(file)) for model, file in points.items() if file.is_file()})
    return drawn


def verdict_lines(comparisons: Comparisons) -> list[str]:
    """Say the primary comparisons in words, nulls like wins."""
    return [_sentence(entry) for entry in comparisons.entries if entry.primary]


def _sentence(entry: Comparison) -> str:
    words = {"better": "is better than", "worse": "is worse than", "inconclusive": "is inconclusive against"}[entry.verdict]
    numbers = f"{entry.difference:+.4f} [{entry.ci_low:+.4f}, {entry.ci_high:+.4f}] nats per token, n = {entry.n:,}"
    seeds = f", {entry.seeds} training seeds" if entry.seeds > 1 else ""
    return f"{entry.arm} {words} {entry.reference}: {numbers}{seeds}"


def _primary_title(comparisons: Comparisons) -> str:
    return f"Primary comparison, NLL of {PRIMARY[0]} ({comparisons.level:.0%} intervals; below 0 = better):"


def _print(findings: Findings, console: Console) -> None:
    for grid in (grid.brief() for grid in tables(findings)):
        if grid.rows:
            console.print(grid.rich())
            console.print()
    if lines := verdict_lines(findings.comparisons):
        console.print(_primary_title(findings.comparisons), highlight=False)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False)


def _write(findings: Findings, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"## {grid.title}\n\n{grid.markdown()}" for grid in tables(findings)]
    words = [f"- {line}" for line in verdict_lines(findings.comparisons)]
    words = [_primary_title(findings.comparisons), "", *words] if words else []
    text = "\n".join(
        ["# Comparison on questions that nothing was trained on\n", *words, "", *parts, NOTE, "", _where(findings)]
    )
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    (folder / COMPARISON_FILE).write_text(json.dumps(findings.comparisons.as_dict(), indent=2))
    (folder / FINDINGS_FILE).write_text(json.dumps(findings.as_dict(), indent=2))


def _where(findings: Findings) -> str:
    """List where the rows behind each number lie."""
    lines = ["## Where the rows lie\n"]
    for kind, found in findings.folders.items():
        lines += [f"- {kind}, {model}: {', '.join(f'`{folder}`' for folder in folders)}" for model, folders in found.items()]
    return "\n".join(lines) + "\n"


def _log(run: Run, findings: Findings, folder: Path) -> None:
    for name in (REPORT_FILE, COMPARISON_FILE, FINDINGS_FILE):
        run.artifact(folder / name)
    for name, grid in _named(tables(findings)).items():
        run.table(grid.columns(), f"tables/{name}.json")
    values: dict[str, Any] = {}
    for model, found in findings.figures.items():
        values |= {f"{model}.{key}": value for key, value in metrics_of([figure.as_dict() for figure in found]).items()}
    for entry in findings.comparisons.entries:
        values[f"{entry.arm}-vs-{entry.reference}.{entry.benchmark}.{entry.metric}"] = entry.difference
    run.metrics(values)
    primary = [entry for entry in findings.comparisons.entries if entry.primary]
    run.tags({f"verdict.{entry.arm}-vs-{entry.reference}": entry.verdict for entry in primary})


def _named(grids: Sequence[Grid]) -> dict[str, Grid]:
    names = {"metric": "models", "arm - reference": "differences", "arm - against": "win_rates"}
    return {names[grid.heads[0]]: grid for grid in grids}


def _gather(folders: Sequence[Path]) -> tuple[dict[str, dict[int, Path]], Results]:
    """Find the newest results of every model, and of every training seed where folders differ in it."""
    by_seed: dict[str, dict[int, Path]] = {}
    results = Results()
    for root in folders:
        _, seed = _settings_of(root)
        evaluated = [
            file.parent for file in _newest_last(root, col.FIGURES_FILE) if (file.parent / col.RESULTS_FOLDER).is_dir()
        ]
        for name, folder in {read_figures(folder)[0]: folder for folder in evaluated}.items():
            known = by_seed.setdefault(name, {}).setdefault(seed, folder)
            # The model before training is the same everywhere; of two trained ones, one would be left out in silence.
            if name != BASE and known.resolve() != folder.resolve():
                raise UserError(
                    f"two folders hold results of '{name}' with the training seed {seed}",
                    got=f"{known} and {folder}",
                    expected="runs that differ in `seed`, or models of different names",
                    fix="report on one of them, or evaluate one under another name (`ual evaluate --name`)",
                )
        for file in _newest_last(root, col.CALIBRATION_FILE):
            results.calibrated[_model_of(file)] = file.parent
        for file in _newest_last(root, col.WIN_RATES_FILE):
            results.judged[str(json.loads(file.read_text()).get("candidate"))] = file.parent
    if not by_seed:
        raise UserError("there are no results to report", got=[str(folder) for folder in folders], fix="run `ual evaluate`")
    names = sorted(by_seed, key=lambda name: (name != BASE, name))
    return {name: by_seed[name] for name in names}, results


def _newest_last(root: Path, name: str) -> list[Path]:
    """Find the files that a stage wrote below a folder, those that a run went on with at the end, else by age.

    Copies that MLflow keeps do not count.
    """
    files = [file for file in root.rglob(name) if (file.parent / STARTED_FILE).is_file()]
    return sorted(files, key=lambda file: (newest(file.parents[1]) == file.parent, file.stat().st_mtime))


def _model_of(file: Path) -> str:
    """Name the model of HOME/calibrate/KEY/file: as HOME/evaluate names it, or as HOME is called, such as arms/ARM."""
    home = file.parents[2]
    evaluated = _newest_last(home / "evaluate", col.FIGURES_FILE)
    return read_figures(evaluated[-1].parent)[0] if evaluated else home.name


def _settings_of(root: Path) -> tuple[EvaluateConfig, int]:
    """Read how a run makes its intervals, and its seed, from the configuration it left; the defaults elsewhere."""
    file = root / CONFIG_FILE
    content = (yaml.safe_load(file.read_text()) if file.is_file() else None) or {}
    known = {key: value for key, value in (content.get("evaluate") or {}).items() if key in ("resamples", "confidence")}
    return EvaluateConfig(**known), int(content.get("seed") or 0)
