"""The sources of data sets, named and written as those of MLflow are, so that `mlflow.data.get_source` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from ual_ray.config import DEMO


def dataset_source(path: str, hub: Mapping[str, str | None] | None = None) -> tuple[str, str]:
    """Return MLflow's type of a source, and its JSON; `hub`: what is read of a data set on the Hugging Face hub."""
    scheme = urlsplit(path).scheme if "://" in path else ""
    if hub is not None:
        return "hugging_face", json.dumps({"path": path, **hub})
    if path == DEMO:
        return "code", json.dumps({"tags": {"mlflow.source.name": "ual_ray.data.demo"}})
    if scheme in ("http", "https"):
        return "http", json.dumps({"url": path})
    return "local" if scheme in ("", "file") else scheme, json.dumps({"uri": path})
