"""The prompts of elicitation: kept in prompts.yaml, or in a user's file of the same form, and hashed with every row.

Rated examples of the user's own can stand before the pair as earlier turns.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from ual_ray.columns import Message, Messages, digest, reference_of, response_of, with_extra
from ual_ray.engines.prompt_files import load_templates, read_yaml
from ual_ray.engines.requests import Turns
from ual_ray.errors import UserError

FIRST, SECOND = "A", "B"
PLACEHOLDERS = {
    "verbalized_error": {"instruction", "response", "lowest", "highest"},
    "verbalized_diversity": {"instruction", "response", "lowest", "highest"},
    "reference": {"response", "reference"},
    "p_true": {"instruction", "response", "options"},
}
RATINGS = ("verbalized_error", "verbalized_diversity")


@dataclass(frozen=True)
class Example:
    """A pair with the rating that the elicitor should give it, by question."""

    instruction: str
    response: str
    ratings: Mapping[str, int]
    reference: str | None = None

    @property
    def messages(self) -> Messages:
        """The pair as a conversation."""
        asked = with_extra(Message(role="user", content=self.instruction), reference=self.reference)
        return [asked, Message(role="assistant", content=self.response)]


@dataclass(frozen=True)
class Prompts:
    """The wording of every question, and rated examples that stand before the pair."""

    version: int
    verbalized_error: str
    verbalized_diversity: str
    p_true: str
    yes_option: str
    no_option: str
    reference: str
    examples: tuple[Example, ...] = ()

    def rating(self, question: str, messages: Messages, lowest: str, highest: str) -> Turns:
        """Ask for a number between two. `question`: one of RATINGS. Examples that rate it are earlier turns."""
        rated = [(example.messages, str(example.ratings[question])) for example in self.examples if question in example.ratings]
        turns = [turn for pair, number in rated for turn in (self._ask(question, pair, lowest, highest), ("assistant", number))]
        return (*turns, self._ask(question, messages, lowest, highest))

    def _ask(self, question: str, messages: Messages, lowest: str, highest: str) -> tuple[str, str]:
        response, reference = response_of(messages[-1]), reference_of(messages)
        if reference is not None:
            response = self.reference.format(response=response, reference=reference)
        return _fill(getattr(self, question), messages, response, lowest=lowest, highest=highest)

    def check_examples(self, question: str, lowest: int, highest: int) -> None:
        """Raise UserError for an example whose rating is not on the scale, and for examples none of which rates a question."""
        ratings = [example.ratings[question] for example in self.examples if question in example.ratings]
        if outside := [rating for rating in ratings if not lowest <= rating <= highest]:
            raise UserError(
                f"elicit.examples: {question} is not on elicit.scale", got=outside[0], expected=f"{lowest}-{highest}"
            )
        if self.examples and not ratings:
            raise UserError(f"elicit.examples: no example has a rating for {question}", expected=f"a key {question} in some")

    def verdict(self, messages: Messages, *, yes_first: bool) -> Turns:
        """Ask whether the response is right, with 'yes' as option A or as option B."""
        first, second = (self.yes_option, self.no_option) if yes_first else (self.no_option, self.yes_option)
        return (_fill(self.p_true, messages, response_of(messages[-1]), options=f"{FIRST}. {first}\n{SECOND}. {second}"),)

    def template(self, estimator: str) -> Turns | None:
        """Return what an estimator asks, with {{name}} for what differs between rows; None where the wording is not ours."""
        pair = [Message(role="user", content="{{instruction}}"), Message(role="assistant", content="{{response}}")]
        if estimator in RATINGS:
            return self.rating(estimator, pair, "{{lowest}}", "{{highest}}")
        return self.verdict(pair, yes_first=True) if estimator == "p_true" else None

    @property
    def hash(self) -> str:
        """Hash of version, wording and examples: 16 hexadecimal digits."""
        return digest(asdict(self))


@lru_cache
def load_prompts(path: str | None = None, examples: str | None = None) -> Prompts:
    """Read the built-in prompts, replaced by those of a user's file, and a file of examples. Raises UserError for bad ones."""
    own = resources.files("ual_ray.elicit").joinpath("prompts.yaml")
    prompts = Prompts(**load_templates(own, path, "elicit.templates", PLACEHOLDERS))
    return replace(prompts, examples=_load_examples(examples)) if examples is not None else prompts


def _load_examples(path: str) -> tuple[Example, ...]:
    where, expected = f"elicit.examples: {path}", f"a list of mappings with instruction, response, and {' or '.join(RATINGS)}"
    content = read_yaml(path, "elicit.examples", "of rated examples")
    if not isinstance(content, list) or not content:
        raise UserError(f"{where} is not a list of examples", got=f"{content!r:.80}", expected=expected)
    return tuple(_example(entry, f"{where}, example {number}", expected) for number, entry in enumerate(content, 1))


def _example(entry: Any, where: str, expected: str) -> Example:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not a mapping", got=f"{entry!r:.80}", expected=expected)
    if unknown := sorted(map(str, entry.keys() - {"instruction", "response", "reference", *RATINGS})):
        raise UserError(f"{where} has unknown keys", got=unknown, expected=expected)
    for name in ("instruction", "response", *(["reference"] if "reference" in entry else [])):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise UserError(f"{where}: {name} is not a text", got=repr(entry.get(name)), expected=expected)
    ratings = {name: entry[name] for name in RATINGS if name in entry}
    if not ratings:
        raise UserError(f"{where} has no rating", got=sorted(entry), expected=expected)
    for name, rating in ratings.items():
        if not isinstance(rating, int) or isinstance(rating, bool):
            raise UserError(f"{where}: {name} is not a whole number", got=repr(rating), expected="a number of elicit.scale")
    return Example(entry["instruction"], entry["response"], ratings, entry.get("reference"))


def prompt_hash(prompts: Prompts, template_hash: str) -> str:
    """Hash everything that decides what the elicitor reads: the prompts and the model's chat template."""
    return digest({"prompts": prompts.hash, "chat_template": template_hash})


def instruction_of(messages: Messages) -> str:
    """Write all that comes before the last reply as text; roles are named when there is more than one message."""
    before = messages[:-1]
    if len(before) == 1:
        return before[0]["content"]
    return "\n\n".join(_named(message) for message in before)


def _fill(template: str, messages: Messages, response: str, **values: str) -> tuple[str, str]:
    return "user", template.format(instruction=instruction_of(messages), response=response, **values)


def _named(message: Message) -> str:
    return f"{message['role'].capitalize()}: {response_of(message)}"
