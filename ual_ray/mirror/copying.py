"""Copy again and again while a command works, and the rest at its end: what an output and a shared store have in common."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError
from ual_ray.mirror.remote import Remote

# Between two looks at the working folder; a file that changed within SETTLE_SECONDS waits for the next look.
COPY_SECONDS, SETTLE_SECONDS = 2.0, 1.0
THREADS = 8
ATTEMPTS = 3

logger = logging.getLogger(__name__)
Call = Callable[[], None]


def attempt(remote: Remote, call: Call) -> None:
    """Make a call; what it raises is logged, as the next time tries again, and `finish` raises."""
    try:
        call()
    except Exception as error:
        logger.warning("not copied to %s: %s", redact_uri(remote.uri), redact_uri(str(error)))


@contextmanager
def repeated(remote: Remote, call: Call, seconds: float, stop: threading.Event | None = None) -> Iterator[None]:
    """Make a call again and again, in a thread, until the block has ended or `stop` is set."""
    ended = stop or threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            attempt(remote, call)

    thread = threading.Thread(target=repeat, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def copied(remote: Remote, copy: Callable[[float], None], stop: threading.Event | None = None) -> AbstractContextManager[None]:
    """Copy again and again what was written before the time that `copy` is given, in nanoseconds, until the block has ended."""
    return repeated(remote, lambda: copy(time.time_ns() - SETTLE_SECONDS * 1e9), COPY_SECONDS, stop)


def finish(remote: Remote, copy: Call, fix: Callable[[], str]) -> None:
    """Copy the rest. Raises UserError where no attempt succeeds; fix: where it is kept, and how it is copied later."""
    for left in reversed(range(ATTEMPTS)):
        try:
            return copy()
        except Exception as error:
            if not left:
                got = f"{redact_uri(remote.uri)}: {redact_uri(str(error))}"
                raise UserError(f"{remote.key}: not everything was copied", got=got, fix=fix()) from error
        time.sleep(COPY_SECONDS)


def each(act: Callable[[str], None], names: Iterable[str]) -> None:
    """Do something to many files at a time. Raises the first error when all have ended."""
    with ThreadPoolExecutor(THREADS) as pool:
        started = [pool.submit(act, name) for name in names]
    for done in started:
        done.result()
