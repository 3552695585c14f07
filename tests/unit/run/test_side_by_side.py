"""Tasks side by side: their results do not depend on their order of ending, a failure stops new ones, signals reach all."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from ual_ray.config import Config
from ual_ray.run.side_by_side import in_waiting_thread, raise_if_ending, side_by_side
from ual_ray.run.step import Session


class Tasks:
    """Counts what runs at a time, and keeps the errors that were told."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.started: list[int] = []
        self.failed: list[tuple[int, str]] = []

    def make(self, number: int, seconds: float = 0.05, error: BaseException | None = None) -> Callable[[], int]:
        def task() -> int:
            with self.lock:
                self.started.append(number)
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(seconds)
            with self.lock:
                self.running -= 1
            if error is not None:
                raise error
            return number * number

        return task

    def run(self, tasks: dict[int, Callable[[], int]], room: int) -> dict[int, int]:
        return side_by_side(tasks, lambda: room, lambda name, error: self.failed.append((name, str(error))), 5)


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.mark.slow
@pytest.mark.parametrize("room", [-1, 1, 2, 3, 100])
def test_results_are_in_the_order_of_the_tasks_and_no_more_run_than_there_is_room_for(tasks: Tasks, room: int) -> None:
    # The first tasks end last.
    found = tasks.run({n: tasks.make(n, 0.02 * (6 - n)) for n in range(6)}, room)
    assert [*found.items()] == [(n, n * n) for n in range(6)]
    assert tasks.most == min(6, max(1, room))
    assert tasks.started == sorted(tasks.started) or room > 1


def test_no_tasks_have_no_results(tasks: Tasks) -> None:
    assert tasks.run({}, 2) == {}


@pytest.mark.slow
def test_after_a_failure_none_starts_those_that_run_end_and_all_errors_are_told(tasks: Tasks) -> None:
    given = {
        0: tasks.make(0, 0.6),
        1: tasks.make(1, 0.1, OSError("the disk is full")),
        2: tasks.make(2, 0.5, ValueError("too late")),
        **{n: tasks.make(n) for n in range(3, 6)},
    }
    with pytest.raises(OSError, match="the disk is full"):
        tasks.run(given, 3)
    assert tasks.started == [0, 1, 2] and tasks.running == 0
    assert tasks.failed == [(1, "the disk is full"), (2, "too late")]


@pytest.mark.slow
def test_of_several_errors_the_one_of_the_first_task_is_raised(tasks: Tasks) -> None:
    with pytest.raises(ValueError, match="of the first"):
        tasks.run({0: tasks.make(0, 0.4, ValueError("of the first")), 1: tasks.make(1, 0.05, OSError("of the second"))}, 2)
    assert [name for name, _ in tasks.failed] == [1, 0]


@pytest.mark.slow
def test_room_that_grows_is_used(tasks: Tasks) -> None:
    side_by_side(
        {n: tasks.make(n, 0.3) for n in range(5)}, lambda: 1 if len(tasks.started) < 2 else 3, lambda *_: None, grace_seconds=5
    )
    assert tasks.started[:2] == [0, 1] and tasks.most == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_task_and_none_starts(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
    saved: list[int] = []
    started: list[int] = []

    def waits(task: int) -> None:
        started.append(task)
        try:
            for _ in range(1000):
                raise_if_ending()
                time.sleep(0.02)
        except KeyboardInterrupt:
            saved.append(task)
            raise

    try:
        threading.Timer(0.3, signal.raise_signal, [number]).start()
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            side_by_side({n: lambda n=n: waits(n) for n in range(4)}, lambda: 2, lambda *_: None, 10)  # type: ignore[misc]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(saved) == sorted(started) == [0, 1]


@pytest.mark.slow
def test_a_task_that_does_not_listen_is_left_after_the_grace() -> None:
    forever = threading.Event()
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side({"deaf": forever.wait}, lambda: 1, lambda *_: None, grace_seconds=0.3)
    finally:
        forever.set()
    assert time.monotonic() - started < 10


def test_outside_of_a_task_nothing_is_ending_and_calls_stay_in_their_thread() -> None:
    raise_if_ending()
    assert in_waiting_thread(threading.get_ident) == threading.get_ident()


@pytest.mark.slow
def test_calls_of_tasks_are_made_in_the_thread_that_waits_and_their_errors_are_those_of_the_task(tasks: Tasks) -> None:
    def fails() -> None:
        in_waiting_thread(tasks.make(1, error=OSError("no cluster")))

    found = side_by_side({n: lambda: in_waiting_thread(threading.get_ident) for n in range(3)}, lambda: 2, lambda *_: None, 5)
    assert {*found.values()} == {threading.get_ident()}
    with pytest.raises(OSError, match="no cluster"):
        side_by_side({0: fails, 1: tasks.make(1)}, lambda: 2, lambda name, error: tasks.failed.append((name, str(error))), 5)
    assert tasks.failed == [(0, "no cluster")]


@pytest.mark.slow
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_a_call_ends_all_tasks(raised: type[BaseException]) -> None:
    ended: list[int] = []

    def interrupted() -> None:
        raise raised

    def task(number: int) -> None:
        try:
            in_waiting_thread(interrupted)
        finally:
            ended.append(number)

    with pytest.raises(raised):
        side_by_side({n: lambda n=n: task(n) for n in range(2)}, lambda: 2, lambda *_: None, 5)  # type: ignore[misc]
    assert sorted(ended) == [0, 1]


def test_the_first_task_that_needs_the_cluster_has_it_joined_by_the_thread_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux ends the processes that Ray starts with the thread that started them, and only the main thread handles signals."""
    joined: list[int] = []
    monkeypatch.setattr(Session, "_connect", lambda _: joined.append(threading.get_ident()))
    session = Session(Config(), Console(), None)
    side_by_side({n: session.connect for n in range(3)}, lambda: 2, lambda *_: None, 5)
    assert joined == [threading.get_ident()]
