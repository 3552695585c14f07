"""Versions against bounds: Python, packages, and the engine that is configured."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ual_ray.config.load import load
from ual_ray.doctor import machine

WANTED = [Requirement("ray[data]<2.61,>=2.60"), Requirement("typer<1,>=0.26.1")]


def test_python() -> None:
    assert [finding.status for finding in machine.judge_python("3.11.9", ">=3.11")] == ["ok"]
    (old,) = machine.judge_python("3.10.2", ">=3.11")
    assert old.status == "error" and "3.10.2; it must be >=3.11" in old.text and old.fix


def test_packages_out_of_bounds_or_missing_have_the_command_that_fixes_them() -> None:
    assert list(machine.judge_packages(WANTED, {"ray": "2.60.0", "typer": "0.27"})) == []
    assert list(machine.judge_packages(WANTED, {"ray": "2.60.1rc1", "typer": "0.27"})) == []
    newer, missing = machine.judge_packages(WANTED, {"ray": "2.61.0", "typer": None})
    assert newer.status == missing.status == "error"
    assert "ray 2.61.0" in newer.text and newer.fix == "pip install 'ray<2.61,>=2.60'"
    assert "typer is not installed" in missing.text and missing.fix is not None and "typer<1,>=0.26.1" in missing.fix


@pytest.mark.parametrize(("kind", "extras", "wrong"), [("vllm", set(), 1), ("vllm", {"cpu"}, 0), ("openai", set(), 0)])
def test_vllm_is_missed_only_where_it_is_configured(kind: str, extras: set[str], wrong: int) -> None:
    assert len(list(machine.judge_engine(kind, extras))) == wrong


def test_this_environment_is_within_its_bounds() -> None:
    (found,) = machine.check_versions(load())
    assert found.status == "ok", found
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (counted,) = re.findall(r"(\d+) packages", found.text)
    # torch and an engine come from the extra that is installed.
    assert int(counted) >= len(project["dependencies"]) - 1
