"""What the metrics of an engine actor add up to."""

from __future__ import annotations

from typing import Any

import pytest

from ual_ray.engines import monitor as module
from ual_ray.engines.monitor import EngineMetrics


class Recorder:
    """Stands for Ray's metrics; Ray's counters refuse 0."""

    made: dict[str, Recorder] = {}

    def __init__(self, name: str, description: str, boundaries: Any = None, tag_keys: tuple[str, ...] = ()) -> None:
        assert description.endswith(".") and tag_keys == ("task",)
        self.values: list[float] = []
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tags == {"task": "ScoreRows"}

    def inc(self, value: float) -> None:
        assert value > 0
        self.values.append(value)

    set = observe = lambda self, value: self.values.append(value)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> EngineMetrics:
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(module.metrics, kind, Recorder)
    Recorder.made = {}
    return EngineMetrics("ScoreRows")


def test_rows_and_what_they_cost_are_counted(metrics: EngineMetrics) -> None:
    metrics.count(
        [
            {"status": "ok", "calls": 3, "prompt_tokens": 10, "generated_tokens": 0},
            {"status": "quarantined", "calls": 1, "prompt_tokens": None, "error": "engine: x"},
        ]
    )
    metrics.count([])
    sums = {name: sum(metric.values) for name, metric in Recorder.made.items()}
    assert sums == {
        "ual_ray_rows": 2,
        "ual_ray_failed_rows": 1,
        "ual_ray_calls": 4,
        "ual_ray_prompt_tokens": 10,
        "ual_ray_generated_tokens": 0,
        "ual_ray_batch_seconds": 0,
        "ual_ray_batches": 0,
    }


def test_batches_are_timed_and_those_at_work_counted(metrics: EngineMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 20.0, 25.0, 40.0, 50.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with metrics.batch(), metrics.batch():
        pass
    with pytest.raises(KeyError), metrics.batch():
        raise KeyError
    assert Recorder.made["ual_ray_batch_seconds"].values == [5.0, 30.0]
    assert Recorder.made["ual_ray_batches"].values == [1, 2, 1, 0, 1, 0]
