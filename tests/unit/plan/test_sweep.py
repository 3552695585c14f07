"""Time and cost by the number of actors, and its knee."""

from __future__ import annotations

import pytest

from ual_ray.plan.outline import Outline, sweep_lines
from ual_ray.plan.simulate import WORTH, Pool, sweep


def test_the_knee_is_where_starts_take_as_long_as_the_work() -> None:
    # 1,024 units of 10 s and a start of 160 s: at n actors an actor works 10,240/n s, and starts for 160 s; equal at n = 64.
    points = sweep(Pool(1024, 8, 10, start_seconds=160))
    (knee,) = (point for point in points if point.knee)
    assert knee.actors == 64 and knee.useful == pytest.approx(WORTH)
    assert [point.actors for point in points] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert points[-1].useful < WORTH
    assert [point.seconds for point in points] == sorted((point.seconds for point in points), reverse=True)
    assert points[3].seconds == 160 + 128 * 10 and points[3].actor_hours == pytest.approx(8 * 1440 / 3600)


def test_failures_and_a_servers_limit_bring_the_knee_nearer() -> None:
    calm = Pool(1024, 1, 10, start_seconds=160)

    def knee(*arguments: object, **options: float) -> int:
        return next(point.actors for point in sweep(*arguments, **options) if point.knee)  # type: ignore[arg-type]

    assert knee(Pool(1024, 1, 10, 160, failures_per_hour=10)) < knee(calm)
    limited = sweep(calm, least_seconds=2560)
    assert next(point.actors for point in limited if point.knee) == 4
    assert all(point.seconds >= 160 + 2560 for point in limited)


def test_without_starts_every_unit_may_have_an_actor() -> None:
    points = sweep(Pool(100, 3, 10))
    assert [point.actors for point in points] == [1, 2, 3, 4, 8, 16, 32, 64, 100]
    assert points[-1].knee and points[-1].seconds == 10
    (one,) = sweep(Pool(1, 1, 10, start_seconds=1000))
    assert one.knee


@pytest.mark.parametrize(("start", "words"), [(1000, "less than half of the time"), (1, "at least half goes to rows")])
def test_the_words_under_the_table_hold(start: float, words: str) -> None:
    *_, last = sweep_lines(Outline(points=sweep(Pool(4, 1, 10, start_seconds=start))))
    assert last.startswith("knee: ") and words in last
