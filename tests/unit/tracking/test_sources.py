"""The sources of data sets, as MLflow itself reads them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from tracked import Network, runs_of, tracker_of

from ual_ray.config.files import STORE_FILE, URI_FILE, WORKING_FOLDERS
from ual_ray.tracking.journal import Operation

HUB = {"config_name": "main", "split": "train", "revision": "0123abc"}


def logged(tmp_path: Path, path: str, hub: Mapping[str, str | None] | None) -> Any:
    """Return the data set in the parent's run, to which a child logs it too."""
    with tracker_of(tmp_path) as tracker:
        with tracker.run("parent", tmp_path, {}) as parent, tracker.run("child", tmp_path / "child", {}, parent) as child:
            child.dataset("rows", path, "abc", 3, "scoring", hub)
        assert tracker.complaint() is None
        found = [run.inputs.dataset_inputs[0].dataset for run in runs_of(tracker).values()]
    assert (found[0].source_type, found[0].source) == (found[1].source_type, found[1].source)
    return found[0]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/rows.jsonl", "local"),
        ("data/rows", "local"),
        ("file:///data/rows", "local"),
        ("s3://bucket/rows", "s3"),
        ("gs://bucket/rows", "gs"),
        ("abfss://container@account/rows", "abfss"),
        ("hdfs://host/rows", "hdfs"),
    ],
)
@pytest.mark.slow
def test_files_are_of_the_kind_of_their_address(tmp_path: Path, network: Network, path: str, kind: str) -> None:
    data = logged(tmp_path, path, None)
    source: Any = mlflow.data.get_source(data)
    assert (data.source_type, source._get_source_type()) == (kind, kind)
    assert source.uri == path


@pytest.mark.slow
@pytest.mark.parametrize("is_working_folder", [True, False])
def test_what_is_in_an_output_at_a_uri_is_named_there(tmp_path: Path, empty_store: Path, is_working_folder: bool) -> None:
    """Others have no working folder, and this machine may clear it."""
    root = tmp_path / (WORKING_FOLDERS if is_working_folder else "runs") / "0123" / "first"
    model = root / "arms" / "ual" / "model"
    model.mkdir(parents=True)
    shutil.copy(empty_store, root / STORE_FILE)
    (root.parent / URI_FILE).write_text("s3://bucket/runs/first?region=eu-west-1")
    with tracker_of(root) as tracker:
        with tracker.run("train", root / "arms", {}) as run:
            run.dataset("smoothed", root / "arms" / "ual.parquet", "a", 3, "training")
            run.dataset("rows", tmp_path / "rows.jsonl", "b", 3, "scoring")
            run.dataset("more", "https://host/rows.csv", "c", 3, "scoring")
            assert run.model(model, "ual", {}, upload=False) == "1"
        assert tracker.complaint() is None
        places = {one.dataset.name: one.dataset for one in runs_of(tracker)["train"].inputs.dataset_inputs}
        (logged_model,) = tracker.client.search_logged_models([tracker.experiment_id])
    there = "s3://bucket/runs/first" if is_working_folder else str(root)
    assert mlflow.data.get_source(places["smoothed"]).uri == f"{there}/arms/ual.parquet"  # type: ignore[attr-defined]
    assert places["smoothed"].source_type == ("s3" if is_working_folder else "local")
    assert logged_model.tags["ual_ray.model_folder"] == f"{there}/arms/ual/model"
    assert (places["rows"].source_type, places["more"].source_type) == ("local", "http")


@pytest.mark.slow
def test_a_web_address(tmp_path: Path, network: Network) -> None:
    source = mlflow.data.get_source(logged(tmp_path, "https://host/rows.csv", None))
    assert isinstance(source, HTTPDatasetSource) and source.url == "https://host/rows.csv"


@pytest.mark.slow
def test_a_data_set_on_the_hub(tmp_path: Path, network: Network) -> None:
    source = mlflow.data.get_source(logged(tmp_path, "owner/name", HUB))
    assert isinstance(source, HuggingFaceDatasetSource)
    assert {"path": source.path, **HUB} == {"path": "owner/name", **{name: getattr(source, name) for name in HUB}}


@pytest.mark.slow
def test_generated_rows(tmp_path: Path, network: Network) -> None:
    assert isinstance(mlflow.data.get_source(logged(tmp_path, "demo", None)), CodeDatasetSource)


@pytest.mark.slow
def test_another_address_keeps_its_scheme(tmp_path: Path, network: Network) -> None:
    assert logged(tmp_path, "hf://datasets/owner/name/rows.parquet", None).source_type == "hf"


def test_an_operation_of_an_earlier_version_is_sent(tmp_path: Path, network: Network) -> None:
    """It waited in the spool when the package was upgraded."""
    with tracker_of(tmp_path) as tracker:
        with tracker.run("run", tmp_path, {}) as run:
            content = {"name": "rows", "path": "/data/rows", "digest": "abc", "rows": 3, "context": "scoring"}
            tracker.submit(Operation("dataset", run.local_id, content))
        assert tracker.complaint() is None
        assert runs_of(tracker)["run"].inputs.dataset_inputs[0].dataset.source_type == "local"
