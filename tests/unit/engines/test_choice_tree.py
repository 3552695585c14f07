"""The tree of choices against a model whose every continuation can be summed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ual_ray.engines.spellings import ChoiceTree, Tokens, make_tree

VOCABULARY = (0, 1, 2)
DEPTH = 4  # one token more than the longest choice

choice_sets = st.lists(
    st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=DEPTH - 1).map(tuple), min_size=1, max_size=6, unique=True
)


def next_tokens(prefix: Tokens, seed: int) -> dict[int, float]:
    """Make up a conditional distribution that depends on the whole prefix."""
    weights = [random.Random(f"{seed} {prefix} {token}").random() + 0.01 for token in VOCABULARY]  # noqa: S311
    return {token: weight / sum(weights) for token, weight in zip(VOCABULARY, weights, strict=True)}


def replies(seed: int, prefix: Tokens = ()) -> Iterator[tuple[Tokens, float]]:
    """Yield every reply of DEPTH tokens with its probability."""
    if len(prefix) == DEPTH:
        yield prefix, 1.0
        return
    for token, share in next_tokens(prefix, seed).items():
        for reply, rest in replies(seed, (*prefix, token)):
            yield reply, share * rest


def answers_for(tree: ChoiceTree, seed: int) -> dict[Tokens, dict[int, float]]:
    return {
        prefix: {token: math.log(next_tokens(prefix, seed)[token]) for token in tokens}
        for prefix, tokens in tree.questions.items()
    }


@pytest.mark.slow
@given(choices=choice_sets, seed=st.integers(0, 1000))
@example(choices=[(1,), (1, 0), (1, 0, 0)], seed=0)
@example(choices=[(1,), (1, 0, 0)], seed=0)  # 1 and 100 without a 10 between them
@example(choices=[(1,), (1, 0, 0), (1, 0, 1), (1, 2)], seed=0)
def test_combined_probabilities_are_those_of_the_replies(choices: list[Tokens], seed: int) -> None:
    tree = make_tree(choices)
    expected = dict.fromkeys(choices, 0.0)
    for reply, probability in replies(seed):
        opened = [choice for choice in choices if reply[: len(choice)] == choice]
        if opened:
            expected[max(opened, key=len)] += probability
    found = tree.combine(answers_for(tree, seed))
    assert [math.exp(value) for value in found] == pytest.approx([expected[choice] for choice in choices])


@given(choices=choice_sets)
def test_every_question_is_the_way_to_a_choice(choices: list[Tokens]) -> None:
    tree = make_tree(choices)
    assert tree.choices == tuple(choices)
    for prefix, tokens in tree.questions.items():
        assert len(set(tokens)) == len(tokens) > 0
        assert all(any(choice[: len(prefix) + 1] == (*prefix, token) for choice in choices) for token in tokens)
    assert set(tree.questions) == {choice[:depth] for choice in choices for depth in range(len(choice))}


def test_choices_of_one_token_are_one_question() -> None:
    tree = make_tree([(7,), (3,), (5,)])
    assert tree.questions == {(): (7, 3, 5)}
    assert tree.combine({(): {7: -1.0, 3: -2.0, 5: -3.0}}) == (-1.0, -2.0, -3.0)


def test_numbers_up_to_a_hundred_in_digits_are_eleven_questions() -> None:
    """One about the first digit, nine about what follows 1 to 9 (nothing follows 0), one about what follows 10."""
    tree = make_tree([tuple(int(digit) for digit in str(number)) for number in range(101)])
    assert len(tree.questions) == 11
    assert tree.questions[(1, 0)] == (0,)
    assert (0,) not in tree.questions


def test_one_ten_and_a_hundred_by_hand() -> None:
    tree = make_tree([(1,), (1, 0), (1, 0, 0)])
    log = math.log
    found = tree.combine({(): {1: log(0.5)}, (1,): {0: log(0.4)}, (1, 0): {0: log(0.25)}})
    assert [math.exp(value) for value in found] == pytest.approx([0.5 * 0.6, 0.5 * 0.4 * 0.75, 0.5 * 0.4 * 0.25])


def test_what_cannot_end_there_is_impossible() -> None:
    tree = make_tree([(1,), (1, 0)])
    assert tree.combine({(): {1: 0.0}, (1,): {0: 0.0}}) == (-math.inf, 0.0)
    assert tree.combine({(): {1: -math.inf}, (1,): {0: 0.0}}) == (-math.inf, -math.inf)
    assert tree.combine({(): {1: -1.0}, (1,): {0: 1e-9}})[0] == -math.inf  # rounding above a probability of 1
    assert tree.combine({(): {1: -1.0}, (1,): {0: -math.inf}}) == (-1.0, -math.inf)


@pytest.mark.parametrize("choices", [[(1,), (1,)], [()], [(1,), ()], [(1, 2), (3,), (1, 2)]])
def test_choices_that_are_the_same_tokens_or_none_are_refused(choices: list[Tokens]) -> None:
    with pytest.raises(ValueError, match="distinct and have one token or more"):
        make_tree(choices)
