"""The prompts of elicitation: versioned, hashed, spelled here and nowhere else.

The wording is this project's own (the paper's exact prompt is not public). Both prompts open with the pair, so an engine
with prefix caching reads the pair once.
"""

from __future__ import annotations

from ual_ray.elicit.requests import Turns
from ual_ray.records import Message, Messages, digest

PROMPT_VERSION = 1

DIGITS = tuple("0123456789")
YES, NO = "A", "B"

PAIR = """\
Here is an instruction and a response to it.

[Instruction]
{instruction}

[Response]
{response}

"""

VERBALIZED = (
    PAIR
    + """\
How uncertain is this response? Think of two things: could it be wrong, and would very different responses be just as good?
Rate the uncertainty from 0 (surely right, and the only good response) to 9 (likely wrong, or one of countless good ones).
Reply with one digit and nothing else."""
)

P_TRUE = (
    PAIR
    + f"""\
Is the response correct and does it do what the instruction asks?
{YES}. Yes
{NO}. No
Reply with {YES} or {NO} and nothing else."""
)

TEMPLATES = {"verbalized": VERBALIZED, "p_true": P_TRUE}


def fill(template: str, messages: Messages) -> Turns:
    """Put a pair into a template and make it one user message."""
    text = template.format(instruction=instruction_of(messages), response=messages[-1]["content"])
    return (("user", text),)


def instruction_of(messages: Messages) -> str:
    """Write all that comes before the last reply as text; roles are named when there is more than one message."""
    before = messages[:-1]
    if len(before) == 1:
        return before[0]["content"]
    return "\n\n".join(_named(message) for message in before)


def prompt_hash(estimators: tuple[str, ...], template_hash: str) -> str:
    """Hash everything that decides what the elicitor reads: version, templates in use, chat template."""
    used = {name: TEMPLATES.get(name, "") for name in estimators}
    return digest({"version": PROMPT_VERSION, "templates": used, "chat_template": template_hash})


def _named(message: Message) -> str:
    return f"{message['role'].capitalize()}: {message['content']}"
