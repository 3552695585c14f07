"""Fuzz what reads text that others wrote, for long: configurations, and replies of endpoints (tests/helpers/fuzzing.py).

    python bench/fuzz.py --minutes 10 [--seed 0] [--targets body text]
    python bench/fuzz.py --inputs 100000                                  this many of each target, however long it takes

Prints the number of inputs of each target, and every kind of failure with the smallest input that shows it; exits with 1 if
there is any. An input that takes longer than 10 s is a failure.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from fuzzing import TARGETS  # noqa: E402

INPUTS_PER_ROUND = {"overrides": 200, "file": 200}
DEFAULT_INPUTS = 2000
LONGEST_MS = 10_000


def fuzz_round(name: str, number: int, counts: Counter[str]) -> str | None:
    """Run one round of a target; return the traceback of a failure, with the smallest input that shows it."""
    target = TARGETS[name]
    last: list[Any] = []

    @seed(number)
    @settings(
        max_examples=INPUTS_PER_ROUND.get(name, DEFAULT_INPUTS),
        deadline=LONGEST_MS,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.data())
    def run(data: Any) -> None:
        given_input = data.draw(target.inputs)
        counts[name] += 1
        last[:] = [given_input]
        target.check(given_input)

    try:
        run()
    except Exception:  # whatever an input raises is what is looked for
        return f"{name}: {last[0]!r}\n{traceback.format_exc(limit=-4)}"
    return None


def main() -> int:
    """Fuzz for the given time, or number of inputs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10)
    length.add_argument("--inputs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    failures: dict[str, str] = {}
    until, number = time.monotonic() + 60 * arguments.minutes, arguments.seed
    waiting = arguments.targets
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it with what was found
        while waiting if arguments.inputs else time.monotonic() < until:
            for name in waiting:
                if (found := fuzz_round(name, number, counts)) is not None:
                    failures.setdefault(f"{name}: {found.strip().splitlines()[-1][:80]}", found)
            number += 1
            waiting = [name for name in waiting if arguments.inputs is None or counts[name] < arguments.inputs]
    for found in failures.values():
        print(found, end="\n\n")
    told = ", ".join(f"{counts[name]:,} {name}" for name in arguments.targets)
    print(f"{counts.total():,} inputs ({told}), seeds {arguments.seed} to {number - 1}: {len(failures)} kinds of failure")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
