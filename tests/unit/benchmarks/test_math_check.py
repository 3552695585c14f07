"""Comparing mathematics: the order of arguments, equal values, and answers that would take for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from ual_ray.benchmarks import math_check
from ual_ray.benchmarks.math_check import Checker, compare


def test_the_gold_answer_is_the_first_argument_and_no_signal_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    library = SimpleNamespace(
        parse=lambda text, parsing_timeout: seen.append((text, parsing_timeout)) or [text],
        verify=lambda first, second, timeout_seconds: seen.append((first, second, timeout_seconds)) or False,
    )
    monkeypatch.setitem(sys.modules, "math_verify", library)
    assert compare("7", "I say 8") == ("I say 8", False)
    assert seen == [(r"\boxed{7}", None), ("I say 8", None), ([r"\boxed{7}"], ["I say 8"], None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        (r"\frac{1}{2}", r"Thus \boxed{0.5}", True),
        ("0.5", r"The answer is: $\frac{1}{2}$", True),
        ("42", "So we get 42.", True),
        ("42", r"\boxed{43}", False),
        ("42", "no idea", False),
        ("x+1", r"\boxed{1+x}", True),
        ("(1,2)", r"\boxed{(1,2)}", True),
        ("(1,2)", r"\boxed{(2,1)}", False),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", True),
        ("1,000", r"\boxed{1000}", True),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", True),
        (r"10\%", r"\boxed{10\%}", True),
        ("5", r"\boxed{x = 5}", True),
        # Not symmetric: this is what the order of arguments is for.
        ("1<x<2", r"\boxed{(1,2)}", True),
        ("(1,2)", r"\boxed{1<x<2}", False),
    ],
)
def test_equal_mathematics_is_equal(gold: str, text: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert compare(gold, text)[1] is right


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    pytest.importorskip("math_verify")
    made = Checker()
    yield made
    if made._process is not None:
        made._process.kill()
        made._process.wait()


@pytest.mark.slow
def test_an_answer_that_takes_for_ever_is_wrong_and_costs_seconds(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checker("1/2", r"\boxed{0.5}")[1]
    first = checker._process
    with monkeypatch.context() as short:
        short.setattr(math_check, "SECONDS", 1)
        started = time.monotonic()
        assert checker("42", r"\boxed{9^{9^{9^{9}}}}") == (None, False)
        assert time.monotonic() - started < 20 * math_check.SECONDS
    assert checker("42", "So it is 42.") == ("42", True), "another process takes over"
    assert checker._process is not first


@pytest.mark.slow
def test_the_limit_counts_the_time_that_the_comparison_computes_and_not_that_it_waits() -> None:
    """On a machine with much to do, a comparison of milliseconds takes seconds: its answer is not wrong for that."""
    code = (
        "import io, json, sys, time; from ual_ray.benchmarks import math_check; "
        "math_check.load = lambda: None; math_check.compare = lambda gold, text: (time.sleep(1.5), ('x', True))[1]; "
        "sys.stdin = io.StringIO(json.dumps(['1', '1', 1]) + chr(10)); math_check.serve()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, [math_check.READY, '["x", true]'])


@pytest.mark.slow
def test_it_works_outside_the_main_thread(checker: Checker) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(checker, "1/2", r"\boxed{0.5}").result()[1]


def test_a_process_that_does_not_start_is_an_error_and_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_check, "__name__", "ual_ray.no_such_module")
    with pytest.raises(RuntimeError, match="did not start"):
        Checker()("1", "1")
