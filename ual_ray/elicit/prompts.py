"""The prompts of elicitation: kept in prompts.yaml, or in a user's file of the same form, and hashed with every row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources

from ual_ray.columns import Message, Messages, digest, spoken
from ual_ray.engines.prompt_files import load_templates
from ual_ray.engines.requests import Turns

FIRST, SECOND = "A", "B"
PLACEHOLDERS = {
    "verbalized_error": {"instruction", "response", "lowest", "highest"},
    "verbalized_diversity": {"instruction", "response", "lowest", "highest"},
    "p_true": {"instruction", "response", "options"},
}


@dataclass(frozen=True)
class Prompts:
    """The wording of every question."""

    version: int
    verbalized_error: str
    verbalized_diversity: str
    p_true: str
    yes_option: str
    no_option: str

    def rating(self, question: str, messages: Messages, lowest: str, highest: str) -> Turns:
        """Ask for a number between two. `question`: verbalized_error or verbalized_diversity."""
        return _fill(getattr(self, question), messages, lowest=lowest, highest=highest)

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
    """Read the built-in prompts, replaced by those of a user's file. Raises UserError for an invalid file."""
    own = resources.files("ual_ray.elicit").joinpath("prompts.yaml")
    return Prompts(**load_templates(own, path, "elicit.templates", PLACEHOLDERS))


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
    text = template.format(instruction=instruction_of(messages), response=spoken(messages[-1]), **values)
    return (("user", text),)


def _named(message: Message) -> str:
    return f"{message['role'].capitalize()}: {spoken(message)}"
