"""Stores that cannot be used are refused in seconds, with what to do; MLflow tries for 100 s to open a database."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from ual_ray.config import TrackingConfig
from ual_ray.errors import UserError
from ual_ray.tracking.database import check_database
from ual_ray.tracking.tracker import Tracker

SECONDS = 15.0


def refused(uri: str, folder: Path) -> str:
    """Return why a store is refused, which takes seconds."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        Tracker(TrackingConfig(uri=uri, catch_up_seconds=0), folder)
    assert time.monotonic() - started < SECONDS
    assert str(error.value).startswith("tracking.uri cannot be used") and "fix: " in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("sqlite:////proc/none/mlflow.db", "/proc/none"),
        ("sqlite:///FOLDER", "unable to open database file"),
        ("sqlite:///FOLDER/text.db", "not a database"),
        ("sqlite://", "it names no file"),
        ("sqlite:///:memory:", "it names no file"),
        ("postgresql://me:sesame@127.0.0.1:PORT/mlflow", "refused"),
        ("postgresql+psycopg2://me:sesame@no-such-host.invalid:5432/mlflow", "not known"),
        ("mysql+nodriver://127.0.0.1/mlflow", "nodriver"),
        ("gopher://127.0.0.1/mlflow", "gopher"),
        ("file:///proc/none", "file"),
    ],
)
def test_a_store_that_cannot_be_opened_is_refused_in_seconds(uri: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but a text of some length\n" * 99)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = uri.replace("PORT", str(free.getsockname()[1])).replace("FOLDER", str(tmp_path))
    told = refused(uri, tmp_path / "out")
    assert why in told and "sesame" not in told


def test_a_database_in_a_new_folder_can_be_opened_and_other_stores_are_left_to_mlflow(tmp_path: Path) -> None:
    check_database(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert (tmp_path / "new" / "folder").is_dir()
    for uri in ("http://127.0.0.1:9", "databricks", str(tmp_path)):
        check_database(uri)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a/b/c", "-", "名前", "x" * 500])
def test_names_of_experiments_that_mlflow_takes_are_taken(name: str, tmp_path: Path, tables_made_once: None) -> None:
    with Tracker(TrackingConfig(experiment=name), tmp_path) as tracker:
        assert tracker.client.get_experiment(tracker.experiment_id).name == name


@pytest.mark.parametrize("name", ["", "x" * 501])
def test_names_that_mlflow_does_not_take_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="experiment"):
        TrackingConfig(experiment=name)
