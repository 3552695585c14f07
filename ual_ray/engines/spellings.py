"""Every way in which a vocabulary spells a choice at the start of a reply: '7', ' 7' and '▁7' are one choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ual_ray.engines.choice_tree import ChoiceTree, Tokens, make_tree
from ual_ray.engines.reading import log_sum
from ual_ray.engines.token_text import visible
from ual_ray.models.chat import ChatRenderer

# vLLM returns the log-probabilities of no more tokens at once.
MOST_TOKENS = 128


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
