"""The page of a run: one self-contained HTML file without scripts, nothing loaded from elsewhere, plots as inline SVG.

Rows, names and configurations are untrusted: the template escapes everything, and the page's own policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Template
from matplotlib.figure import Figure

from ual_ray.config.names import CONSTANT
from ual_ray.plots.page import make_environment
from ual_ray.report.caveats import differing
from ual_ray.report.draw import to_svgs
from ual_ray.report.findings import Findings, regime_of, without_primary
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.measures import RESULTS, absent_lines, guard_lines, notes, unanswered
from ual_ray.report.page_data import PageData
from ual_ray.report.power import power_grid
from ual_ray.report.table import VERDICTS, direction_text, finding, primary_of, tables, value_text
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import Comparison, described
from ual_ray.stats.primary import measure_of
from ual_ray.stats.score_quality import Quality, auroc_text

TEMPLATE = "page.html.j2"


def to_html(data: PageData, drawn: Mapping[str, Figure], results: str | None = None) -> str:
    """Write the page; `drawn` are the plots of `draw`, `results` the address of RESULTS from the page, where there is one."""
    findings = data.findings
    return _template().render(
        page=data,
        plots=to_svgs(drawn),
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


def _headline(findings: Findings) -> list[tuple[str, list[Comparison], list[Comparison]]]:
    """Group the primary comparisons by measure, in order: those between arms, and those with the model before training."""
    found: dict[str, tuple[list[Comparison], list[Comparison]]] = {}
    for entry in primary_of(findings.comparisons):
        found.setdefault(measure_of(entry), ([], []))[findings.roles.get(entry.reference) == "base"].append(entry)
    return [(measure, *entries) for measure, entries in found.items()]


@cache
def _template() -> Template:
    environment = make_environment(Path(__file__).parent)
    environment.globals.update(VERDICTS=VERDICTS, min_seeds=MIN_SEEDS)
    environment.globals.update(finding=finding, direction_text=direction_text, value_text=value_text, RESULTS=RESULTS)
    environment.filters["auroc"] = lambda found: auroc_text(Quality(**found))
    return environment.get_template(TEMPLATE)
