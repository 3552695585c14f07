"""Time and cost by the number of actors, and the knee: where more actors stop being worth their start."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ual_ray.plan.simulate import Pool, expected_seconds

# OURS: at the knee an actor still spends at least this share of its time on rows; the rest goes to starts, to failures, to the
# idle end, and to waiting for a server's limit.
WORTH = 0.5


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
