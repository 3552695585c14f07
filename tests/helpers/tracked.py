"""Trackers whose store is away when a test wants it, and the runs in that store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ual_ray.config import TrackingConfig
from ual_ray.tracking.tracker import Tracker

# Seconds between attempts: short, as the tests wait for them.
RETRY = 0.05


class Network:
    """What lies between the tracker and the store."""

    away = False
    loses_answers = False
    fails_on: str | None = None
    applied: list[str]


def tracker_of(out: Path, **settings: Any) -> Tracker:
    return Tracker(TrackingConfig(retry_seconds=RETRY), out, **settings)


def runs_of(tracker: Tracker) -> dict[str, Any]:
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run was opened twice"
    return {run.info.run_name: run for run in runs}
