"""Rows on a pool of actors: how long they take, without failures, in expectation, and by a discrete-event simulation.

Actors take units of rows from one queue. A unit takes an actor `unit_seconds`. An actor fails at a constant rate while it
works: the unit in work is lost and goes back to the queue, and the actor is back after `start_seconds`, as at its first start.
A sweep gives time and cost by the number of actors, and the knee: where more actors stop being worth their start.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

SECONDS_PER_HOUR = 3600.0
# Random numbers are drawn in blocks of this many.
DRAWN = 65_536
# OURS: at the knee an actor still spends at least this share of its time on rows; the rest goes to starts, to failures, to the
# idle end, and to waiting for a server's limit.
WORTH = 0.5


@dataclass(frozen=True)
class Pool:
    """`units` of work, for `actors` >= 1; seconds of a unit and of a start; failures per hour of work of one actor."""

    units: int
    actors: int
    unit_seconds: float
    start_seconds: float = 0.0
    failures_per_hour: float = 0.0

    @property
    def failure_rate(self) -> float:
        """Failures per second of work of one actor."""
        return self.failures_per_hour / SECONDS_PER_HOUR


@dataclass(frozen=True)
class Outcome:
    """How a simulation ended: seconds until the last unit was done, failures, and seconds of work that was lost."""

    seconds: float
    failures: int
    lost_seconds: float


def expected_unit_seconds(pool: Pool) -> float:
    """Expected seconds until an actor has finished a unit, with the tries that failed and the starts after them.

    With a constant failure rate r, a unit of t seconds and a start of s seconds: (1/r + s) (exp(r t) - 1).
    """
    rate = pool.failure_rate
    if rate == 0:
        return pool.unit_seconds
    return (1 / rate + pool.start_seconds) * math.expm1(rate * pool.unit_seconds)


def expected_seconds(pool: Pool) -> float:
    """Expected seconds of all units on all actors, with the last round's idle time; exact without failures."""
    return pool.start_seconds + math.ceil(pool.units / pool.actors) * expected_unit_seconds(pool)


def expected_failures(pool: Pool) -> float:
    """Expected number of failures until all units are done."""
    return pool.units * math.expm1(pool.failure_rate * pool.unit_seconds)


def simulate(pool: Pool, seed: int) -> Outcome:
    """Run the pool event by event: an event is the end of a unit, or a failure in it. The same seed gives the same outcome."""
    fresh, actors = pool.units, min(pool.actors, pool.units)
    free = [pool.start_seconds] * actors  # when each actor can take a unit
    returned: list[float] = []  # when each lost unit is back in the queue
    failing = _failures(pool.failure_rate, seed)
    finished, failures, lost = 0.0, 0, 0.0
    while fresh or returned:
        now = heapq.heappop(free)
        if fresh:
            fresh -= 1
        else:
            now = max(now, heapq.heappop(returned))
        if (survives := next(failing)) >= pool.unit_seconds:
            now += pool.unit_seconds
            finished = max(finished, now)
        else:
            failures, lost = failures + 1, lost + survives
            heapq.heappush(returned, now + survives)
            now += survives + pool.start_seconds
        heapq.heappush(free, now)
    return Outcome(finished, failures, lost)


def _failures(rate: float, seed: int) -> Iterator[float]:
    """Yield seconds of work until the next failure; a constant rate has no memory, so that every unit may draw another one."""
    generator = np.random.default_rng(seed)
    while True:
        yield from [math.inf] * DRAWN if rate == 0 else generator.exponential(1 / rate, DRAWN).tolist()


@dataclass(frozen=True)
class Point:
    """A number of actors: expected seconds, actor hours, and the share of these that is work on rows."""

    actors: int
    seconds: float
    actor_hours: float
    useful: float
    knee: bool = False


def sweep(pool: Pool, least_seconds: float = 0.0) -> list[Point]:
    """Return a point for each power of two up to the first beyond the knee, and for `pool.actors`; the knee is marked.

    The knee is the highest of these numbers of actors that is worth its start; no more actors than units are considered.
    least_seconds: what a server's rate limit takes, however many actors ask.
    """
    numbers = {pool.actors}
    for exponent in range(pool.units.bit_length() + 1):
        number = min(2**exponent, pool.units)
        numbers.add(number)
        if _point(replace(pool, actors=number), least_seconds).useful < WORTH:
            break
    points = [_point(replace(pool, actors=number), least_seconds) for number in sorted(numbers)]
    knee = max((point.actors for point in points if point.useful >= WORTH), default=1)
    return [replace(point, knee=point.actors == knee) for point in points]


def _point(pool: Pool, least_seconds: float) -> Point:
    seconds = max(expected_seconds(pool), pool.start_seconds + least_seconds)
    taken = pool.actors * seconds
    return Point(pool.actors, seconds, taken / 3600, pool.units * pool.unit_seconds / taken)
