"""Configurations without their secrets."""

from __future__ import annotations

import re
from typing import Any

from ual_ray.config import Config

SECRET_KEY = re.compile(r"(?i)(token|password|secret|api_?key)$")


MASK = "***"


def redact(config: Config) -> Config:
    """Copy a configuration with its secrets masked, for files, MLflow and the terminal."""
    return Config.model_validate(redact_values(config.model_dump(mode="json")))


def redact_values(values: Any, key: str = "") -> Any:
    """Mask the values of keys that name a secret, and the user's part of addresses."""
    if isinstance(values, dict):
        return {name: redact_values(value, str(name)) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value, key) for value in values]
    if isinstance(values, str):
        return MASK if SECRET_KEY.search(key) else redact_uri(values)
    return values


def redact_uri(uri: str) -> str:
    """Mask user and password of an address such as http://user:password@host."""
    return re.sub(r"(?<=://)[^/@\s]+@", f"{MASK}@", uri)
