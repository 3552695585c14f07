"""The page of a run: one self-contained HTML file without scripts, nothing loaded from elsewhere, plots as inline SVG.

Rows, names and configurations are untrusted: the template escapes everything, and the page's own policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Template
from matplotlib.figure import Figure

from ual_ray.plots.page import make_environment
from ual_ray.report.draw import to_svgs
from ual_ray.report.findings import regime_of, without_primary
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.measures import guard_lines, notes
from ual_ray.report.page_data import PageData
from ual_ray.report.table import VERDICTS, difference_text, primary_of, sentence, tables
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import described
from ual_ray.stats.score_quality import Quality, auroc_text

TEMPLATE = "page.html.j2"


def to_html(data: PageData, drawn: Mapping[str, Figure]) -> str:
    """Write the page; `drawn` are the plots of `draw`."""
    findings = data.findings
    return _template().render(
        page=data,
        plots=to_svgs(drawn),
        elicited=data.elicit.metrics if data.elicit else {},
        findings=findings,
        primary=primary_of(findings.comparisons) if findings else [],
        primary_digest=described(findings.comparisons.primary)["digest"] if findings else "",
        no_primary=without_primary(findings) if findings else None,
        judged=judged_verdicts(findings) if findings else [],
        guards=guard_lines(findings.comparisons) if findings else [],
        regime=regime_of(findings) if findings else None,
        tables=tables(findings) if findings else {},
        measures=notes(findings) if findings else [],
    )


@cache
def _template() -> Template:
    environment = make_environment(Path(__file__).parent)
    environment.globals.update(difference_text=difference_text, VERDICTS=VERDICTS, sentence=sentence, min_seeds=MIN_SEEDS)
    environment.filters["auroc"] = lambda found: auroc_text(Quality(**found))
    return environment.get_template(TEMPLATE)
