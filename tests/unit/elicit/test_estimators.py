"""Estimators: hand-computed values, the range, the direction, and missing on failure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ual_ray.columns import Message
from ual_ray.config import ElicitConfig
from ual_ray.elicit.embedding import EmbeddingGrouping
from ual_ray.elicit.estimators import ESTIMATORS, MISSING, Estimate, make_estimators
from ual_ray.elicit.estimators.likelihood import NegativeLogLikelihood, SummedNegativeLogLikelihood
from ual_ray.elicit.estimators.p_true import PTrue
from ual_ray.elicit.estimators.samples import SelfConsistency, SemanticEntropy, entropy_of, grouping_for
from ual_ray.elicit.estimators.sampling import Sampling
from ual_ray.elicit.estimators.verbalized import Verbalized, VerbalizedDiversity, VerbalizedError
from ual_ray.elicit.grouping import AnswerGrouping, Grouping, LexicalGrouping
from ual_ray.elicit.nli import NliGrouping
from ual_ray.elicit.prompts import load_prompts
from ual_ray.engines.reading import softmax
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
    overlong,
)
from ual_ray.errors import UserError

INF = math.inf
MIN_CHOICE_MASS = 0.01
PAIR = [Message(role="user", content="Say hi."), Message(role="assistant", content="Hi.")]
SUM = [Message(role="user", content="2 + 2?"), Message(role="assistant", content="2 + 2 = 4\n#### 4")]
ALL = tuple(ESTIMATORS)
NO_NUMBERS: list[Result] = [Failure("engine: fell over"), overlong(9, 8)]

SAMPLING = Sampling(count=8, temperature=1.0)

log_probability = st.one_of(st.floats(-1e4, 0), st.just(-INF))


def choice(*probabilities: float) -> ChoiceResult:
    return ChoiceResult(tuple(math.log(value) if value else -INF for value in probabilities), prompt_tokens=7)


def digits(**probabilities: float) -> ChoiceResult:
    """Build the result of ten digits: d3=0.5 gives the digit 3 the probability 0.5; the rest are impossible."""
    return choice(*(probabilities.get(f"d{digit}", 0.0) for digit in range(10)))


def said(*texts: str) -> CompletionResult:
    return CompletionResult(texts, prompt_tokens=7, generated_tokens=len(texts))


def reduce(estimator: Any, *results: Result, messages: Sequence[Message] = PAIR) -> tuple[float | None, float | None]:
    estimate = estimator.reduce(list(results), messages)
    return estimate.uncertainty, estimate.raw


def verbalized(lowest: int = 0, highest: int = 9, sampling: Sampling | None = None) -> VerbalizedError:
    return VerbalizedError(load_prompts(), lowest, highest, sampling)


def p_true(sampling: Sampling | None = None) -> PTrue:
    return PTrue(load_prompts(), sampling)


def self_consistency(grouping: Grouping | None = None, similarity: float = 0.7) -> SelfConsistency:
    return SelfConsistency(SAMPLING, grouping, similarity)


def semantic_entropy(grouping: Grouping | None = None) -> SemanticEntropy:
    return SemanticEntropy(SAMPLING, grouping, 0.7)


def number_of_results(estimator: Any) -> int:
    return 2 if isinstance(estimator, PTrue) else 1


def test_all_that_the_configuration_offers_can_be_made() -> None:
    made = make_estimators(ElicitConfig(estimators=ALL))
    assert {name: type(estimator) for name, estimator in made.items()} == dict(ESTIMATORS)


# --- verbalized ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (digits(d0=1), 0.0),
        (digits(d9=1), 9.0),
        (digits(d3=0.5, d4=0.5), 3.5),
        (digits(d2=0.1, d8=0.3), 6.5),  # renormalised: (2 * 0.1 + 8 * 0.3) / 0.4
        (digits(**{f"d{digit}": 0.1 for digit in range(10)}), 4.5),
        (digits(d1=0.01, d7=0.03), 5.5),
    ],
)
def test_verbalized_is_the_expected_digit(result: ChoiceResult, expected: float) -> None:
    uncertainty, raw = reduce(verbalized(), result)
    assert raw == pytest.approx(expected)
    assert uncertainty == pytest.approx(expected / 9)


@pytest.mark.parametrize(
    ("probabilities", "expected", "uncertainty"),
    [
        ((1, 0, 0, 0, 0), 1.0, 0.0),
        ((0, 0, 0, 0, 1), 5.0, 1.0),
        ((0, 0, 1, 0, 0), 3.0, 0.5),
        ((0.2, 0, 0, 0, 0.2), 3.0, 0.5),
        ((0, 0.1, 0.3, 0, 0), 2.75, 1.75 / 4),
    ],
)
def test_verbalized_from_one_to_five(probabilities: tuple[float, ...], expected: float, uncertainty: float) -> None:
    result = reduce(verbalized(lowest=1, highest=5), choice(*probabilities))
    assert result == (pytest.approx(uncertainty), pytest.approx(expected))


@pytest.mark.parametrize(("number", "other", "expected"), [(0, 0, 0.0), (100, 100, 1.0), (50, 50, 0.5), (20, 100, 0.6)])
def test_verbalized_from_nought_to_a_hundred(number: int, other: int, expected: float) -> None:
    values = [0.0] * 101
    values[number] += 0.25
    values[other] += 0.25
    assert reduce(verbalized(lowest=0, highest=100), choice(*values))[0] == pytest.approx(expected)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 9), (1, 5), (0, 100)])
def test_verbalized_asks_for_every_number_of_its_scale(lowest: int, highest: int) -> None:
    (request,) = verbalized(lowest=lowest, highest=highest).requests(PAIR)
    assert isinstance(request, Choice)
    assert request.choices == tuple(str(number) for number in range(lowest, highest + 1))
    ((_, text),) = request.prompt
    assert f"from {lowest} (" in text and f"to {highest} (" in text


@pytest.mark.parametrize(
    ("lowest", "highest", "texts", "expected"),
    [
        (0, 9, ["3", "4", "3", "4"], 3.5),
        (0, 9, ["9", "10", "nine", "9"], 9.0),  # half of them can be read
        (1, 5, ["1", "5", "0", "6"], 3.0),
        (0, 100, ["100", "40", "I would say 10.", "1. The response"], 50.0),
        (0, 9, ["0"], 0.0),
    ],
)
def test_sampled_numbers_are_averaged(lowest: int, highest: int, texts: list[str], expected: float) -> None:
    estimator = verbalized(lowest=lowest, highest=highest, sampling=SAMPLING)
    assert reduce(estimator, said(*texts)) == (pytest.approx((expected - lowest) / (highest - lowest)), pytest.approx(expected))


@pytest.mark.parametrize("texts", [["nine"], ["9", "?", "?"], ["10", "10", "3"], [""]])
def test_sampled_numbers_of_which_most_cannot_be_read_are_missing(texts: list[str]) -> None:
    assert reduce(verbalized(sampling=SAMPLING), said(*texts)) == (None, None)


@given(values=st.lists(log_probability, min_size=10, max_size=10))
def test_verbalized_stays_in_range(values: list[float]) -> None:
    uncertainty, raw = reduce(verbalized(), ChoiceResult(tuple(values), 1))
    if math.fsum(map(math.exp, values)) < MIN_CHOICE_MASS:
        assert uncertainty is raw is None
    else:
        assert uncertainty is not None and 0 <= uncertainty <= 1
        assert raw is not None and -1e-9 <= raw <= 9 + 1e-9


@given(low=st.integers(0, 8), step=st.integers(1, 9), share=st.floats(0, 1))
def test_verbalized_rises_with_the_digit(low: int, step: int, share: float) -> None:
    high = min(9, low + step)
    less = reduce(verbalized(), digits(**{f"d{low}": 1}))[0]
    more = reduce(verbalized(), digits(**{f"d{high}": 1}))[0]
    mixed = reduce(verbalized(), digits(**{f"d{low}": share, f"d{high}": 1 - share}))[0]
    assert less is not None and more is not None and mixed is not None
    assert less < more
    assert less - 1e-12 <= mixed <= more + 1e-12


def test_error_and_diversity_are_different_questions_read_alike() -> None:
    error, diversity = (kind(load_prompts(), 0, 9) for kind in (VerbalizedError, VerbalizedDiversity))
    assert error != diversity and error.requests(PAIR) != diversity.requests(PAIR)
    assert reduce(error, digits(d6=1)) == reduce(diversity, digits(d6=1)) == (6 / 9, 6.0)


# --- p_true ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yes", "no", "expected"),
    [(0.5, 0.5, 0.5), (0.3, 0.1, 0.25), (0.01, 0.99, 0.99), (0.2, 0.6, 0.75), (0.01, 0.03, 0.75)],
)
def test_p_true_is_the_share_of_no_where_the_order_does_not_matter(yes: float, no: float, expected: float) -> None:
    uncertainty, raw = reduce(p_true(), choice(yes, no), choice(no, yes))
    assert uncertainty == pytest.approx(expected)
    assert raw == pytest.approx(math.log(no / yes))


def test_p_true_averages_both_orders() -> None:
    # yes first: P(no) = P(B) = 0.6 / 0.8; no first: P(no) = P(A) = 0.1 / 0.4.
    uncertainty, raw = reduce(p_true(), choice(0.2, 0.6), choice(0.1, 0.3))
    assert uncertainty == pytest.approx((0.75 + 0.25) / 2)
    assert raw == pytest.approx((math.log(3) - math.log(3)) / 2)
    assert reduce(p_true(), choice(0.2, 0.6), choice(0.5, 0.5))[0] == pytest.approx(0.625)


@given(first=st.floats(0.01, 1), second=st.floats(0.01, 1))
def test_a_model_that_only_likes_a_letter_says_nothing(first: float, second: float) -> None:
    uncertainty, raw = reduce(p_true(), choice(first, second), choice(first, second))
    assert uncertainty == pytest.approx(0.5, abs=1e-15)
    assert raw == 0


def test_a_model_that_knows_one_letter_alone_says_nothing() -> None:
    assert reduce(p_true(), choice(1, 0), choice(1, 0)) == (0.5, None)


@pytest.mark.parametrize(("yes", "no", "expected"), [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.1, 1.0)])
def test_p_true_of_one_possible_answer_has_no_finite_odds(yes: float, no: float, expected: float) -> None:
    assert reduce(p_true(), choice(yes, no), choice(no, yes)) == (expected, None)


def test_one_order_alone_is_no_answer() -> None:
    for failed in (*NO_NUMBERS, choice(0, 0), ChoiceResult((math.nan, -1.0), 1), choice(0.004, 0.004)):
        assert reduce(p_true(), choice(0.5, 0.5), failed) == (None, None)
        assert reduce(p_true(), failed, choice(0.5, 0.5)) == (None, None)


@given(values=st.lists(log_probability, min_size=4, max_size=4))
@example(values=[0.0, -INF, 0.0, -INF])
def test_p_true_stays_in_range_and_rises_with_no(values: list[float]) -> None:
    yes_first, no_first = tuple(values[:2]), tuple(values[2:])
    uncertainty, raw = reduce(p_true(), ChoiceResult(yes_first, 1), ChoiceResult(no_first, 1))
    if min(math.exp(yes_first[0]) + math.exp(yes_first[1]), math.exp(no_first[0]) + math.exp(no_first[1])) < MIN_CHOICE_MASS:
        assert uncertainty is raw is None
        return
    assert uncertainty is not None and 0 <= uncertainty <= 1
    assert raw is None or math.isfinite(raw)
    if yes_first[1] > yes_first[0] and no_first[0] > no_first[1]:
        assert uncertainty >= 0.5


def test_p_true_asks_in_both_orders() -> None:
    first, second = p_true().requests(PAIR)
    assert isinstance(first, Choice) and isinstance(second, Choice)
    assert first.choices == second.choices == ("A", "B")
    assert "A. Yes\nB. No" in first.prompt[0][1]
    assert "A. No\nB. Yes" in second.prompt[0][1]


@pytest.mark.parametrize(
    ("yes_first", "no_first", "expected"),
    [
        (["B", "B"], ["A", "A"], 1.0),
        (["A", "A"], ["B", "B"], 0.0),
        (["A", "A"], ["A", "A"], 0.5),  # it likes the A
        (["A", "B"], ["B", "B"], 0.25),
        (["B", "?"], ["A", "?"], 1.0),
    ],
)
def test_sampled_verdicts_are_counted(yes_first: list[str], no_first: list[str], expected: float) -> None:
    result = reduce(p_true(sampling=SAMPLING), said(*yes_first), said(*no_first))
    assert result == (pytest.approx(expected), pytest.approx(expected))


def test_sampled_verdicts_that_cannot_be_read_in_one_order_are_missing() -> None:
    assert reduce(p_true(sampling=SAMPLING), said("B", "B"), said("?", "Yes")) == (None, None)


@pytest.mark.parametrize(("count", "half"), [(8, 4), (7, 4), (1, 1)])
def test_sampled_verdicts_are_shared_out_between_the_orders(count: int, half: int) -> None:
    requests = p_true(sampling=Sampling(count, 1.0)).requests(PAIR)
    assert [request.n for request in requests if isinstance(request, Completion)] == [half, half]


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nll_sum", "tokens", "mean", "expected"),
    [
        (0.0, 4, 0.0, 0.0),
        (4 * math.log(2), 4, math.log(2), 0.5),  # every token had probability 1/2
        (math.log(2) + math.log(8), 2, math.log(4), 0.75),  # geometric mean of 1/2 and 1/8 is 1/4
        (1e6, 1, 1e6, 1.0),
    ],
)
def test_nll_is_one_minus_the_mean_probability(nll_sum: float, tokens: int, mean: float, expected: float) -> None:
    uncertainty, raw = reduce(NegativeLogLikelihood(), LikelihoodResult(nll_sum, tokens, 9))
    assert raw == pytest.approx(mean)
    assert uncertainty == pytest.approx(expected)


@pytest.mark.parametrize(("nll_sum", "expected"), [(0.0, 0.0), (1.0, 0.5), (3.0, 0.75), (999.0, 0.999)])
def test_nll_sum_is_squashed_slowly(nll_sum: float, expected: float) -> None:
    assert reduce(SummedNegativeLogLikelihood(), LikelihoodResult(nll_sum, 7, 9)) == (pytest.approx(expected), nll_sum)


@pytest.mark.parametrize("estimator", [NegativeLogLikelihood(), SummedNegativeLogLikelihood()])
@given(nll_sum=st.floats(-1e-5, 1e9), tokens=st.integers(1, 10_000))
def test_nll_stays_in_range_even_with_a_rounding_error_below_zero(estimator: Any, nll_sum: float, tokens: int) -> None:
    uncertainty, raw = reduce(estimator, LikelihoodResult(nll_sum, tokens, 1))
    assert uncertainty is not None and 0 <= uncertainty <= 1
    assert raw is not None and raw >= 0


@pytest.mark.parametrize("tokens", [1, 10, 500])
@pytest.mark.parametrize("estimator", [NegativeLogLikelihood(), SummedNegativeLogLikelihood()])
def test_nll_rises_with_the_mean_nll(estimator: Any, tokens: int) -> None:
    scores = [reduce(estimator, LikelihoodResult(mean * tokens, tokens, 1))[0] for mean in (0.0, 0.1, 1.0, 3.0, 20.0)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 5


def test_nll_sum_rises_with_the_length_and_nll_does_not() -> None:
    short, long = LikelihoodResult(10.0, 10, 1), LikelihoodResult(40.0, 40, 1)
    assert reduce(NegativeLogLikelihood(), short)[0] == reduce(NegativeLogLikelihood(), long)[0]
    assert reduce(SummedNegativeLogLikelihood(), short)[0] < reduce(SummedNegativeLogLikelihood(), long)[0]  # type: ignore[operator]


@pytest.mark.parametrize("estimator", [NegativeLogLikelihood(), SummedNegativeLogLikelihood()])
@pytest.mark.parametrize(("nll_sum", "tokens"), [(math.nan, 3), (INF, 3), (-INF, 3), (0.0, 0), (1.0, 0)])
def test_no_finite_nll_is_missing(estimator: Any, nll_sum: float, tokens: int) -> None:
    assert reduce(estimator, LikelihoodResult(nll_sum, tokens, 1)) == (None, None)


# --- sampled answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "agreeing"),
    [
        (["#### 4", "so it is 4.0", "The answer is: 4", "\\boxed{4}"], 4),
        (["#### 5", "#### 4", "four", "#### 40"], 1),
        (["five", "no idea", "", "#### 5"], 0),
    ],
)
def test_self_consistency_counts_the_answers_that_agree(texts: list[str], agreeing: int) -> None:
    assert reduce(self_consistency(), said(*texts), messages=SUM) == (1 - agreeing / 4, agreeing)


def test_self_consistency_compares_words_where_the_response_marks_no_answer() -> None:
    # "hi" alone: F1 with "hi you" is 2/3, with "hi" 1.
    assert reduce(self_consistency(similarity=0.6), said("hi", "HI!", "hi you", "bye"))[1] == 3
    assert reduce(self_consistency(similarity=0.7), said("hi", "HI!", "hi you", "bye"))[1] == 2


def test_a_given_grouping_beats_the_automatic_one() -> None:
    texts = said("2 + 2 = 4\n#### 4", "it is 4")
    assert reduce(self_consistency(), texts, messages=SUM)[1] == 2
    assert reduce(self_consistency(grouping=LexicalGrouping(0.9)), texts, messages=SUM)[1] == 1
    assert reduce(semantic_entropy(), texts, messages=SUM)[0] == 0
    assert reduce(semantic_entropy(grouping=LexicalGrouping(0.9)), texts, messages=SUM)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("texts", "entropy"),
    [
        (["#### 4"] * 4, 0.0),
        (["#### 4", "#### 4", "#### 5", "#### 5"], math.log(2)),
        (["#### 4", "#### 5", "#### 6", "#### 7"], math.log(4)),
        (["#### 4", "#### 4", "#### 4", "#### 5"], 2 * math.log(2) - 0.75 * math.log(3)),
    ],
)
def test_semantic_entropy_by_hand(texts: list[str], entropy: float) -> None:
    uncertainty, raw = reduce(semantic_entropy(), said(*texts), messages=SUM)
    assert raw == pytest.approx(entropy)
    assert uncertainty == pytest.approx(entropy / math.log(4))


def test_semantic_entropy_does_not_see_the_response() -> None:
    other = [SUM[0], Message(role="assistant", content="#### 77")]
    texts = said("#### 4", "#### 4", "#### 5")
    assert reduce(semantic_entropy(), texts, messages=SUM) == reduce(semantic_entropy(), texts, messages=other)
    assert reduce(self_consistency(), texts, messages=SUM) != reduce(self_consistency(), texts, messages=other)


def test_answers_that_were_cut_do_not_vote() -> None:
    texts = ("#### 4", "4 or 5, so 5", "<think>so #### 5</think>#### 4", "<think>so #### 5", "#### 4")
    result = CompletionResult(texts, 7, 9, finish_reasons=("stop", "length", "stop", "stop", "stop"))
    assert reduce(self_consistency(), result, messages=SUM) == (0, 3)
    assert reduce(semantic_entropy(), result, messages=SUM) == (0, 0)
    cut = replace(result, finish_reasons=("length", "length", "stop", "stop", "length"))
    for estimator in (self_consistency(), semantic_entropy()):
        estimate = estimator.reduce([cut], SUM)
        assert estimate.uncertainty is None and estimate.reason is not None
        assert estimate.reason.startswith("cut: ") and estimate.reason.endswith("1 of 5 answers ended")


@pytest.mark.parametrize(
    "text", ["The answer is 18 dollars.", "The answer is **18**.", "The answer is $18 per day.", "So she makes $18."]
)
def test_the_same_number_agrees_however_it_is_written(text: str) -> None:
    given = [SUM[0], Message(role="assistant", content="9 * 2 = 18\n#### 18")]
    assert reduce(self_consistency(), said(text, "#### 18"), messages=given)[0] == 0
    assert reduce(semantic_entropy(), said(text, "#### 18"), messages=given)[0] == 0


def test_it_depends_is_not_an_exact_answer() -> None:
    open_ended = [SUM[0], Message(role="assistant", content="Honestly, the answer is that it depends.")]
    assert grouping_for(open_ended, 0.7) == LexicalGrouping(0.7)
    assert grouping_for(SUM, 0.7) == AnswerGrouping()


def test_one_answer_has_no_entropy() -> None:
    assert reduce(semantic_entropy(), said("#### 4"), messages=SUM) == (None, None)


@given(answers=st.lists(st.sampled_from(["#### 4", "#### 5", "#### 6", "none", ""]), min_size=2, max_size=9))
def test_sampled_answers_stay_in_range(answers: list[str]) -> None:
    for estimator in (self_consistency(), semantic_entropy()):
        for messages in (PAIR, SUM):
            uncertainty, raw = reduce(estimator, said(*answers), messages=messages)
            assert uncertainty is not None and 0 <= uncertainty <= 1
            assert raw is not None and math.isfinite(raw)


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any))
def test_entropy_against_its_definition(sizes: list[int]) -> None:
    shares = [size / sum(sizes) for size in sizes if size]
    assert entropy_of(sizes) == pytest.approx(-sum(share * math.log(share) for share in shares))
    assert 0 <= abs(entropy_of(sizes)) <= math.log(len(shares)) + 1e-12


# --- missing is never a number ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("failure", NO_NUMBERS)
def test_a_failure_is_missing(name: str, failure: Failure) -> None:
    estimator = make_estimators(ElicitConfig(estimators=ALL))[name]
    assert Estimate(None, None) == MISSING
    estimate = estimator.reduce([failure] * number_of_results(estimator), PAIR)
    assert (estimate.uncertainty, estimate.raw, estimate.reason) in [(None, None, None), (None, None, failure.reason)]


@pytest.mark.parametrize(("estimator", "choices"), [(verbalized(), 10), (p_true(), 2)])
def test_a_reply_that_is_none_of_the_choices_is_missing_and_no_number(estimator: Any, choices: int) -> None:
    count = number_of_results(estimator)
    low, enough = (ChoiceResult((math.log(mass / choices),) * choices, 7) for mass in (0.009, 0.011))
    assert reduce(estimator, *[low] * count) == (None, None)
    assert reduce(estimator, *[enough] * count)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(("estimator", "choices"), [(verbalized(), 10), (p_true(), 2)])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_not_a_number_is_missing_wherever_it_stands(estimator: Any, choices: int, position: int, value: float) -> None:
    values = [-1.0] * choices
    values[position] = value
    count = number_of_results(estimator)
    assert reduce(estimator, *[ChoiceResult(tuple(values), 1)] * count) == (None, None)
    assert reduce(estimator, *[ChoiceResult((-INF,) * choices, 1)] * count) == (None, None)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_estimators_that_need_the_same_share_one_request() -> None:
    estimators = make_estimators(ElicitConfig(estimators=ALL))
    asked = {name: tuple(estimator.requests(PAIR)) for name, estimator in estimators.items()}
    assert asked["nll"] == asked["nll_sum"] == (Likelihood((("user", "Say hi."), ("assistant", "Hi.")), last_reply_only=True),)
    assert asked["self_consistency"] == asked["semantic_entropy"] == (Completion((("user", "Say hi."),), 256, 1.0, 8, 0),)
    assert len({request for requests in asked.values() for request in requests}) == 2 + 2 + 1 + 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["logprobs", "sampled"])
def test_attempts_differ_in_their_seeds_alone(name: str, mode: Any) -> None:
    config = ElicitConfig(estimators=(name,), uncertainty=name, mode=mode)
    (estimator,) = make_estimators(config, seed=3).values()
    first, second = (list(estimator.requests(PAIR, attempt)) for attempt in (0, 1))

    def without_seed(requests: list[Request]) -> list[Request]:
        return [replace(request, seed=0) if isinstance(request, Completion) else request for request in requests]

    assert without_seed(first) == without_seed(second)
    sampled = (
        mode == "sampled"
        and name in ("verbalized_error", "verbalized_diversity", "p_true")
        or name in ("self_consistency", "semantic_entropy")
    )
    assert (first != second) == sampled


@given(attempts=st.lists(st.integers(0, 1010), min_size=2, max_size=4, unique=True), count=st.integers(1, 20))
def test_no_two_attempts_draw_the_same_reply(attempts: list[int], count: int) -> None:
    """Engines give the n replies of a request the seeds from its own on."""
    asked = [Sampling(count, 1.0, seed=5).ask((("user", "q"),), attempt) for attempt in attempts]
    seeds = [request.seed + sample for request in asked for sample in range(request.n)]
    assert len(set(seeds)) == len(seeds)


# --- from the configuration ------------------------------------------------------------------------------------------


def test_estimators_come_in_the_configured_order() -> None:
    assert [*make_estimators(ElicitConfig(estimators=("nll", "verbalized_error")))] == ["nll", "verbalized_error"]


def test_every_option_of_sampling_is_honoured() -> None:
    config = ElicitConfig(
        estimators=ALL,
        mode="sampled",
        scale="1-5",
        samples=6,
        temperature=0.5,
        max_new_tokens=33,
        reply_tokens=20,
        thinking_tokens=50,
        min_choice_mass=0.2,
    )
    built: Any = make_estimators(config, seed=11)
    ratings = Sampling(6, 0.5, 11, 20, 50)
    answers = Sampling(6, 0.5, 11, 33, 50)
    assert built["verbalized_error"] == VerbalizedError(load_prompts(), 1, 5, ratings, 50, 0.2)
    assert built["verbalized_diversity"] == VerbalizedDiversity(load_prompts(), 1, 5, ratings, 50, 0.2)
    assert built["p_true"] == PTrue(load_prompts(), ratings, 50, 0.2)
    assert built["self_consistency"] == SelfConsistency(answers, None, 0.7)
    assert built["semantic_entropy"] == SemanticEntropy(answers, None, 0.7)
    (completion,) = built["verbalized_error"].requests(PAIR)
    assert (completion.n, completion.temperature, completion.seed, completion.max_tokens) == (6, 0.5, 11, 20)


@pytest.mark.parametrize(("scale", "bounds"), [("0-9", (0, 9)), ("1-5", (1, 5)), ("0-100", (0, 100))])
def test_every_scale_is_honoured(scale: Any, bounds: tuple[int, int]) -> None:
    rating: Any = make_estimators(ElicitConfig(scale=scale))["verbalized_error"]
    assert (rating.lowest, rating.highest, rating.sampling) == (*bounds, None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"grouping": "answer"}, AnswerGrouping()),
        ({"grouping": "lexical", "similarity": 0.3}, LexicalGrouping(0.3)),
        ({"grouping": "nli", "nli_model": "n"}, NliGrouping("n")),
        ({"grouping": "embedding", "embedding_model": "e", "similarity": 0.9}, EmbeddingGrouping("e", 0.9)),
    ],
)
def test_every_grouping_is_honoured(options: dict[str, Any], expected: object) -> None:
    built: Any = make_estimators(
        ElicitConfig(estimators=("semantic_entropy", "self_consistency", "verbalized_error"), **options)
    )
    assert built["semantic_entropy"].grouping == built["self_consistency"].grouping == expected
    assert built["semantic_entropy"].similarity == options.get("similarity", 0.7)


def test_entailment_is_asked_behind_the_instruction() -> None:
    built: Any = make_estimators(
        ElicitConfig(estimators=("semantic_entropy", "verbalized_error"), grouping="nli", nli_model="n")
    )
    assert built["semantic_entropy"].grouping_of(PAIR) == NliGrouping("n", context="Say hi.")


def test_templates_of_ones_own_are_honoured(tmp_path: Any) -> None:
    (tmp_path / "mine.yaml").write_text("no_option: Wrong\n")
    built: Any = make_estimators(ElicitConfig(templates=str(tmp_path / "mine.yaml")))
    assert "B. Wrong" in built["p_true"].requests(PAIR)[0].prompt[0][1]
    with pytest.raises(UserError):
        make_estimators(ElicitConfig(templates=str(tmp_path / "none.yaml")))


@pytest.mark.parametrize("name", ["verbalized_error", "verbalized_diversity"])
def test_reasons_may_come_before_the_rating(name: str) -> None:
    """With the prompts in jobs/prompts: other numbers in the reasons are not the rating."""
    prompts = str(Path(__file__).parents[3] / "jobs" / "prompts" / "reason_then_rate.yaml")
    options: dict[str, Any] = {"mode": "sampled", "reply_tokens": 300, "samples": 2, "templates": prompts}
    built: Any = make_estimators(ElicitConfig(estimators=(name,), uncertainty=name, **options))[name]
    (request,) = built.requests(PAIR)
    assert request.max_tokens == 300 and "[Response]\nHi.\n" in request.prompt[0][1]
    assert 'of the form "Rating: NUMBER", from 0 (' in request.prompt[0][1]
    replies = ("It says hi, 1 of 2 things asked.\nRating: 6", "Fine. I see 0 errors in 3 steps.\n\n**Rating: 3**")
    assert reduce(built, said(*replies)) == (0.5, 4.5)
    assert reduce(built, said("I see 3 errors.", "It is 100% right")) == (None, None)


def test_estimators_are_values() -> None:
    """They travel to actors, and equal settings are equal."""
    assert make_estimators(ElicitConfig(estimators=ALL)) == make_estimators(ElicitConfig(estimators=ALL))
    assert {field.name for field in fields(Verbalized)} == {"prompts", "lowest", "highest", "sampling", "thinking", "min_mass"}


# --- shares ----------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(-700, 0), min_size=1, max_size=12))
def test_softmax_sums_to_one_and_keeps_ratios(values: list[float]) -> None:
    shares = softmax(values)
    assert shares is not None
    assert sum(shares) == pytest.approx(1)
    highest = max(values)
    for value, share in zip(values, shares, strict=True):
        assert share == pytest.approx(max(shares) * math.exp(value - highest))


def test_softmax_by_hand() -> None:
    assert softmax([math.log(2), math.log(6)]) == pytest.approx([0.25, 0.75])
    assert softmax([-1e9, -1e9]) == [0.5, 0.5]
    assert softmax([-INF, -INF]) is None
