"""Read what a model meant: a number, a letter or a probability, or nothing. Pure; elicitation and judging share it.

A reply counts only where it takes one of a few forms: the number or letter alone, behind a label ("Rating: 7"), or in JSON. The
first number of a sentence is never taken for an answer, nor is anything that was thought and not said.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# If all choices together are less probable than this, their relative probabilities are noise.
MIN_CHOICE_MASS = 0.01

# The marks between which models think: tags, and those that have a form of their own.
TAGS = r"(?:seed:)?(?:think|thinking|thought|thoughts|reason|reasoning|analysis|scratchpad|reflection)"
OPENED = re.compile(
    rf"<{TAGS}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|>(?!final)|<\|begin_of_thought\|>|<unused94>", re.IGNORECASE
)
CLOSED = re.compile(
    rf"</{TAGS}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>|assistantfinal|<\|end_of_thought\|>|<unused95>",
    re.IGNORECASE,
)
# What a chat template writes around an answer.
WRAPPING = re.compile(
    r"<\|(?:begin_of_solution|end_of_solution|START_RESPONSE|END_RESPONSE|end|return|im_end|eot_id|start|message)\|>|</?answer>"
)
FENCE = re.compile(r"```(?:[\w-]*\n)?(.*?)```", re.DOTALL)
# Marks of emphasis, quotes and brackets around an answer, and what may end it.
EDGES = " \t\r\n*_`\"'“”‘’«»()[]{}<>.,;:!#=~$|\\"
LABEL = (
    r"(?:rating|rate|rated|rates|score|scored|scores|uncertainty|uncertain|likelihood|answer|number|level|estimate|verdict|choice|"
    r"option|response|reply|judge?ment|confidence|result|output|grade|value|say|says)"
)
# A label, then at most a few words without a digit, such as "is", "would be" or "this response a".
LABELLED = rf"\b{LABEL}\b[^\d\n.;!?]{{0,40}}?"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
# A number with its reason behind it: "7, because ...", "7 - mostly right"; "1. The response" is an item of a list.
LEADING = rf"^\W{{0,3}}({NUMBER.pattern})\W{{0,3}}(?:(?:,|;|\s[-–—])\s+(?!\d)|\s+(?:because|since|as)\b)"
KEYS = ("rating", "score", "uncertainty", "answer", "verdict", "choice", "number", "value", "result", "likelihood")


def said(text: str) -> str | None:
    """Return what follows the thinking of a reply; None where the thinking has no end."""
    ends = list(CLOSED.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return None if OPENED.search(rest) else WRAPPING.sub("", rest).strip()


def read_number(text: str, lowest: int, highest: int) -> float | None:
    """Read the whole number that a reply means; None where there is none, several, or one outside lowest..highest."""
    answer = said(text)
    if answer is None:
        return None
    scale = re.compile(
        rf"(?:\b(?:on|in|using)\s+)?(?:\b(?:a|the)\s+)?(?:\bscale\s*)?(?:\b(?:of|from|between)\s+)?[(\[]?\b{lowest}\s*(?:-|–|—|to|and|\.\.)\s*"
        rf"{highest}\b[)\]]?,?",
        re.IGNORECASE,
    )
    found = set()
    for candidate in _candidates(unicodedata.normalize("NFKC", answer)):
        if isinstance(candidate, int | float) and not isinstance(candidate, bool):
            found.add(float(candidate))
            continue
        plain = scale.sub(" ", str(candidate)).rstrip(EDGES).lstrip(EDGES.replace(".", ""))
        over = rf"(?:\s*(?:/|out of|of)\s*{highest}(?:\.0+)?)?"
        alone = re.fullmatch(rf"({NUMBER.pattern}){over}", plain)
        behind = re.search(rf"{LABELLED}(?<![\w.])({NUMBER.pattern}){over}$", plain, re.IGNORECASE)
        if match := alone or behind or re.search(LEADING, plain, re.IGNORECASE):
            found.add(float(match[1]))
    number = found.pop() if len(found) == 1 else None
    return number if number is not None and number.is_integer() and lowest <= number <= highest else None


def read_letter(text: str, letters: Sequence[str]) -> str | None:
    """Read the letter that a reply means, such as A or B, its case as given; None where there is none, or several."""
    answer = said(text)
    if answer is None:
        return None
    choice = f"(?:{'|'.join(map(re.escape, letters))})"
    found = set()
    for candidate in map(str, _candidates(answer)):
        plain = candidate.strip(EDGES)
        alone = re.fullmatch(rf"(?i:(?:option|answer|choice)\s+)?({choice})", plain)
        behind = re.search(rf"(?i:{LABELLED})(?<!\w)[(\[*\"'`]*({choice})$", plain)
        if match := alone or behind:
            found.add(match[1])
    # An option may be repeated with its text: "(B) The response is wrong".
    repeated = {match[1] for match in re.finditer(rf"(?m)^[\s*(\[\"']*({choice})\**[.):\]]+(?=\s|\*|$)", answer)}
    found |= repeated
    return found.pop() if len(found) == 1 else None


def _candidates(answer: str) -> list[Any]:
    """List the places of a reply where an answer may stand: all of it, JSON, the last fence, its first and its last line."""
    fenced = FENCE.findall(answer)
    inner = fenced[-1].strip() if fenced else answer
    try:
        return [_of_json(json.loads(inner))]
    except ValueError:
        pass
    lines = [line.strip() for line in inner.splitlines() if line.strip()]
    if not lines:
        return []
    # A number or letter first, then an empty line and an explanation.
    first = [lines[0]] if len(lines) > 1 and re.match(r"[^\n]*\n\s*\n", inner.lstrip()) else []
    # "**Rating**\n7": a heading belongs to what follows it.
    headed = (
        [f"{lines[-2]} {lines[-1]}"] if len(lines) > 1 and re.fullmatch(rf"\W*{LABEL}\W*", lines[-2], re.IGNORECASE) else []
    )
    lone = [line for line in lines[1:-1] if NUMBER.fullmatch(line.strip(EDGES))]
    return [*first, *lone, *headed, lines[-1]]


def _of_json(value: Any) -> Any:
    """Take the one value of JSON that may be the answer."""
    if isinstance(value, Mapping):
        named = [value[key] for key in value if str(key).lower() in KEYS]
        values = named or list(value.values())
        return _of_json(values[0]) if len(values) == 1 else ""
    if isinstance(value, list):
        return _of_json(value[0]) if len(value) == 1 else ""
    return value


def choice_shares(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise over the choices; None where they are improbable together: the model would reply something else."""
    shares = softmax(log_probabilities)
    return shares if choice_mass(log_probabilities) >= MIN_CHOICE_MASS else None


def choice_mass(log_probabilities: Sequence[float]) -> float:
    """Add up the probabilities of the choices, in [0, 1]."""
    return min(1.0, math.fsum(math.exp(value) for value in log_probabilities if not math.isnan(value)))


def softmax(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise log-probabilities; None where one is NaN or the largest is not finite."""
    highest = max(log_probabilities)
    if not math.isfinite(highest) or any(map(math.isnan, log_probabilities)):
        return None
    weights = [math.exp(value - highest) for value in log_probabilities]
    total = sum(weights)
    return [weight / total for weight in weights]
