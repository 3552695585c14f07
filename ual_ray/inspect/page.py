"""An inspection as one self-contained HTML page: no scripts, nothing loaded from elsewhere, charts as inline SVG.

What the rows say is hostile: everything is escaped by the template, and the page's own policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from ual_ray import columns as col
from ual_ray.config import ENSEMBLE
from ual_ray.config.registry import ESTIMATORS
from ual_ray.formatting import count, number, share
from ual_ray.inspect.measure import MAX_SOURCES
from ual_ray.inspect.summary import Inspection, Shown
from ual_ray.plots.page import make_environment
from ual_ray.stats.score_quality import BINS, Correlation, Distribution, Quality

TEMPLATE = "page.html.j2"
# Charts are drawn in a box of this width and stretched to their place; only their height is theirs.
WIDTH = 100.0
GAP = 0.5


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, in a box 100 wide and 1 high, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    title: str


def to_html(inspection: Inspection) -> str:
    """Draw the page."""
    panels = {name: inspection.scores[col.UNCERTAINTY].by_source[name] for name in inspection.shown_sources}
    everything = inspection.scores[col.UNCERTAINTY].distribution
    return _template().render(
        page=inspection,
        score=inspection.scores[col.UNCERTAINTY],
        scored=inspection.rows - inspection.scores[col.UNCERTAINTY].missing,
        everything=everything,
        panels=panels,
        top=tallest([everything, *panels.values()]),
        measures=[name for name in inspection.scores if name != col.UNCERTAINTY],
        matrix=matrix(inspection),
        glossary=_glossary(inspection.scores),
        hidden_sources=len(inspection.sources) - len(inspection.shown_sources),
        max_sources=MAX_SOURCES,
    )


@cache
def _template() -> Template:
    environment = make_environment(Path(__file__).parent)
    environment.filters.update(money=money, tint=tint)
    environment.globals.update(bars=bars, tallest=tallest, interval=interval, speakers=speakers)
    return environment.get_template(TEMPLATE)


def tallest(distributions: list[Distribution | None]) -> float:
    """Find the largest share of rows in one bin, over charts that are to have one scale."""
    return max((max(found.histogram) / found.n for found in distributions if found is not None), default=1.0)


def bars(distribution: Distribution, top: float) -> list[Bar]:
    """Place the bars of a histogram: heights are shares of its rows, `top` fills the box."""
    step = WIDTH / BINS
    return [
        Bar(
            x=round(place * step + GAP / 2, 3),
            y=round(1 - rows / distribution.n / top, 4),
            width=step - GAP,
            height=round(rows / distribution.n / top, 4),
            title=f"{place / BINS:.2f} to {(place + 1) / BINS:.2f}: {count(rows)} rows ({share(rows / distribution.n)})",
        )
        for place, rows in enumerate(distribution.histogram)
        if rows
    ]


def interval(quality: Quality) -> tuple[float, float, float] | None:
    """Place an AUROC and the ends of its two standard errors on a line 100 long; None when it is undefined."""
    if quality.auroc is None:
        return None
    reach = 2 * (quality.auroc_error or 0.0)
    low, high = max(0.0, quality.auroc - reach), min(1.0, quality.auroc + reach)
    return round(WIDTH * quality.auroc, 2), round(WIDTH * low, 2), round(WIDTH * high, 2)


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


def speakers(row: Shown) -> list[dict[str, Any]]:
    """Give the messages of a row, each marked whether it is the response that was scored."""
    last = len(row.messages) - 1
    return [{**message, "scored": place == last} for place, message in enumerate(row.messages)]


def _glossary(names: Iterable[str]) -> dict[str, str]:
    """Explain each score that a registry or this page knows."""
    known = {
        col.UNCERTAINTY: "The score that smoothing reads, in [0, 1]. Higher = more uncertain.",
        ENSEMBLE: "The mean rank of a row over several estimators, as a share of the rows.",
    }
    return {name: known.get(name) or ESTIMATORS[name].summary for name in names if name in known or name in ESTIMATORS}
