"""The plots of a run: the same in its page, in its report folder and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from ual_ray.plots.clusters import clusters, read_points
from ual_ray.plots.intervals import differences, win_rates
from ual_ray.plots.reliability import reliability_diagrams
from ual_ray.plots.scores import alpha_by_arm, uncertainty_by_source
from ual_ray.plots.style import to_svg
from ual_ray.plots.training import bins_of, loss_by_uncertainty, loss_curves
from ual_ray.report.page_data import PageData
from ual_ray.stats.results import win_rates_of

# What each plot shows, by the name of its file.
CAPTIONS = {
    "uncertainty_by_source": "Rows by uncertainty, stacked by source",
    "alpha_by_arm": "Rows by label smoothing, per arm",
    "loss_curves": "Unsmoothed training and validation NLL over the optimizer steps, per arm",
    "loss_by_uncertainty": "Unsmoothed training NLL over the optimizer steps, by bin of uncertainty, per arm",
    "differences": "Paired differences with their intervals, per metric and benchmark",
    "win_rates": "Win rates with their intervals",
    "reliability": "Accuracy by confidence of the test tokens, before and after temperature scaling, per model",
    "clusters": "Hidden states of frequent tokens, per model: the plane through three tokens' output rows, and PCA",
}


def draw(data: PageData) -> dict[str, Figure]:
    """Draw every plot that there are numbers for, by the name of its file."""
    drawn: dict[str, Figure] = {}
    if data.elicit and any(map(any, (data.elicit.metrics.get("histograms") or {}).values())):
        drawn["uncertainty_by_source"] = uncertainty_by_source(data.elicit.metrics["histograms"])
    if any(len(arm.alphas) for arm in data.arms):
        drawn["alpha_by_arm"] = alpha_by_arm({arm.name: arm.alphas for arm in data.arms if len(arm.alphas)})
    metrics = {arm.name: arm.steps for arm in data.arms if arm.steps}
    if metrics:
        drawn["loss_curves"] = loss_curves(metrics)
    if any(bins_of(line) for lines in metrics.values() for line in lines):
        edges = {tuple(arm.training.metrics.get("uncertainty_bin_edges") or ()) for arm in data.arms if arm.training}
        drawn["loss_by_uncertainty"] = loss_by_uncertainty(metrics, edges.pop() if len(edges) == 1 else ())
    return drawn | (_draw_results(data) if data.findings else {})


def _draw_results(data: PageData) -> dict[str, Figure]:
    findings = data.findings
    assert findings is not None, "asked for results that are there"
    drawn: dict[str, Figure] = {}
    if findings.comparisons.entries:
        drawn["differences"] = differences(findings.comparisons.entries)
    if judged := win_rates_of(findings.win_rates):
        drawn["win_rates"] = win_rates(judged)
    if findings.calibration:
        drawn["reliability"] = reliability_diagrams(
            {model: content["token"] for model, content in findings.calibration.items()}
        )
    if data.cluster_points:
        drawn["clusters"] = clusters({model: read_points(file) for model, file in data.cluster_points.items()})
    return drawn


def to_svgs(drawn: Mapping[str, Figure]) -> dict[str, str]:
    """Turn plots into elements of a page."""
    return {name: to_svg(figure, CAPTIONS[name]) for name, figure in drawn.items()}
