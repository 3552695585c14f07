"""The network in front of a store of MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tracked import Network

from ual_ray.config.files import STORE_FILE
from ual_ray.tracking.journal import Operation
from ual_ray.tracking.store import Store


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_store: Path) -> Iterator[Network]:
    """Stand between every tracker and its store."""
    shutil.copy(empty_store, tmp_path / STORE_FILE)
    net = Network()
    net.applied = []
    apply, answers = Store.apply, Store.answers

    def through(self: Store, operation: Operation, waited: bool = False) -> Any:
        if net.away or operation.kind == net.fails_on:
            raise ConnectionError("nobody there")
        result = apply(self, operation, waited)
        net.applied.append(operation.kind)
        if net.loses_answers:
            net.away = True
            raise requests.ReadTimeout("no answer")
        return result

    monkeypatch.setattr(Store, "apply", through)
    monkeypatch.setattr(Store, "answers", lambda self: not net.away and answers(self))
    yield net
    # What a tracker left waiting goes nowhere once its test is over.
    net.away = True
