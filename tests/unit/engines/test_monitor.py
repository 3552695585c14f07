"""The monitor: what it counts, when it stops a job, and whose engine it has replaced."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.engines import monitor as module
from ual_ray.engines.monitor import MIN_ROWS, MOST_DEATHS_BEFORE_RESULTS, Limits, Monitor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Put a clock in place that stands still until it is set, and note what is killed."""
    state = SimpleNamespace(now=1000.0, killed=[])

    def kill(actor: Any, *, no_restart: bool) -> None:
        assert no_restart is False
        state.killed.append(actor)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: state.now))
    monkeypatch.setattr(module, "ray", SimpleNamespace(kill=kill))
    return state


# --- counting --------------------------------------------------------------------------------------------------------


def test_everything_is_counted() -> None:
    monitor = Monitor()
    monitor.read(10, ["no response: output is empty", "no response: output is 3"])
    monitor.read(5, [])
    monitor.scored(8, ["engine: x", "overlong: 9 tokens"])
    monitor.scored(2, [])
    counts = monitor.counts()
    assert (counts.read, counts.bad, counts.rows, counts.failed) == (17, 2, 10, 2)
    assert counts.replaced == 0
    assert counts.reasons == Counter({"no response": 2, "engine": 1, "overlong": 1})


def test_without_limits_nothing_stops() -> None:
    monitor = Monitor()
    assert monitor.read(0, ["x"] * 1000) is None
    assert monitor.scored(1000, ["x"] * 1000) is None
    assert monitor.stopped() is None


# --- limits ----------------------------------------------------------------------------------------------------------


def test_too_many_bad_rows_stop_the_job_and_say_why() -> None:
    monitor = Monitor(Limits(bad=0.05))
    stop = monitor.read(94, ["no response: x", "no response: y", "not JSON: z", *["empty: e"] * 3])
    assert stop == (
        "6 of the first 100 rows are bad (3 empty, 2 no response, 1 not JSON), more than data.max_bad_share = 0.05 allows"
    )
    assert monitor.stopped() == stop


def test_too_many_rows_without_a_result_stop_the_job_and_say_why() -> None:
    monitor = Monitor(Limits(failed=0.2))
    assert monitor.scored(100, ["overlong: 9"] * 20) is None
    stop = monitor.scored(1, ["overlong: 9"])
    assert stop == (
        "21 of the first 101 rows are without a result (21 overlong), more than elicit.max_quarantine_share = 0.2 allows; "
        "the first: overlong: 9"
    )


def test_a_few_rows_are_not_judged() -> None:
    monitor = Monitor(Limits(bad=0.0, failed=0.0))
    assert monitor.read(0, ["x"] * (MIN_ROWS - 1)) is None
    assert monitor.scored(MIN_ROWS - 1, ["x"]) is None
    assert monitor.stopped() is None
    assert monitor.read(1, []) is not None


@given(percent=st.integers(0, 99))
def test_the_limit_itself_is_allowed_and_one_row_more_is_not(percent: int) -> None:
    """Also where limit * total is a little less than a whole number, as 0.29 * 100 is."""
    limits = Limits(bad=float(f"0.{percent:02d}"), failed=float(f"0.{percent:02d}"))
    assert Monitor(limits).read(100 - percent, ["x"] * percent) is None
    assert Monitor(limits).read(99 - percent, ["x"] * (percent + 1)) is not None
    assert Monitor(limits).scored(100, ["x"] * percent) is None
    assert Monitor(limits).scored(100, ["x"] * (percent + 1)) is not None


def test_one_limit_does_not_judge_the_other() -> None:
    monitor = Monitor(Limits(bad=1.0, failed=0.1))
    assert monitor.read(0, ["x"] * 500) is None
    assert monitor.scored(500, []) is None


def test_what_was_scored_before_an_interruption_is_judged_and_not_counted() -> None:
    monitor = Monitor(Limits(bad=0.0, failed=0.2), rows_before=90, failed_before=18)
    assert monitor.scored(10, ["x", "y"]) is None
    assert (monitor.counts().rows, monitor.counts().failed) == (10, 2)
    assert monitor.read(99, ["x"]) is not None  # reading begins anew
    again = Monitor(Limits(failed=0.2), rows_before=90, failed_before=19)
    assert (again.scored(10, ["x", "y"]) or "").startswith("21 of the first 100 rows are without a result")


def test_a_job_that_has_to_stop_stays_stopped_for_the_first_reason() -> None:
    monitor = Monitor(Limits(bad=0.5, failed=0.5))
    first = monitor.read(0, ["x"] * 100)
    assert first is not None
    assert monitor.read(10_000, []) == first
    assert monitor.scored(100, ["y"] * 100) == first
    assert monitor.stopped() == first


# --- attempts --------------------------------------------------------------------------------------------------------


