"""The judge's prompt: prompts.yaml or a user's file of the same format; its hash is in every row."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources

from ual_ray.columns import Message, Messages, digest
from ual_ray.engines.prompt_files import load_templates
from ual_ray.engines.requests import Turns

# The verdicts: the reply shown first, and the one shown second.
FIRST, SECOND = "m", "M"
LETTERS = (FIRST, SECOND)
PLACEHOLDERS = {"comparison": {"conversation", "first", "second"}}


@dataclass(frozen=True)
class JudgePrompts:
    """The prompt template and its version."""

    version: int
    comparison: str

    def compare(self, conversation: Messages, first: str, second: str) -> Turns:
        """Ask which of two replies to a conversation is better."""
        return (("user", self.comparison.format(conversation=as_text(conversation), first=first, second=second)),)

    @property
    def template(self) -> Turns:
        """What is asked, with {{name}} for what differs between pairs."""
        return self.compare([Message(role="user", content="{{conversation}}")], "{{first}}", "{{second}}")

    @property
    def hash(self) -> str:
        """Hash of version and wording: 16 hexadecimal digits."""
        return digest(asdict(self))


@lru_cache
def load_judge_prompts(path: str | None = None) -> JudgePrompts:
    """Read the built-in prompt, or a user's prompt file. Raises UserError for an invalid file."""
    own = resources.files("ual_ray.judge").joinpath("prompts.yaml")
    return JudgePrompts(**load_templates(own, path, "judge.templates", PLACEHOLDERS))


def as_text(messages: Sequence[Message]) -> str:
    """Format messages as text, with roles if there is more than one message."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(named(message) for message in messages)


def named(message: Message) -> str:
    """Format a message as text with its role."""
    return f"{message['role'].capitalize()}: {message['content']}"
