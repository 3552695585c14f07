"""Tasks of one command side by side, each in a thread: the main thread starts them, waits for them, and receives signals."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

# Seconds between two looks at the room for tasks.
INTERVAL = 0.2

logger = logging.getLogger(__name__)
Name = TypeVar("Name")
Result = TypeVar("Result")
# Of the thread of a task: whether its command was told to end.
_ending: ContextVar[threading.Event | None] = ContextVar("ending", default=None)


def raise_if_ending() -> None:
    """Raise KeyboardInterrupt in the thread of a task whose command was told to end. For tasks to call while they wait."""
    if (ending := _ending.get()) is not None and ending.is_set():
        raise KeyboardInterrupt


def side_by_side(
    tasks: Mapping[Name, Callable[[], Result]],
    room: Callable[[], int],
    failed: Callable[[Name, BaseException], None],
    grace_seconds: float,
) -> dict[Name, Result]:
    """Run tasks in their order, at most `room()` at a time and at least one; return their results in that order.

    After a failure no task is started, and those that run come to their ends; then the error of the first failed task, in
    their order, is raised. `failed` is called with each error as it occurs. On SIGTERM or Ctrl-C the tasks are told
    (`raise_if_ending`), and have `grace_seconds` to end before the exception is raised again.
    """
    waiting, ending = list(tasks), threading.Event()
    running: dict[Name, Future[Result]] = {}
    ended: dict[Name, Future[Result]] = {}
    try:
        while running or (waiting and not _failures(ended)):
            while waiting and not _failures(ended) and len(running) < max(1, room()):
                name = waiting.pop(0)
                running[name] = in_thread(partial(_told, tasks[name], ending), str(name))
            wait(running.values(), INTERVAL, FIRST_COMPLETED)
            for name in [name for name, future in running.items() if future.done()]:
                ended[name] = running.pop(name)
                if (error := ended[name].exception()) is not None:
                    logger.error("%s failed", name, exc_info=error)
                    failed(name, error)
    except BaseException:  # such as SIGTERM and Ctrl-C
        ending.set()
        wait(running.values(), grace_seconds)
        raise
    return {name: ended[name].result() for name in tasks if name in ended}


def _failures(ended: Mapping[Name, Future[Result]]) -> bool:
    return any(future.exception() is not None for future in ended.values())


def _told(task: Callable[[], Result], ending: threading.Event) -> Result:
    _ending.set(ending)
    return task()


def in_thread(task: Callable[[], Result], name: str) -> Future[Result]:
    """Run a task in a daemon thread: one that hangs does not keep the process from its end."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(task())
        except BaseException as error:  # it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
