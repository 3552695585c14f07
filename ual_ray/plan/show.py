"""Print a plan on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ual_ray.formatting import duration, share
from ual_ray.plan.sweep import WORTH

if TYPE_CHECKING:
    from rich.console import Console

    from ual_ray.plan.outline import Outline


def show(plan: Outline, notes: Sequence[str], console: Console) -> None:
    """Print the lines of a plan, its sweep over actors, and notes on the trial."""
    for name, text in plan.lines:
        console.print(f"{name:<26} {text}", markup=False, highlight=False)
    for text in sweep_lines(plan):
        console.print(text, markup=False, highlight=False)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, style="yellow")


def sweep_lines(plan: Outline) -> Iterator[str]:
    """Yield the table of the sweep; the knee is marked."""
    if plan.points:
        yield f"\n{'actors':>8} {'scoring takes':>16} {'actor hours':>12} {'time on rows':>13}"
    for point in plan.points:
        mark = "  <- knee" if point.knee else ""
        row = f"{point.actors:>8,} {duration(point.seconds):>16} {point.actor_hours:>12,.2f} {share(point.useful):>13}"
        yield f"{row}{mark}"
    if any(point.useful >= WORTH for point in plan.points):
        yield "knee: the most actors, up to one per block, of whose time at least half goes to rows"
    elif plan.points:
        yield "knee: one actor, as less than half of the time goes to rows with any number"
