"""The page of a run: one self-contained HTML file without scripts, nothing loaded from elsewhere, plots as inline SVG.

Rows, names and configurations are untrusted: the template escapes everything, and the page's own policy forbids scripts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Template
from matplotlib.figure import Figure

from ual_ray.config.evaluate import WIN_RATE
from ual_ray.config.names import CONSTANT
from ual_ray.plots.calibration import clusters, read_points, reliability_diagrams
from ual_ray.plots.intervals import differences, win_rates
from ual_ray.plots.style import make_environment, to_svg
from ual_ray.plots.training import alpha_by_arm, bins_of, loss_by_uncertainty, loss_curves, uncertainty_by_source
from ual_ray.report.caveats import RESULTS, absent_lines, differing, guard_lines, notes, unanswered
from ual_ray.report.findings import Findings, regime_of, without_primary
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.page_data import PageData
from ual_ray.report.power import power_grid
from ual_ray.report.table import VERDICTS, direction_text, finding, primary_of, tables, value_text
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import described
from ual_ray.stats.primary import measure_of
from ual_ray.stats.results import win_rates_of
from ual_ray.stats.score_quality import Quality, auroc_text

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
TEMPLATE = "page.html.j2"


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


@dataclass(frozen=True)
class _Group:
    """A primary measure with verdicts and sentences: between arms, and with the model before training.

    reason: why none of them is a verdict, where that is one reason.
    """

    measure: str
    about: str
    reason: str | None
    between: list[tuple[str, str]]
    before: list[tuple[str, str]]


def to_html(data: PageData, drawn: Mapping[str, Figure], results: str | None = None) -> str:
    """Write the page; `drawn` are the plots of `draw`, `results` the address of RESULTS from the page, where there is one."""
    findings = data.findings
    return _template().render(
        page=data,
        plots={name: to_svg(figure, CAPTIONS[name]) for name, figure in drawn.items()},
        elicited=data.elicit.metrics if data.elicit else {},
        findings=findings,
        primary=primary_of(findings.comparisons) if findings else [],
        headline=_headline(findings) if findings else [],
        primary_digest=described(findings.comparisons.primary)["digest"] if findings else "",
        no_primary=without_primary(findings) if findings else None,
        judged=judged_verdicts(findings) if findings else [],
        unanswered=unanswered(findings) if findings else None,
        results=results,
        uncomputed=absent_lines(findings.comparisons) if findings else [],
        guards=guard_lines(findings.comparisons) if findings else [],
        regime=regime_of(findings) if findings else None,
        tables=tables(findings) if findings else {},
        measures=notes(findings) if findings else [],
        differing=differing(findings) if findings else [],
        constant=any(arm.smooth.metrics.get("map") == CONSTANT for arm in data.arms if arm.smooth),
        power=power_grid(findings, [findings.planned_seeds]) if findings else None,
    )


def _headline(findings: Findings) -> list[_Group]:
    """Group the primary comparisons and the win rates by measure, in the order in which these are tested."""
    judged, measures = judged_verdicts(findings), findings.comparisons.primary
    found = []
    for measure in (*measures, *([] if WIN_RATE in measures else [WIN_RATE])):
        entries = [entry for entry in findings.comparisons.entries if entry.primary and measure_of(entry) == measure]
        of_base = [findings.roles.get(entry.reference) == "base" for entry in entries]
        lines = [(entry.verdict, finding(entry), entry.reason) for entry in entries]
        about = direction_text(entries[0]) if entries else "of the deciding judge at equal lengths; above 50% is better"
        if measure == WIN_RATE:
            lines, of_base = [(one.verdict, one.finding(), one.reason) for one in judged], [False] * len(judged)
        if lines:
            found.append(_group(measure, about, lines, of_base))
    return found


def _group(measure: str, about: str, lines: Sequence[tuple[str, str, str | None]], of_base: Sequence[bool]) -> _Group:
    """Name a reason that several lines share once, before them."""
    reasons = {why for *_, why in lines}
    shared = next(iter(reasons)) if len(reasons) == 1 and len(lines) > 1 else None
    told = [(verdict, text if why in (None, shared) else f"{text}; {why}") for verdict, text, why in lines]
    between, before = ([one for one, base in zip(told, of_base, strict=True) if base == side] for side in (False, True))
    return _Group(measure, about, shared, between, before)


@cache
def _template() -> Template:
    environment = make_environment(Path(__file__).parent)
    environment.globals.update(VERDICTS=VERDICTS, min_seeds=MIN_SEEDS)
    environment.globals.update(value_text=value_text, RESULTS=RESULTS)
    environment.filters["auroc"] = lambda found: auroc_text(Quality(**found))
    return environment.get_template(TEMPLATE)