def test_what_was_begun_and_not_finished_is_counted() -> None:
    monitor = Monitor()
    assert [monitor.begin("work", f"actor {number}") for number in range(3)] == [0, 1, 2]
    assert monitor.begin("other", "actor 0") == 0
    monitor.end("work")
    assert monitor.begin("work", "actor 0") == 0


def test_what_was_never_begun_can_be_ended() -> None:
    Monitor().end("nothing")


def test_work_began_with_the_first_batch(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    assert monitor.seconds_since_work_began() is None
    monitor.begin("work", "a")
    clock.now += 5
    monitor.begin("other", "b")
    clock.now += 2
    assert monitor.seconds_since_work_began() == 7


# --- hanging engines -------------------------------------------------------------------------------------------------


def test_an_engine_that_hangs_is_replaced_once(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    monitor.begin("slow", "a")
    clock.now += 5
    monitor.begin("quick", "b")
    clock.now += 5
    assert monitor.replace_hung(10) == 0  # at the limit is not over it
    clock.now += 1
    assert monitor.replace_hung(10) == 1
    assert clock.killed == ["a"]
    assert monitor.replace_hung(10) == 0
    assert monitor.counts().replaced == 1
    assert monitor.begin("slow", "c") == 1  # it was begun before


def test_what_is_finished_does_not_hang(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    monitor.begin("work", "a")
    monitor.end("work")
    clock.now += 1000
    assert monitor.replace_hung(10) == 0
    assert clock.killed == []


def test_several_hanging_engines_are_all_replaced(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    for name in "abc":
        monitor.begin(f"work {name}", name)
    clock.now += 11
    assert monitor.replace_hung(10) == 3
    assert sorted(clock.killed) == ["a", "b", "c"]


def test_a_batch_that_is_done_row_by_row_has_the_time_of_a_batch_for_every_row(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    monitor.begin("batch", "a")
    for row in range(5):
        monitor.begin(f"row {row}", "a", "batch")
        clock.now += 8
        assert monitor.replace_hung(10) == 0
        monitor.end(f"row {row}")
    monitor.end("batch")
    assert monitor.begin("batch", "a") == 0


def test_what_an_actor_did_before_it_died_is_not_held_against_it(clock: SimpleNamespace) -> None:
    """Ray starts an actor again under its old name: the work of its former life must not have it killed."""
    monitor = Monitor()
    monitor.begin("batch", "a")
    monitor.begin("another batch", "a")
    clock.now += 6
    monitor.started("a")
    monitor.begin("row", "a", "batch")
    clock.now += 11
    assert monitor.replace_hung(10) == 1
    monitor.begin("batch", "a")
    clock.now += 6
    assert monitor.replace_hung(10) == 0
    assert clock.killed == ["a"]


def test_an_engine_that_hangs_on_two_batches_is_replaced_once(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    monitor.begin("first", "a")
    monitor.begin("second", "a")
    clock.now += 11
    assert monitor.replace_hung(10) == 1
    assert (clock.killed, monitor.counts().replaced) == (["a"], 1)
    assert (monitor.attempts("first"), monitor.attempts("second"), monitor.attempts("third")) == (1, 1, 0)


def test_batches_of_one_actor_have_their_own_times(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    monitor.begin("first", "a")
    clock.now += 6
    monitor.begin("second", "a")
    clock.now += 3
    monitor.end("first")
    clock.now += 4
    assert monitor.replace_hung(10) == 0  # the second is at 7
    clock.now += 4
    assert monitor.replace_hung(10) == 1


def test_an_actor_that_loads_its_model_again_does_not_hang(clock: SimpleNamespace) -> None:
    monitor = Monitor()
    monitor.begin("batch", "a")
    monitor.begin("other", "b")
    clock.now += 6
    monitor.started("a")
    clock.now += 6
    assert monitor.replace_hung(10) == 1
    assert clock.killed == ["b"]
    assert monitor.begin("batch", "a") == 1


# --- engines that cannot run the model -------------------------------------------------------------------------------


def test_an_engine_that_dies_before_any_result_stops_the_job_with_its_own_words() -> None:
    monitor = Monitor()
    for number in range(1, MOST_DEATHS_BEFORE_RESULTS):
        assert monitor.died(f"words {number}") is None
    # A row that was given up counts as failed: it is no result.
    monitor.scored(1, ["engine: it died or hung on this row 2 times"])
    stop = "the engine died 8 times before any row had a result; the last time: unsupported head_dim"
    assert monitor.died("unsupported head_dim") == stop
    assert monitor.stopped() == stop


@pytest.mark.parametrize("before", [0, 3])
def test_an_engine_that_dies_after_a_result_does_not(before: int) -> None:
    monitor = Monitor(rows_before=before)
    monitor.scored(0 if before else 1, [])
    assert [monitor.died("x") for _ in range(20)] == [None] * 20
