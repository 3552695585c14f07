"""Charts for a page: where lines, bars and ticks lie in a box, in its own units. The template draws them. Pure.

A box is small (400 wide), so that its text can be read on a phone, and grows with its place on wider screens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 400.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 10.0, 38.0
TICKS = 5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: its place in the box, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve: its name, its colour's number, its points as SVG writes them; `dots` marks every point."""

    name: str
    tone: int
    path: str
    points: tuple[tuple[float, float], ...]
    dots: bool


@dataclass(frozen=True)
class Bar:
    """A bar, from its upper left corner, with what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    tone: int
    title: str


@dataclass(frozen=True)
class Chart:
    """A box with axes; `diagonal` holds the ends of a line of equality."""

    label: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    diagonal: tuple[float, float, float, float] | None = None
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM

    @property
    def legend(self) -> list[tuple[str, int]]:
        """Names and colours of the lines, each once."""
        return list(dict.fromkeys((line.name, line.tone) for line in self.lines))


@dataclass(frozen=True)
class Scale:
    """Both axes: from numbers to places in the box."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Place a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(LEFT + across * (WIDTH - RIGHT - LEFT), 2), round(HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP), 2)

    def x_ticks(self) -> tuple[Tick, ...]:
        """Mark the horizontal axis at round numbers."""
        return tuple(Tick(self.place(at, self.y[0])[0], f"{at:g}") for at in _round_numbers(*self.x))

    def y_ticks(self) -> tuple[Tick, ...]:
        """Mark the vertical axis at round numbers."""
        return tuple(Tick(self.place(self.x[0], at)[1], f"{at:g}") for at in _round_numbers(*self.y))


def _round_numbers(low: float, high: float) -> list[float]:
    ticks = MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    reach = (high - low) * 1e-9
    return [round(float(tick), 10) for tick in ticks if low - reach <= tick <= high + reach]


def _range(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room


def line_chart(
    curves: Sequence[tuple[str, int, Points, bool]], label: str, x_label: str, y_label: str, y_range: Points | None = None
) -> Chart | None:
    """Draw curves of (name, tone, points, dots) on one scale; `y_range` adds points that the scale must hold. None = empty."""
    drawn = [curve for curve in curves if len(curve[2])]
    every = [point for curve in drawn for point in curve[2]]
    if not every:
        return None
    steps = [x for x, _ in every]
    span = (min(steps), max(steps)) if max(steps) > min(steps) else _range(steps)
    scale = Scale(span, _range([y for _, y in [*every, *(y_range or [])]]))
    lines = tuple(_line(name, tone, points, dots, scale) for name, tone, points, dots in drawn)
    return Chart(label, x_label, y_label, scale.x_ticks(), scale.y_ticks(), lines=lines)


def _line(name: str, tone: int, points: Points, dots: bool, scale: Scale) -> Line:
    placed = tuple(scale.place(x, y) for x, y in points)
    return Line(name, tone, " ".join(f"{x},{y}" for x, y in placed), placed, dots)


def histogram(counts: Mapping[str, Sequence[int]], top: float, label: str, x_label: str, y_label: str = "rows") -> Chart | None:
    """Draw rows per interval from 0 to `top`, one colour per name, on top of each other. None where there are no rows."""
    bins = max((len(found) for found in counts.values()), default=0)
    totals = [sum(found[place] for found in counts.values()) for place in range(bins)]
    if not any(totals):
        return None
    scale = Scale((0.0, top), (0.0, 1.05 * max(totals)))
    bars = []
    below = [0] * bins
    for tone, (name, found) in enumerate(counts.items()):
        for place, rows in enumerate(found):
            if rows:
                low, high = top * place / bins, top * (place + 1) / bins
                x, y = scale.place(low, below[place] + rows)
                right, bottom = scale.place(high, below[place])
                title = f"{name}, {low:.3g} to {high:.3g}: {rows:,} rows"
                bars.append(Bar(x + 0.4, y, round(right - x - 0.8, 2), round(bottom - y, 2), tone, title))
                below[place] += rows
    return Chart(label, x_label, y_label, scale.x_ticks(), scale.y_ticks(), bars=tuple(bars))


def reliability(curves: Sequence[tuple[str, int, Points]], label: str) -> Chart | None:
    """Draw accuracy by confidence, both in [0, 1], with the line on which a model is right as often as it says."""
    scale = Scale((0.0, 1.0), (0.0, 1.0))
    lines = tuple(_line(name, tone, points, True, scale) for name, tone, points in curves if points)
    if not lines:
        return None
    ends = (*scale.place(0, 0), *scale.place(1, 1))
    return Chart(label, "confidence", "accuracy", scale.x_ticks(), scale.y_ticks(), lines=lines, diagonal=ends)


@dataclass(frozen=True)
class Span:
    """An interval on a line 100 long: its ends, its middle, and where 0 (or another mark) lies; ends may be cut off."""

    low: float
    high: float
    middle: float
    mark: float


def spans(intervals: Sequence[tuple[float, float, float]], mark: float = 0.0) -> list[Span]:
    """Place intervals (low, value, high) on one scale that holds all of them and the mark."""
    low, high = _range([mark, *(part for interval in intervals for part in interval)], 0.03)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return [Span(place(least), place(most), place(value), place(mark)) for least, value, most in intervals]
