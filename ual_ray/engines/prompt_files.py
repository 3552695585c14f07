"""Prompt files: the built-in one, and a user's YAML file that replaces any of its texts; placeholders are checked."""

import string
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ual_ray.errors import UserError


def load_templates(own: Traversable, path: str | None, key: str, placeholders: Mapping[str, set[str]]) -> dict[str, Any]:
    """Read the built-in prompts, replaced by those of the user's file at `path`.

    `key` is the configuration key of the path, such as elicit.templates; `placeholders` lists those of each template. Raises
    UserError for an unreadable file, an unknown key, a wrong type and wrong placeholders.
    """
    texts: dict[str, Any] = yaml.safe_load(own.read_text(encoding="utf-8"))
    if path is None:
        return texts
    replaced = read_yaml(path, key, f"like {own.name}")
    if not isinstance(replaced, dict):
        raise UserError(f"{key} is not a mapping", got=path, expected=f"keys with a text each, as in {own.name}")
    if unknown := sorted(map(str, set(replaced) - set(texts))):
        raise UserError(f"{key}: {path} has unknown keys", got=unknown, expected=", ".join(texts))
    for name, value in replaced.items():
        if not isinstance(value, type(texts[name])):
            raise UserError(
                f"{key}: {name} of {path} has another type",
                got=repr(value),
                expected=f"{type(texts[name]).__name__}, as in {own.name}",
            )
    for name, needed in placeholders.items():
        if name in replaced:
            _check_placeholders(f"{key}: {name} of {path}", replaced[name], needed)
    return texts | replaced


def read_yaml(path: str, key: str, kind: str) -> Any:
    """Read a user's YAML file, which a configuration key names. Raises UserError, with the `kind` of file, where it cannot."""
    try:
        return yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML raises errors of many types
        raise UserError(f"{key} cannot be read", got=f"{path}: {error}", expected=f"a file {kind}") from error


def _check_placeholders(where: str, template: str, needed: set[str]) -> None:
    braces = "write {{ and }} for braces of your own"
    try:
        fields = [(name, form, how) for _, name, form, how in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"{where} is not a template", got=error, fix=braces) from error
    found = {name + (f"!{how}" if how else "") + (f":{form}" if form else "") for name, form, how in fields}
    if found != needed:
        raise UserError(
            f"{where} has the wrong placeholders",
            got=f"{{{'}, {'.join(sorted(found))}}}",
            expected=f"{{{'}, {'.join(sorted(needed))}}}, all of them",
            fix=braces,
        )
