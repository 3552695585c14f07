"""Every way in which a vocabulary spells a choice at the start of a reply: '7', ' 7' and '▁7' are one choice.

Exact probabilities of choices of several tokens come from as few one-token generations as possible. The choices form a tree of
tokens. Each inner node is one generation that gives the probabilities of the next tokens after this prefix. A choice that is a
prefix of others (1 of 10 and 100) has the probability of its tokens times the probability that none of the others follows.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ual_ray.engines.reading import log_sum
from ual_ray.formatting import nfkc
from ual_ray.models.chat import ChatRenderer

Tokens = tuple[int, ...]
# SentencePiece's blank, and the blank, line break, carriage return and tab of byte-level BPE.
_BLANKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n", "č": "\r", "ĉ": "\t"})
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Form in which OpenAI writes tokens that are parts of characters, and some of its copies all tokens.
_BYTES = re.compile(r"bytes:((?:\\x[0-9A-Fa-f]{2})+)")
# vLLM returns the log-probabilities of no more tokens at once.
MOST_TOKENS = 128


@dataclass(frozen=True)
class ChoiceTree:
    """`choices` as token ids; `questions` has the possible next tokens of every prefix."""

    choices: tuple[Tokens, ...]
    questions: Mapping[Tokens, tuple[int, ...]]

    def combine(self, answers: Mapping[Tokens, Mapping[int, float]]) -> tuple[float, ...]:
        """Compute the log-probability of each choice, from the log-probabilities of next tokens by prefix."""
        return tuple(self._log_probability(choice, answers) for choice in self.choices)

    def _log_probability(self, choice: Tokens, answers: Mapping[Tokens, Mapping[int, float]]) -> float:
        total = math.fsum(answers[choice[:depth]][token] for depth, token in enumerate(choice))
        if choice not in self.questions:
            return total
        longer = self._longer(choice, answers)
        return total + (math.log1p(-longer) if longer < 1 else -math.inf)

    def _longer(self, prefix: Tokens, answers: Mapping[Tokens, Mapping[int, float]]) -> float:
        """Sum the probabilities, given the prefix, of the choices that extend it."""
        ways = ((math.exp(value), (*prefix, token)) for token, value in answers[prefix].items())
        return math.fsum(share if way in self.choices else share * self._longer(way, answers) for share, way in ways)


def make_tree(choices: Sequence[Tokens]) -> ChoiceTree:
    """Build the tree. Raises ValueError for an empty choice, and for two choices with the same tokens."""
    if len(set(choices)) < len(choices) or not all(choices):
        raise ValueError("choices must be distinct and have one token or more")
    following: dict[Tokens, dict[int, None]] = {}
    for choice in choices:
        for depth, token in enumerate(choice):
            following.setdefault(choice[:depth], {})[token] = None
    return ChoiceTree(tuple(choices), {prefix: tuple(tokens) for prefix, tokens in following.items()})


def plain(token: str) -> str:
    """Return the text of a token of a vocabulary without marks; digits of other widths are plain ones."""
    if whole := _BYTES.fullmatch(token):
        token = bytes.fromhex(whole[1].replace("\\x", "")).decode(errors="replace")
    text = _BYTE.sub(lambda found: chr(int(found[1], 16)), token).translate(_BLANKS)
    return nfkc(text)


def visible(token: str) -> str:
    """Return the same without surrounding white space."""
    return plain(token).strip()


def plain_entry(entry: dict[str, Any]) -> str:
    """Return the text of an entry of a server's log-probabilities; its bytes count before its token."""
    try:
        # Of a number bytes would make as many zeros.
        text = bytes([*entry["bytes"]]).decode()
    except (KeyError, TypeError, ValueError):
        text = str(entry["token"])
    return plain(text) if visible(text) else plain(str(entry.get("token", "")))


def visible_entry(entry: dict[str, Any]) -> str:
    """Return the same without surrounding white space."""
    return plain_entry(entry).strip()


class Spellings:
    """The spellings of choices in one renderer's vocabulary."""

    def __init__(self, renderer: ChatRenderer) -> None:
        """Index the vocabulary by the visible text of its tokens."""
        self._encode = renderer.encode
        self._ids: dict[str, list[int]] = defaultdict(list)
        for number, token in enumerate(renderer.vocabulary):
            if token is not None:
                self._ids[visible(token)].append(number)
        self._tokens = renderer.vocabulary

    def own(self, choice: str) -> list[Tokens]:
        """Return the tokenizer's own spelling, and the one without the blank that SentencePiece may write in front."""
        own = tuple(self._encode(choice))
        bare = own[1:] if len(own) > 1 and not visible(self._tokens[own[0]]) else own
        return list(dict.fromkeys([own, bare]))

    def tree(self, choices: Sequence[str]) -> tuple[ChoiceTree, list[int]]:
        """Build the tree of all spellings, and number the choice of each. Raises ValueError for choices spelled alike.

        Where a choice takes several tokens, or all spellings are more than vLLM returns, the tokenizer's own are used alone:
        every further first token would double the number of questions.
        """
        own = [self.own(choice) for choice in choices]
        more = [[(number,) for number in self._ids.get(choice, ())] for choice in choices]
        spelled = [list(dict.fromkeys([*ours, *others])) for ours, others in zip(own, more, strict=True)]
        if any(len(spellings[-1]) > 1 for spellings in own) or sum(map(len, spelled)) > MOST_TOKENS:
            spelled = own
        tree = make_tree([spelling for spellings in spelled for spelling in spellings])
        return tree, [at for at, spellings in enumerate(spelled) for _ in spellings]


def combined(log_probabilities: Sequence[float], owners: Sequence[int]) -> tuple[float, ...]:
    """Add the probabilities of each choice's spellings; the choices are numbered from 0."""
    by_choice: Mapping[int, list[float]] = defaultdict(list)
    for value, owner in zip(log_probabilities, owners, strict=True):
        by_choice[owner].append(value)
    return tuple(log_sum(by_choice[owner]) for owner in sorted(by_choice))
