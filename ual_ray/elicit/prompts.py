"""The prompts of elicitation: kept in prompts.yaml, or in a user's file of the same form, and hashed with every row."""

from __future__ import annotations

import string
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ual_ray.elicit.requests import Turns
from ual_ray.errors import UserError
from ual_ray.records import Message, Messages, digest

FIRST, SECOND = "A", "B"
PLACEHOLDERS = {
    "verbalized": {"instruction", "response", "lowest", "highest"},
    "p_true": {"instruction", "response", "options"},
}


@dataclass(frozen=True)
class Prompts:
    """The wording of every question."""

    version: int
    verbalized: str
    p_true: str
    yes_option: str
    no_option: str

    def rating(self, messages: Messages, lowest: str, highest: str) -> Turns:
        """Ask for a number between two."""
        return _fill(self.verbalized, messages, lowest=lowest, highest=highest)

    def verdict(self, messages: Messages, *, yes_first: bool) -> Turns:
        """Ask whether the response is right, with 'yes' as option A or as option B."""
        first, second = (self.yes_option, self.no_option) if yes_first else (self.no_option, self.yes_option)
        return _fill(self.p_true, messages, options=f"{FIRST}. {first}\n{SECOND}. {second}")

    @property
    def hash(self) -> str:
        """Hash of version and wording: 16 hexadecimal digits."""
        return digest(asdict(self))


@lru_cache
def load_prompts(path: str | None = None) -> Prompts:
    """Read the project's prompts, with those of a user's file in their place. Raises UserError for a file that will not do."""
    own = yaml.safe_load(resources.files("ual_ray.elicit").joinpath("prompts.yaml").read_text(encoding="utf-8"))
    if path is None:
        return Prompts(**own)
    theirs = _read(Path(path).expanduser())
    if unknown := sorted(map(str, set(theirs) - set(own))):
        raise UserError(f"elicit.templates: {path} has unknown keys", value=unknown, legal=", ".join(own))
    for key, value in theirs.items():
        if not isinstance(value, type(own[key])):
            raise UserError(f"elicit.templates: {key} of {path} is not text", value=repr(value), legal=type(own[key]).__name__)
    for key, needed in PLACEHOLDERS.items():
        if key in theirs:
            _check_placeholders(path, key, theirs[key], needed)
    return Prompts(**(own | theirs))


def prompt_hash(prompts: Prompts, template_hash: str) -> str:
    """Hash everything that decides what the elicitor reads: the prompts and the model's chat template."""
    return digest({"prompts": prompts.hash, "chat_template": template_hash})


def instruction_of(messages: Messages) -> str:
    """Write all that comes before the last reply as text; roles are named when there is more than one message."""
    before = messages[:-1]
    if len(before) == 1:
        return before[0]["content"]
    return "\n\n".join(_named(message) for message in before)


def _fill(template: str, messages: Messages, **values: str) -> Turns:
    text = template.format(instruction=instruction_of(messages), response=messages[-1]["content"], **values)
    return (("user", text),)


def _named(message: Message) -> str:
    return f"{message['role'].capitalize()}: {message['content']}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            "elicit.templates cannot be read", value=f"{path}: {error}", legal="a file like prompts.yaml"
        ) from error
    if not isinstance(content, dict):
        raise UserError("elicit.templates is not a mapping", value=path, legal="keys such as 'verbalized' with a text each")
    return content


def _check_placeholders(path: str, key: str, template: str, needed: set[str]) -> None:
    try:
        fields = [(name, form, how) for _, name, form, how in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(
            f"elicit.templates: {key} of {path} is not a template", value=error, fix="write {{ and }} for braces of your own"
        ) from error
    found = {name + (f"!{how}" if how else "") + (f":{form}" if form else "") for name, form, how in fields}
    if found != needed:
        raise UserError(
            f"elicit.templates: {key} of {path} has the wrong placeholders",
            value=f"{{{'}, {'.join(sorted(found))}}}",
            legal=f"{{{'}, {'.join(sorted(needed))}}}, all of them",
            fix="write {{ and }} for braces of your own",
        )
