"""Packages that add to the registries, in this process: a module of functions, and its entry points."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import registry
from ual_ray.config.registry import Registry

MODULE = "added_by_others"


def points(group: str, **entries: str) -> EntryPoints:
    """The entry points of a group."""
    return EntryPoints(EntryPoint(name, value, f"ual_ray.{group}") for name, value in entries.items())


def add(monkeypatch: pytest.MonkeyPatch, folder: Path, found: Registry, code: str, **entries: str) -> Path:
    """Write a module of another package, and add names of what it has to a registry; returns the module's file."""
    file = folder / f"{MODULE}.py"
    file.write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for name, attribute in entries.items():
        monkeypatch.setitem(found.targets, name, f"{MODULE}:{attribute}")
    return file


def registry_of(patch: pytest.MonkeyPatch, found: EntryPoints, kind: str, own: dict[str, str], **options: Any) -> Registry:
    """A registry of a process in which packages have these entry points."""
    patch.setattr(registry, "_installed", lambda: found)
    return Registry(kind, own, **options)
