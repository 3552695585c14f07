"""A store of MLflow without a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray.config.paths import STORE_FILE


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tables of a store, which takes seconds, once."""
    from mlflow import MlflowClient

    from ual_ray.tracking.tracker import default_uri

    folder = tmp_path_factory.mktemp("store")
    MlflowClient(default_uri(folder)).search_experiments()
    return folder / STORE_FILE
