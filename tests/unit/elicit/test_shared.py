"""Known replies behind Ray's object store, with a stand-in for Ray."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ual_ray.elicit import known as module
from ual_ray.elicit.known import KnownReplies, Shared


def known(keys: list[int]) -> KnownReplies:
    return KnownReplies((), np.array(keys, np.uint64), np.zeros(len(keys), np.uint64))


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """List the tasks that are started; each gives an index of one key."""
    started: list[Any] = []

    def remote(function: Any) -> Any:
        def start(*given: Any) -> str:
            started.append((function.__name__, given))
            return "reference"

        return SimpleNamespace(options=lambda: SimpleNamespace(remote=start))

    monkeypatch.setattr(
        module, "ray", SimpleNamespace(remote=remote, get=lambda reference: {"reference": known([1])}[reference])
    )
    return started


def test_nothing_starts_until_replies_are_wanted_and_then_once(tasks: list[Any]) -> None:
    shared = Shared(Path("store"), "asked")
    assert tasks == []
    assert shared.any() and shared({5}) == {} and shared.any()
    assert tasks == [("find_known", (Path("store"), "asked"))]


def test_it_travels_as_a_reference_without_the_index(tasks: list[Any]) -> None:
    shared = Shared(Path("store"), "asked")
    assert shared.any()
    travelled = pickle.dumps(shared)
    assert b"uint64" not in travelled and b"KnownReplies" not in travelled
    there = pickle.loads(travelled)  # noqa: S301
    assert there.any() and there({5}) == {}
    assert len(tasks) == 1, "no second task on another machine"
