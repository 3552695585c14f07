"""The stages in order, arms side by side: rows -> elicit -> (smooth -> train) per arm -> evaluate -> report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ual_ray import preflight
from ual_ray.config import Config, TrackingConfig
from ual_ray.elicit.finish import SCORED
from ual_ray.errors import UserError
from ual_ray.evaluate.metrics import Figure, nll_difference
from ual_ray.evaluate.stage import FIGURES_FILE, PREDICTIONS, read_figures, read_predictions
from ual_ray.records import ALPHA, ID, read_table
from ual_ray.report import plots
from ual_ray.report.table import Comparison, compare
from ual_ray.smooth.stage import SMOOTHED_FILE
from ual_ray.sources.prepare import ROWS_FOLDER
from ual_ray.steps import (
    LINEAGE_MODEL,
    STAGE_TAG,
    Place,
    Session,
    elicit_step,
    evaluate_step,
    smooth_step,
    train_step,
)
from ual_ray.tracking import Tracker
from ual_ray.train.loop import MODEL_FOLDER
from ual_ray.train.metrics import METRICS_FILE, read_metrics
from ual_ray.workspace import CONFIG_FILE, Workspace, point_to

BASE = "base"
# Plain SFT is what UAL has to beat; the shuffled control is what tells uncertainty from mere smoothing.
REFERENCES = ("sft", "shuffled")
REPORT_FILE = "report.md"
NOTE = (
    "± is one standard error. NLL is unsmoothed: training losses of different arms are not comparable, this is. "
    "All models see the same rows, so arms are told apart by the paired difference: within two of its standard errors, "
    "this run cannot tell."
)


@dataclass
class Results:
    """What the stages found, for the report: figures by model, alphas and metrics by arm, histograms by source."""

    figures: dict[str, list[Figure]] = field(default_factory=dict)
    alphas: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)


def run(config: Config, console: Console, workspace: Workspace, force: frozenset[str] = frozenset()) -> Comparison:
    """Do everything that is not done yet, and report. Raises UserError for bad input before anything expensive starts."""
    preflight.check(config)
    workspace.check_owner(config)
    with workspace.held():
        workspace.claim(config)
        tracker = Tracker(config.tracking, workspace.root)
        session = Session(config, console, tracker, force)
        tags = {STAGE_TAG: "pipeline", "ual_ray.data": config.data.path, LINEAGE_MODEL: config.model}
        with session.cluster, tracker.run(workspace.root.name, workspace.root, tags) as parent:
            session.parent = parent
            parent.params({"data": config.data.model_dump(), "model": config.model, "seed": config.seed})
            parent.artifact(workspace.root / CONFIG_FILE)
            comparison = report(session, do_stages(session, workspace.root), workspace.root / "report")
        session.say_failures(workspace.log_file)
        return comparison


def do_stages(session: Session, root: Path) -> Results:
    """Do all stages but the report."""
    config, results = session.config, Results()

    def below(*parts: str) -> Place:
        return lambda key: root.joinpath(*parts, key)

    elicited = elicit_step(session, below("elicit"), below("elicit", "store"))
    point_to(root / "elicit", elicited.folder)
    rows, scored = elicited.folder / ROWS_FOLDER, elicited.folder / SCORED
    results.histograms = elicited.figures["histograms"]
    models = {BASE: config.model}
    smoothed = {
        arm: smooth_step(session, arm, spec, scored, below("arms", arm, "smooth")).folder / SMOOTHED_FILE
        for arm, spec in config.arms.items()
    }
    for arm in config.arms:
        results.alphas[arm] = read_table(smoothed[arm], [ID, ALPHA])[ALPHA].to_pylist()
        trained = train_step(session, arm, smoothed[arm], rows, below("arms", arm, "train")).folder
        results.metrics[arm] = read_metrics(trained / METRICS_FILE)
        models[arm] = str(trained / MODEL_FOLDER)
    folders = {}
    for name, model in models.items():
        place = below("base", "evaluate") if name == BASE else below("arms", name, "evaluate")
        folders[name] = evaluate_step(session, name, model, rows, place).folder
    results.figures = with_differences(folders)
    return results


def with_differences(folders: Mapping[str, Path]) -> dict[str, list[Figure]]:
    """Read every model's figures, and add the arms' paired differences from SFT and from the shuffled control."""
    figures = {name: read_figures(folder)[1] for name, folder in folders.items()}
    arms = [name for name in folders if name != BASE]
    for reference in (name for name in REFERENCES if name in arms):
        rows = read_predictions(folders[reference])
        for name in (arm for arm in arms if arm != reference):
            difference = nll_difference(read_predictions(folders[name]), rows, reference)
            figures[name] += [difference] if difference is not None else []
    return figures


def report(session: Session, results: Results, folder: Path) -> Comparison:
    """Print the comparison, and write it and the plots to `folder` and to MLflow."""
    folder.mkdir(parents=True, exist_ok=True)
    alphas = {arm: sum(values) / len(values) for arm, values in results.alphas.items()}
    comparison = compare(results.figures, alphas)
    session.console.print()
    session.console.print(comparison.rich("Test split: the model before training, and every arm"))
    path = folder / REPORT_FILE
    path.write_text(f"# Comparison on the test split\n\n{comparison.markdown()}\n{NOTE}\n")
    drawn = {
        "uncertainty_by_source": plots.uncertainty_by_source(results.histograms),
        "alpha_by_arm": plots.alpha_by_arm(results.alphas),
        "loss_curves": plots.loss_curves(results.metrics),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    if session.parent is not None:
        session.parent.artifact(path)
        session.parent.table(comparison.columns(), "comparison.json")
        for name in drawn:
            session.parent.artifact(folder / f"{name}.png", "plots")
        for model, figures in results.figures.items():
            values = {f"{model}.{figure.metric}.{figure.source}": figure.value for figure in figures}
            session.parent.metrics(values)
    return comparison


def report_on(folders: Sequence[Path], out: Path | None, console: Console) -> Comparison:
    """Compare the newest figures of every model below the folders; write report.md to `out` and log it there.

    Raises UserError when there are none.
    """
    # MLflow keeps copies of the figures, without the predictions beside them.
    files = (file for folder in folders for file in folder.rglob(FIGURES_FILE) if (file.parent / PREDICTIONS).exists())
    found = sorted(files, key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError("there are no figures to report", value=[str(folder) for folder in folders], fix="run `ual evaluate`")
    newest = {read_figures(file.parent)[0]: file.parent for file in found}
    names = sorted(newest, key=lambda name: (name != BASE, name))
    comparison = compare(with_differences({name: newest[name] for name in names}), {})
    console.print(comparison.rich("Test split"))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT_FILE).write_text(f"# Comparison on the test split\n\n{comparison.markdown()}\n{NOTE}\n")
        with Tracker(TrackingConfig(), out).run("report", out, {STAGE_TAG: "report"}) as run:
            run.artifact(out / REPORT_FILE)
            run.table(comparison.columns(), "comparison.json")
    return comparison
