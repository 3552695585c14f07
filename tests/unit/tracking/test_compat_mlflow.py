"""What MLflow's UI reads is still there; that it shows it is checked in tests/integration/test_mlflow_ui.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from ual_ray.tracking import compat_mlflow
from ual_ray.tracking.compat_mlflow import EXPERIMENT_KIND, LOGGED_ARTIFACTS, with_table

FIX = f"MLflow has changed what ual_ray uses of it: do what is written at the top of {compat_mlflow.__file__}"


def test_tables_are_listed_once() -> None:
    one = with_table(None, "a.json")
    assert one is not None and json.loads(one) == [{"path": "a.json", "type": "table"}]
    assert with_table(one, "a.json") is None
    two = with_table(one, "b/c.json")
    assert two is not None and [entry["path"] for entry in json.loads(two)] == ["a.json", "b/c.json"]


def test_tables_are_listed_as_mlflow_lists_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tags: dict[str, Any] = {}
    client = MlflowClient.__new__(MlflowClient)  # without a store
    monkeypatch.setattr(client, "set_tag", lambda run_id, key, value: tags.update({key: value}))
    run: Any = type("Run", (), {"data": type("Data", (), {"tags": {}})})
    monkeypatch.setattr(client, "get_run", lambda run_id: run)
    monkeypatch.setattr(client, "log_artifact", lambda *_, **__: None)
    monkeypatch.setattr(client, "list_artifacts", lambda *_, **__: [])
    client.log_table("run", {"x": [1]}, "tables/a.json")
    assert tags == {LOGGED_ARTIFACTS: with_table(None, "tables/a.json")}, FIX


def test_the_ui_knows_the_kind_of_experiment() -> None:
    ((key, value),) = EXPERIMENT_KIND.items()
    bundles = sorted((Path(mlflow.__file__).parent / "server" / "js" / "build").rglob("*.js"))
    if not bundles:
        pytest.skip("this MLflow has no UI")
    texts = [bundle.read_text(encoding="utf-8", errors="replace") for bundle in bundles]
    assert any(key in text for text in texts) and any(value in text for text in texts), FIX
