"""Progress off a terminal: at most one line every ten seconds, with rate and ETA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from ual_ray.run import progress
from ual_ray.run.progress import Meter, meter, polled


class Log:
    """A console that is no terminal, and a clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.console = Console(file=StringIO(), force_terminal=False, width=80)

    @property
    def lines(self) -> list[str]:
        return self.console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def run(log: Log, shown: Meter, steps: Sequence[tuple[float, float]]) -> None:
    """Report what is done at each second after the start."""
    start = log.now
    for second, done in steps:
        log.now = start + second
        shown.update(done)


# A minute to load the model, then one row a second: ten rows are left.
SLOW_START = [(0, 0), (59.9, 0), (60, 1), (70, 11)]


@pytest.mark.parametrize(
    ("total", "steps", "lines"),
    [
        (100, [(0, 0), (1, 3), (5, 10), (9.9, 20)], []),
        (1000, [(tenth / 10, tenth / 10) for tenth in range(1, 451)], [r"  elicit: .*"] * 4),
        (1000, [(1, 1), (95, 95), (96, 96)], [r"  elicit: .*"]),
        (5000, [(0, 0), (0.001, 0.1), (10, 1000)], [r"  elicit: 1,000/5,000 100 rows/s ETA 40 s"]),
        (21, SLOW_START, [r"  elicit: 0/21 starting", r"  elicit: 11/21 1\.00 rows/s ETA 10 s"]),
        (None, [(0.5, 1), (10.5, 2001)], [r"  elicit: 2,001 200 rows/s"]),
        (50, [(12, 0)], [r"  elicit: 0/50 starting"]),
    ],
)
def test_a_line_every_ten_seconds_tells_how_much_how_fast_and_how_long_still(
    total: int | None, steps: Sequence[tuple[float, float]], lines: list[str], log: Log
) -> None:
    run(log, Meter(log.console, "elicit", total, "rows"), steps)
    assert len(log.lines) == len(lines)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(lines, log.lines, strict=True))


def test_the_rate_may_count_another_unit_than_the_bar(log: Log) -> None:
    shown = Meter(log.console, "train", 100, "tokens")
    start = log.now
    for second, steps, tokens in [(1, 1, 5_000), (11, 11, 55_000)]:
        log.now = start + second
        shown.update(steps, rate_done=tokens)
    assert "11/100" in log.lines[0]
    assert "5,000 tokens/s" in log.lines[0]


def test_a_line_is_not_repeated_while_nothing_changes(log: Log) -> None:
    shown = Meter(log.console, "train", 140, "tokens")
    run(log, shown, [(second, 0) for second in range(1, 100)])
    assert log.lines == ["  train: 0/140 starting"]
    run(log, shown, [(second, 1) for second in range(1, 100)])
    assert len(log.lines) == 2 and log.lines[1].startswith("  train: 1/140 ")
    log.now += 10
    shown.update(1, note="(1 failed)")
    assert len(log.lines) == 3


@pytest.mark.parametrize("note", ["(3 failed)", "[warming up]", "loss 1.2345 " * 8])
def test_the_note_is_shown_on_the_same_line(note: str, log: Log) -> None:
    shown = Meter(log.console, "train", 100, "rows")
    log.now += 11
    shown.update(5, note=note)
    (line,) = log.lines
    assert note.strip() in line


def test_the_block_form_closes_and_keeps_time(log: Log) -> None:
    with pytest.raises(RuntimeError), meter(log.console, "elicit", 10, "rows") as shown:
        log.now += 7
        shown.update(4)
        assert (shown.seconds, shown.done) == (7.0, 4)
        raise RuntimeError
    assert log.lines == []


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    file = StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    with meter(console, "elicit", 10, "rows") as shown:
        assert console.is_terminal
        shown.update(10)
    assert "elicit" in file.getvalue()
    assert "elicit: 10/10" not in file.getvalue()


def test_what_is_polled_is_called_once_more_at_the_end_and_its_faults_end_nothing() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(len(calls))
        raise RuntimeError("the screen is gone")

    with polled(call, seconds=3600):
        assert calls == []
    assert calls == [0]


def test_of_meters_side_by_side_one_has_a_bar_and_the_others_print_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    console = Console(file=StringIO(), force_terminal=True, width=80)
    with meter(console, "train ual (seed 0)", 9, "tokens") as bar:
        with meter(console, "train ual (seed 1)", 9, "tokens") as lines:
            assert bar._bar is not None and lines._bar is None
            clock.now = 11.0
            bar.update(3)
            lines.update(2)
        assert "  train ual (seed 1): 2/9" in console.file.getvalue()  # type: ignore[attr-defined]
        bar.close()
        with meter(console, "train ual (seed 2)", 9, "tokens") as after:
            assert after._bar is not None, "the bar is free again"
    with meter(console, "train ual (seed 3)", 9, "tokens") as last:
        assert last._bar is not None
