"""Exact probabilities of choices of several tokens, from as few one-token generations as possible.

The choices form a tree of tokens. Each inner node is one generation that gives the probabilities of the next tokens after
this prefix. A choice that is a prefix of others (1 of 10 and 100) has the probability of its tokens times the probability
that none of the others follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


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
