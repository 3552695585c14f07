"""Exact probabilities of choices that are several tokens long, from the fewest questions of one token each.

The choices form a tree of tokens: each inner node is one question, "how likely is each of these next tokens, after this
prefix?". A choice that others go on from (1, of 10 and 100) has the probability of its tokens times that of none of these
others coming next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class ChoiceTree:
    """`choices` as token ids, and for every prefix that has to be asked about its possible next tokens."""

    choices: tuple[Tokens, ...]
    questions: Mapping[Tokens, tuple[int, ...]]

    def combine(self, answers: Mapping[Tokens, Mapping[int, float]]) -> tuple[float, ...]:
        """Multiply along the paths: the log-probability of each choice, from those of the next tokens by prefix."""
        return tuple(self._log_probability(choice, answers) for choice in self.choices)

    def _log_probability(self, choice: Tokens, answers: Mapping[Tokens, Mapping[int, float]]) -> float:
        total = math.fsum(answers[choice[:depth]][token] for depth, token in enumerate(choice))
        if choice not in self.questions:
            return total
        longer = self._longer(choice, answers)
        return total + (math.log1p(-longer) if longer < 1 else -math.inf)

    def _longer(self, prefix: Tokens, answers: Mapping[Tokens, Mapping[int, float]]) -> float:
        """Sum the probabilities, once the prefix is there, of the ways on to the next choices behind it."""
        ways = ((math.exp(value), (*prefix, token)) for token, value in answers[prefix].items())
        return math.fsum(share if way in self.choices else share * self._longer(way, answers) for share, way in ways)


def make_tree(choices: Sequence[Tokens]) -> ChoiceTree:
    """Build the tree. Raises ValueError for an empty choice, or two that are the same tokens."""
    if len(set(choices)) < len(choices) or not all(choices):
        raise ValueError("the choices are not different texts of one token or more")
    following: dict[Tokens, dict[int, None]] = {}
    for choice in choices:
        for depth, token in enumerate(choice):
            following.setdefault(choice[:depth], {})[token] = None
    return ChoiceTree(tuple(choices), {prefix: tuple(tokens) for prefix, tokens in following.items()})
