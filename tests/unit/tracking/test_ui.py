"""Serving MLflow's UI: what cannot be served is refused before MLflow's server starts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from ual_ray.cli.tracking import serve
from ual_ray.config.files import STORE_FILE
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
    (tmp_path / "a.db").touch()
    (tmp_path / "some/folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or 0)
    assert serve(uri, tmp_path, "127.0.0.1", 5000, Console()) == 0
    assert commands[0][-2:] == ["--backend-store-uri", uri]


@pytest.mark.parametrize("uri", ["sqlite:///b.db", "sqlite:////no/such/b.db", "other/folder", "file:///no/such/folder"])
def test_no_empty_store_is_made_of_a_misspelt_path(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "call", lambda command: pytest.fail("the server was started"))
    with pytest.raises(UserError, match="there is no MLflow store at the address"):
        serve(uri, tmp_path, "127.0.0.1", 5000, Console())


def test_the_folder_above_that_has_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / STORE_FILE).touch()
    (tmp_path / "scenario/seed").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(f"ual ui {tmp_path}") + "$"):
        serve(None, tmp_path / "scenario/seed", "127.0.0.1", 5000, Console())
