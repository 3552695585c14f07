"""Serving MLflow's UI: what cannot be served is refused before MLflow's server starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from ual_ray.cli.tracking import serve
from ual_ray.errors import UserError


@pytest.mark.parametrize("uri", [None, "http://host:5000", "foo://x", "https://user:planted@host"])
def test_what_cannot_be_served_is_refused(uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "call", lambda command: pytest.fail("the server was started"))
    with pytest.raises(UserError, match=r"(?s)no MLflow store in the folder.*got: |serves no store.*got: ") as error:
        serve(uri, tmp_path, "127.0.0.1", 5000, Console())
    assert "planted" not in str(error.value)


@pytest.mark.parametrize("uri", ["sqlite:///a.db", "postgresql+psycopg2://u@host/db", "some/folder"])
def test_a_store_is_served(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = list[list[str]]()
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or 0)
    assert serve(uri, tmp_path, "127.0.0.1", 5000, Console()) == 0
    assert commands[0][-2:] == ["--backend-store-uri", uri]
