"""An inspection in short on the terminal, and as one self-contained HTML page: no scripts, nothing loaded, plots as inline SVG.

Rows are untrusted: the template escapes everything, and the page's own policy forbids scripts.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Template
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ual_ray import columns as col
from ual_ray.config import ENSEMBLE
from ual_ray.config.registry import ESTIMATORS
from ual_ray.formatting import count, number, plural, share
from ual_ray.inspect.summary import Inspection, Score
from ual_ray.plots.intervals import aurocs
from ual_ray.plots.style import make_environment, to_svg
from ual_ray.plots.training import distributions, uncertainty_by_source
from ual_ray.stats.score_quality import Correlation, auroc_text

TEMPLATE = "page.html.j2"


def to_html(inspection: Inspection) -> str:
    """Write the page."""
    score = inspection.scores[col.UNCERTAINTY]
    return _template().render(
        page=inspection,
        plots=_plots(inspection),
        scored=inspection.rows - score.missing,
        everything=score.distribution,
        by_source={name: score.by_source[name] for name in inspection.shown_sources},
        measures=[name for name in inspection.scores if name != col.UNCERTAINTY],
        matrix=matrix(inspection),
        glossary=_glossary(inspection.scores),
        hidden_sources=len(inspection.sources) - len(inspection.shown_sources),
    )


@cache
def _template() -> Template:
    environment = make_environment(Path(__file__).parent)
    environment.filters.update(money=money, tint=tint)
    return environment.get_template(TEMPLATE)


def _plots(inspection: Inspection) -> dict[str, str]:
    by_source = inspection.scores[col.UNCERTAINTY].by_source
    histograms = {name: found.histogram for name, found in by_source.items() if found is not None}
    found = {}
    if histograms:
        found["uncertainty_by_source"] = to_svg(uncertainty_by_source(histograms), "Rows by uncertainty, stacked by source")
    if len(by_source) > 1:
        found["sources"] = to_svg(distributions(by_source), "Distribution of the uncertainty, per source")
    spreads = {name: score.distribution for name, score in inspection.scores.items()}
    found["estimators"] = to_svg(distributions(spreads), "Distribution of the scores, per estimator")
    if inspection.labelled is not None:
        found["aurocs"] = to_svg(aurocs(inspection.quality), "AUROC of every score")
    return found


def matrix(inspection: Inspection) -> dict[str, dict[str, Correlation | None]]:
    """Lay the agreement out as a square; None on the diagonal."""
    names = [name for name in inspection.scores if name != col.UNCERTAINTY]
    found: dict[str, dict[str, Correlation | None]] = {name: dict.fromkeys(names) for name in names}
    for pair in inspection.agreement:
        found[pair.first][pair.second] = found[pair.second][pair.first] = Correlation(pair.spearman, pair.n)
    return found


def tint(correlation: float | None) -> str:
    """Give the classes that colour a table's cell: by sign, and by strength in tenths."""
    if correlation is None:
        return "none"
    return f"{'minus' if correlation < 0 else 'plus'} t{round(abs(correlation) * 10)}"


def money(amount: float | None) -> str:
    """Write an amount, a small one with more decimals; a missing one as a dash."""
    return number(amount, 4 if amount is not None and amount < 1 else 2)


def _glossary(names: Iterable[str]) -> dict[str, str]:
    """Explain each score that a registry or this page knows."""
    known = {
        col.UNCERTAINTY: "The score that smoothing reads, in [0, 1]. Higher = more uncertain.",
        ENSEMBLE: "The mean rank of a row over several estimators, as a share of the rows.",
    }
    return {name: known.get(name) or ESTIMATORS[name].summary for name in names if name in known or name in ESTIMATORS}


def to_console(inspection: Inspection, console: Console) -> None:
    """Print the warnings, and one table of estimators."""
    scored = inspection.rows - inspection.scores[col.UNCERTAINTY].missing
    of = f" = {inspection.score_of}" if inspection.score_of else ""
    head = f"{plural(inspection.rows, 'row')} of {plural(len(inspection.sources), 'source')}, {count(scored)} with a score{of}"
    console.print(f"[bold]{escape(inspection.path)}[/bold]: {escape(head)}", highlight=False, soft_wrap=True)
    for text in inspection.warnings:
        console.print(f"[yellow]![/yellow] {escape(text)}", highlight=False, soft_wrap=True)
    if not inspection.warnings:
        console.print("[green]no warnings[/green]", highlight=False)
    console.print(_table(inspection))
    if (check := inspection.self_check) is not None:
        console.print(
            f"self-check: {plural(check.rows, 'row')}, {check.swapped} of them with another row's response", highlight=False
        )
        for name, found in check.estimators.items():
            console.print(f"  {escape(name):<20} {auroc_text(found)}", highlight=False)


def _table(inspection: Inspection) -> Table:
    table = Table(title="Uncertainty in [0, 1], higher = more uncertain", title_justify="left")
    table.add_column("score", no_wrap=True)
    for name in ["mean", "std", "distinct", "no value", "retest noise", "length corr."]:
        table.add_column(name, justify="right")
    if inspection.labelled is not None:
        table.add_column("AUROC", justify="right")
    for name, score in inspection.scores.items():
        table.add_row(escape(name), *_cells(score), *_auroc(inspection, name))
    return table


def _cells(score: Score) -> list[str]:
    spread, noise = score.distribution, score.noise
    return [
        number(spread.mean if spread else None),
        number(spread.deviation if spread else None),
        count(spread.distinct if spread else None),
        share(score.null_rate),
        number(noise.standard_error if noise else None, 3),
        number(score.length.spearman),
    ]


def _auroc(inspection: Inspection, name: str) -> list[str]:
    if inspection.labelled is None:
        return []
    quality = inspection.quality[name]
    interval = "" if quality.auroc is None else f" ({number(quality.auroc_low)} to {number(quality.auroc_high)})"
    return [number(quality.auroc) + interval]
