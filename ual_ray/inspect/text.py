"""Print an inspection on the terminal: its warnings and a table of estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ual_ray import columns as col
from ual_ray.formatting import count, number, plural, share
from ual_ray.stats.score_quality import auroc_text

if TYPE_CHECKING:
    from rich.console import Console

    from ual_ray.inspect.summary import Inspection, Score


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
    error = "" if quality.auroc_error is None else f" ± {number(quality.auroc_error)}"
    return [number(quality.auroc) + error]
