"""A lock that is shared or held alone, and an engine that is run outside of a lock."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from ual_ray.engines.pool import OverlappingEngine, SharedLock

PATIENCE = 20.0


def test_whoever_is_alone_is_alone() -> None:
    lock, inside, most = SharedLock(), [0, 0], [0]

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(40):
            alone = random.random() < 0.3
            with lock.alone() if alone else lock.together():
                inside[alone] += 1
                assert inside[True] + (inside[False] > 0) == 1
                most[0] = max(most[0], inside[False])
                time.sleep(0.0002)
                inside[alone] -= 1

    with ThreadPoolExecutor(5) as threads:
        for done in [threads.submit(work, seed) for seed in range(5)]:
            done.result(PATIENCE)
    assert inside == [0, 0]
    assert most[0] > 1, "others hold it together"


def test_who_wants_to_be_alone_goes_before_those_who_come_later() -> None:
    lock, order = SharedLock(), list[str]()

    def alone() -> None:
        with lock.alone():
            order.append("alone")

    def together() -> None:
        with lock.together():
            order.append("together")

    with lock.together():
        first = threading.Thread(target=alone)
        first.start()
        while not lock._waiting:
            time.sleep(0.001)
        later = threading.Thread(target=together)
        later.start()
        time.sleep(0.02)
        assert order == []
    for thread in (first, later):
        thread.join(PATIENCE)
    assert order == ["alone", "together"]


@pytest.mark.parametrize("how", ["together", "alone"])
def test_an_error_inside_gives_it_back(how: str) -> None:
    lock = SharedLock()
    with pytest.raises(KeyError), getattr(lock, how)():
        raise KeyError
    with lock.alone():
        pass


def test_the_engine_runs_while_the_lock_is_free() -> None:
    lock = threading.Lock()

    class Engine:
        template_hash = "hash"

        def run(self, requests: object) -> list[object]:
            assert not lock.locked()
            if requests == "broken":
                raise RuntimeError
            return [requests]

    engine = OverlappingEngine(Engine(), lock)  # type: ignore[arg-type]
    assert engine.template_hash == "hash"
    with lock:
        assert engine.run("request") == ["request"]  # type: ignore[arg-type, comparison-overlap]
        assert lock.locked()
        with pytest.raises(RuntimeError):
            engine.run("broken")  # type: ignore[arg-type]
        assert lock.locked()
