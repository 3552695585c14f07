"""Fuzz what reads text, rows and files that others wrote, for long (targets: tests/helpers/fuzzing.py).

    python bench/fuzz.py --inputs 1000000 --engines hypothesis atheris [--seed 0]  in all, written to bench/results/fuzz.json
    python bench/fuzz.py --minutes 10 [--targets body text]                            printed alone

The targets take turns of some seconds, each in a process of its own, which a crash or an endless loop in C ends alone. Prints
the number of inputs of each target, and every kind of failure with the shortest input that shows it; exits with 1 if there is
any. An input that takes more than 10 s of CPU time is a failure. atheris (pip install '.[fuzz]') changes inputs by the code
that they reach, hypothesis draws new ones.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from itertools import count, product
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "bench")]

# How long the process of a turn may go on behind its end, in seconds; then it hangs.
GRACE = 120
PROCESSES = get_context("fork")
UNHURRIED: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


class Over(BaseException):
    """The turn is over; no code under test catches it."""


@dataclass
class Tally:
    """Inputs, CPU seconds of the longest, and of every kind of failure its shortest input and the traceback."""

    inputs: int = 0
    longest: float = 0.0
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)

    def take(self, check: Callable[[Any], None], value: Any) -> None:
        """Check one input."""
        from fuzzing import limited

        self.inputs += 1
        began = time.process_time()
        try:
            limited(check, value)
        except Exception as error:  # whatever an input raises is what is looked for
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
            told = f": {error}" if isinstance(error, AssertionError) and len(str(error)) < 60 else ""
            self.fail(f"{type(error).__name__} at {place}{told}", repr(value), traceback.format_exc(limit=-5))
        self.longest = max(self.longest, time.process_time() - began)

    def fail(self, kind: str, shown: str, told: str) -> None:
        """Keep a failure if it is the first of its kind, or has the shortest input."""
        if kind not in self.failures or len(shown) < len(self.failures[kind][0]):
            self.failures[kind] = shown, told

    def add(self, other: Tally) -> None:
        """Add another turn of the same target."""
        self.inputs += other.inputs
        self.longest = max(self.longest, other.longest)
        for kind, (shown, told) in other.failures.items():
            self.fail(kind, shown, told)


Take = Callable[[Any], None]


def draw(target: Any, take: Take, number: int, corpus: Path) -> None:
    """Draw inputs with hypothesis, for ever."""
    for own in count(number * 1000):

        @seed(own)
        @settings(max_examples=2000, phases=[Phase.generate], **UNHURRIED)
        @given(target.inputs)
        def run(value: Any) -> None:
            take(value)

        run()


def change(target: Any, take: Take, number: int, corpus: Path) -> None:
    """Change inputs with atheris, for ever; the ones that reached something new are in the corpus."""
    import atheris

    @settings(**UNHURRIED)
    @given(target.inputs)
    def run(value: Any) -> None:
        take(value)

    def one(data: bytes) -> None:
        if target.read is None:
            run.hypothesis.fuzz_one_input(data)
        else:
            take(target.read(data))

    if not any(corpus.iterdir()):
        (corpus / "first").write_bytes(random.Random(number).randbytes(300))
    os.dup2(os.open(f"{corpus}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    limits = ["-max_len=1000", "-len_control=0", "-timeout=100", "-rss_limit_mb=4000", "-verbosity=0"]
    atheris.Setup(["fuzz", *limits, f"-seed={number + 1}", f"-artifact_prefix={corpus}.", str(corpus)], one)
    atheris.Fuzz()


ENGINES = {"hypothesis": draw, "atheris": change}


def turn(engine: str, target: Any, number: int, seconds: float, corpus: Path, file: Path) -> None:
    """Fuzz a target in this process, which ends with it, and leave the tally in a file."""
    tally, until = Tally(), time.monotonic() + seconds

    def take(value: Any) -> None:
        if time.monotonic() > until:
            file.write_text(json.dumps(asdict(tally)))
            os._exit(0)
        tally.take(target.check, value)

    ENGINES[engine](target, take, number, corpus)


@dataclass
class Fuzzing:
    """Turns of targets, several side by side; their files are in `folder`."""

    targets: dict[str, Any]
    engines: Sequence[str]
    jobs: int
    seconds: float
    folder: Path
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    running: dict[int, tuple[Any, tuple[str, str], Path, float]] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Count the inputs of all turns that are over."""
        return sum(tally.inputs for tally in self.tallies.values())

    def run(self, first: int, enough: Callable[[], bool]) -> None:
        """Give the targets turns, numbered from the first, until there are enough; Ctrl-C ends it with what was found."""
        self.tallies |= {pair: Tally() for pair in product(self.engines, self.targets)}
        turns = ((number, *pair) for number in count(first) for pair in self.tallies)
        over = False
        while not over or self.running:
            try:
                over = over or enough()
                if over or len(self.running) >= self.jobs:
                    self.collect()
                else:
                    self.start(*next(turns))
            except KeyboardInterrupt:
                over = True

    def start(self, number: int, engine: str, name: str) -> None:
        """Start a turn."""
        corpus, file = self.folder / f"{engine}-{name}", self.folder / f"{engine}-{name}-{number}.json"
        corpus.mkdir(exist_ok=True)
        own = (engine, self.targets[name], number, self.seconds, corpus, file)
        process = PROCESSES.Process(target=turn, args=own)
        process.start()
        self.running[process.sentinel] = process, (engine, name), file, time.monotonic() + self.seconds + GRACE

    def collect(self) -> None:
        """Wait until a turn is over, and add what it found; one that crashed or hangs is a failure."""
        connection.wait(self.running, timeout=1)
        for sentinel, (process, pair, file, latest) in list(self.running.items()):
            if process.is_alive() and time.monotonic() < latest:
                continue
            hangs = process.is_alive()
            process.kill()
            process.join()
            del self.running[sentinel]
            if file.exists():
                found = json.loads(file.read_text())
                self.tallies[pair].add(Tally(**found))
                continue
            crashed = [repr(one.read_bytes()) for one in self.folder.glob(f"{'-'.join(pair)}.[!l]*")]
            kind = "it hangs" if hangs else f"its process ended with {process.exitcode}"
            self.tallies[pair].fail(kind, "; ".join(crashed) or file.stem, f"{pair}: {kind}")


