"""Tasks of one command side by side, each in a thread: the main thread starts them, waits for them, and receives signals."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

# Seconds between two looks at the room for tasks.
INTERVAL = 0.2

logger = logging.getLogger(__name__)
Name = TypeVar("Name")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting:
    """The thread that waits for tasks: whether its command was told to end, and the calls that tasks leave to it."""

    ending: threading.Event = field(default_factory=threading.Event)
    calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=SimpleQueue)

    def do_calls(self) -> None:
        """Make the calls of tasks; an interrupt ends the waiting thread too."""
        while True:
            try:
                call, future = self.calls.get_nowait()
            except Empty:
                return
            try:
                result = in_waiting_thread(call)  # where this thread is itself a task's, further up
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                future.set_result(result)


# Of the thread of a task.
_waiting: ContextVar[_Waiting | None] = ContextVar("waiting", default=None)


def raise_if_ending() -> None:
    """Raise KeyboardInterrupt in the thread of a task whose command was told to end. For tasks to call while they wait."""
    if (waiting := _waiting.get()) is not None and waiting.ending.is_set():
        raise KeyboardInterrupt


def in_waiting_thread(call: Callable[[], Result]) -> Result:
    """Make a call in the thread that waits for the tasks, where this one is a task's, and in this one elsewhere.

    For what has to outlive the task, as the processes that a thread starts may end with it, and for signal handlers.
    """
    waiting = _waiting.get()
    if waiting is None:
        return call()
    answer: Future[Result] = Future()
    waiting.calls.put((call, answer))
    while not answer.done():
        raise_if_ending()
        wait([answer], INTERVAL)
    return answer.result()


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
    left, command = list(tasks), _Waiting()
    running: dict[Name, Future[Result]] = {}
    ended: dict[Name, Future[Result]] = {}
    try:
        while running or (left and not _failures(ended)):
            while left and not _failures(ended) and len(running) < max(1, room()):
                name = left.pop(0)
                running[name] = in_thread(partial(_of_command, tasks[name], command), str(name))
            wait(running.values(), INTERVAL, FIRST_COMPLETED)
            command.do_calls()
            for name in [name for name, future in running.items() if future.done()]:
                ended[name] = running.pop(name)
                if (error := ended[name].exception()) is not None:
                    logger.error("%s failed", name, exc_info=error)
                    failed(name, error)
    except BaseException:  # such as SIGTERM and Ctrl-C
        command.ending.set()
        wait(running.values(), grace_seconds)
        raise
    return {name: ended[name].result() for name in tasks if name in ended}


def _failures(ended: Mapping[Name, Future[Result]]) -> bool:
    return any(future.exception() is not None for future in ended.values())


def _of_command(task: Callable[[], Result], command: _Waiting) -> Result:
    _waiting.set(command)
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
