"""The page of a run: one self-contained HTML file without scripts, nothing loaded from elsewhere, plots as inline SVG.

Rows, names and configurations are untrusted: the template escapes everything, and the page's own policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Template
from matplotlib.figure import Figure

from ual_ray.config.names import CONSTANT
from ual_ray.config.report import WIN_RATE
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
from ual_ray.stats.comparison import described
from ual_ray.stats.primary import measure_of
from ual_ray.stats.score_quality import Quality, auroc_text

TEMPLATE = "page.html.j2"


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
