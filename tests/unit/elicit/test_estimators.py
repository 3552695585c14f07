"""What all estimators share: missing on failure, what they ask, and how the configuration makes them."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from estimator_results import (
    ALL,
    INF,
    NO_NUMBERS,
    PAIR,
    number_of_results,
    p_true,
    reduce,
    said,
    verbalized,
)
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators import ESTIMATORS, MISSING, Estimate, make_estimators
from ual_ray.elicit.estimators.contract import Sampling
from ual_ray.elicit.estimators.p_true import PTrue
from ual_ray.elicit.estimators.samples import SelfConsistency, SemanticEntropy
from ual_ray.elicit.estimators.verbalized import Verbalized, VerbalizedDiversity, VerbalizedError
from ual_ray.elicit.grouping import AnswerGrouping, EmbeddingGrouping, LexicalGrouping, NliGrouping
from ual_ray.elicit.prompts import load_prompts
from ual_ray.engines.reading import softmax
from ual_ray.engines.requests import (
    ChoiceResult,
    Completion,
    Failure,
    Likelihood,
    Request,
)
from ual_ray.errors import UserError


def test_all_that_the_configuration_offers_can_be_made() -> None:
    made = make_estimators(ElicitConfig(estimators=ALL))
    assert {name: type(estimator) for name, estimator in made.items()} == dict(ESTIMATORS)


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
