"""Compare answers with math-verify in a separate process that the kernel ends after a time limit.

An answer such as 9^9^9^9 keeps a computer algebra system busy for ever, in code that Python's signal handlers cannot interrupt,
and math-verify's own time limits need the main thread, in which an actor's methods do not run.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from typing import Any

from ual_ray.errors import UserError

SECONDS = 5
MEMORY = 4 * 2**30
READY = "ready"

logger = logging.getLogger(__name__)


def load() -> Any:
    """Import the library. Raises UserError if it is missing."""
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            "the benchmark math compares answers with math-verify", fix="pip install 'math-verify[antlr4_13_2]'"
        ) from error
    return math_verify


def compare(gold: str, text: str) -> tuple[str | None, bool]:
    """Whether a text contains an answer equal to the gold one. Raises UserError if the library is missing."""
    library = load()
    # It knows one sign of an empty set alone.
    whole = (each.replace("\\varnothing", "\\emptyset") for each in (f"\\boxed{{{gold}}}", text))
    expected, found = (library.parse(each, parsing_timeout=None) for each in whole)
    # The gold answer comes first, as the comparison is not symmetric: (1, 2) is accepted for 1 < x < 2, but not vice versa.
    right = bool(expected) and bool(found) and bool(library.verify(expected, found, timeout_seconds=None))
    return (str(found[-1]) if found else None), right


class Checker:
    """Compares answers in another process, which is restarted when an answer has ended it."""

    def __init__(self) -> None:
        """Create the checker; the process starts with the first comparison."""
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, gold: str, text: str) -> tuple[str | None, bool]:
        """Compare as `compare` does; an answer that exceeds SECONDS or MEMORY counts as wrong."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        try:
            process.stdin.write(json.dumps([gold, text, SECONDS]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            process.wait()
            self._process = None
            logger.warning("an answer could not be compared within %d s, and counts as wrong: %.200s", SECONDS, text)
            return None, False
        found, right = json.loads(line)
        return found, right

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            assert self._process.stdout is not None, "a pipe"
            if self._process.stdout.readline().strip() != READY:
                raise RuntimeError("the process that compares answers did not start; its error is in the log")
        return self._process


def serve() -> None:
    """Answer one JSON line at a time until the end of the input; the signal of the time limit ends the process."""
    answers, sys.stdout = sys.stdout, sys.stderr
    load()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        gold, text, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of its own CPU time: others on the machine make no answer wrong
        try:
            found, right = compare(gold, text)
        except (MemoryError, RecursionError, ArithmeticError, ValueError) as error:
            logger.warning("an answer cannot be compared, and counts as wrong: %s", type(error).__name__)
            found, right = None, False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([found, right]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