def load(engines: Sequence[str]) -> dict[str, Any]:
    """Import the targets, with the code that atheris is to watch."""
    if "atheris" not in engines:
        from fuzzing import TARGETS

        return dict(TARGETS)
    import atheris

    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["ual_ray"]):  # it names every module
        from fuzzing import TARGETS

        return dict(TARGETS)


def main() -> int:
    """Fuzz for the given time, or number of inputs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10)
    length.add_argument("--inputs", type=int, help="in all")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["hypothesis"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", help="some alone")
    parser.add_argument("--seconds", type=float, default=20, help="of a turn")
    parser.add_argument("--jobs", type=int, default=1, help="turns side by side")
    arguments = parser.parse_args()
    targets = load(arguments.engines)
    targets = {name: targets[name] for name in arguments.targets or sorted(targets)}
    until = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        fuzzing = Fuzzing(targets, arguments.engines, arguments.jobs, arguments.seconds, Path(folder))
        fuzzing.run(
            arguments.seed, lambda: fuzzing.inputs >= arguments.inputs if arguments.inputs else time.monotonic() > until
        )
    for (engine, name), tally in fuzzing.tallies.items():
        for kind, (shown, told) in tally.failures.items():
            print(f"{engine} {name}: {kind}\n{shown:.2000}\n{told}\n")
    tell(fuzzing, arguments.inputs)
    return int(any(tally.failures for tally in fuzzing.tallies.values()))


def tell(fuzzing: Fuzzing, wanted: int | None) -> None:
    """Print the counts, and write them where a number of inputs was asked for."""
    rows = [
        {"engine": engine, "target": name, "inputs": tally.inputs}
        | {"longest, CPU seconds": round(tally.longest, 3), "kinds of failure": len(tally.failures)}
        for (engine, name), tally in fuzzing.tallies.items()
    ]
    if wanted is None:
        print(*rows, sep="\n")
        return
    from common import report

    ratios = {
        "inputs in all": (float(fuzzing.inputs), f">= {wanted}"),
        "kinds of failure": (float(sum(len(tally.failures) for tally in fuzzing.tallies.values())), "0"),
        "longest time of an input, CPU seconds": (max(tally.longest for tally in fuzzing.tallies.values()), "below 10"),
    }
    report("fuzz", rows, ratios)


if __name__ == "__main__":
    sys.exit(main())
