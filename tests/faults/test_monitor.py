"""What the monitor takes for a hung engine, and what it does not."""

from __future__ import annotations

import pytest

from ual_ray.engines import monitor as module
from ual_ray.engines.monitor import Limits, Monitor

HANG = 10.0


class Clock:
    """Time that passes when it is told to, and the actors that were killed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.killed: list[object] = []

    def monotonic(self) -> float:
        return self.now

    def kill(self, actor: object, *, no_restart: bool) -> None:
        assert not no_restart, "Ray has to start another in its place"
        self.killed.append(actor)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(module.ray, "kill", clock.kill)
    return clock


def test_an_actor_that_is_at_one_batch_for_too_long_is_killed_once(clock: Clock) -> None:
    monitor = Monitor()
    monitor.begin("batch", "actor")
    clock.now = HANG + 1
    assert (monitor.replace_hung(HANG), monitor.replace_hung(HANG)) == (1, 0)
    assert clock.killed == ["actor"]
    assert monitor.counts().replaced == 1
    assert monitor.begin("batch", "actor") == 1, "it counts as an attempt"


def test_an_actor_that_died_is_not_killed_while_it_loads_its_model_again(clock: Clock) -> None:
    monitor = Monitor()
    monitor.begin("batch", "actor")
    clock.now = 5
    monitor.started("actor")
    clock.now = 3 * HANG
    assert monitor.replace_hung(HANG) == 0
    assert monitor.begin("batch", "actor") == 1


def test_what_an_actor_did_before_it_died_is_not_held_against_it(clock: Clock) -> None:
    monitor = Monitor()
    monitor.begin("second batch of a block", "actor")
    clock.now = 5
    monitor.begin("first batch of a block", "actor")
    clock.now = HANG + 1
    assert monitor.replace_hung(HANG) == 0


def test_rows_that_are_done_one_by_one_have_the_time_of_a_batch_each(clock: Clock) -> None:
    monitor = Monitor()
    monitor.begin("batch", "actor")
    for row in range(8):
        monitor.begin(f"row {row}", "actor")
        clock.now += HANG - 1
        assert monitor.replace_hung(HANG) == 0
        monitor.end(f"row {row}")
    monitor.end("batch")
    assert monitor.begin("batch", "actor") == 0


def test_a_limit_that_was_passed_stays_passed() -> None:
    monitor = Monitor(Limits(failed=0.2))
    assert monitor.scored(99, ["overlong: x"] * 99) is None, "before 100 rows a share says little"
    assert monitor.stopped() is None
    reason = monitor.scored(1, [])
    assert reason is not None
    assert "99 of the first 100 rows are without a result (99 overlong)" in reason
    monitor.scored(10_000, [])
    assert monitor.stopped() == reason
