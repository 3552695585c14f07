"""MLflow: the only package that imports it. Runs, lineage tags, data sets, figures, registered models, and a spool for outages.

The driver owns every run. Logging never takes the job down: what the store cannot take now is kept on disk, in order, and sent
when it answers again; what it refuses is counted, logged, kept aside, and reported at the end.
"""

from __future__ import annotations

from ual_ray.config.paths import ARTIFACTS_FOLDER, SPOOL_FOLDER, STORE_FILE
from ual_ray.tracking.catch_up import CaughtUp, catch_up
from ual_ray.tracking.models import champion_of
from ual_ray.tracking.run import Run, flatten
from ual_ray.tracking.run_file import RUN_FILE, read_run
from ual_ray.tracking.tracker import Tracker, default_uri

__all__ = [
    "ARTIFACTS_FOLDER",
    "CaughtUp",
    "RUN_FILE",
    "Run",
    "SPOOL_FOLDER",
    "STORE_FILE",
    "Tracker",
    "catch_up",
    "champion_of",
    "default_uri",
    "flatten",
    "read_run",
]
