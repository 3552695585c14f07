"""Configurations as files, and their values by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ual_ray.config import Config
from ual_ray.config.load import dump, load


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def reload(config: Config, folder: Path) -> Config:
    return load(write(folder, dump(config)))


def at(config: Config, key: str) -> Any:
    """Follow a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value
