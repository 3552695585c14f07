"""A wrong input of any command is one message: what is wrong, the value, and what is legal or to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ual_ray.cli.app import app
from ual_ray.errors import UserError

COMMANDS = (
    "run --config missing.yaml",
    "elicit missing.jsonl",
    "preview missing.jsonl",
    "preview missing/",
    "inspect missing",
    "smooth missing",
    "train missing",
    "evaluate demo --rows missing",
    "judge missing reference",
    "judge other missing.json",
    "report missing",
    "plan --trial missing",
    "doctor --config missing.yaml",
    "submit --config missing.yaml",
    "experiment missing.yaml",
    "pilot missing.yaml",
    "ui missing",
    "sync missing",
    "promote missing",
    "push missing owner/name",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_missing_is_named_with_what_to_do(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = CliRunner().invoke(app, command.split()).exception
    assert isinstance(error, UserError), repr(error)
    what, *parts = str(error).splitlines()
    assert what and any(part.startswith("  got: ") and ("missing" in part or "other" in part) for part in parts), parts
    assert any(part.startswith(("  fix: ", "  expected: ")) for part in parts), parts
    assert not [*tmp_path.rglob("*.json")], "nothing was begun"


def test_the_experiment_that_needs_no_file_is_no_pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(app, ["pilot", "known_truth"]).exception
    assert isinstance(error, UserError) and "known_truth'" not in str(error)
