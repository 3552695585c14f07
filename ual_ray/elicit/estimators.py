"""Estimators of a pair's uncertainty: each declares the requests it needs and turns their results into two numbers.

Contract: uncertainty is a float in [0, 1], HIGHER = MORE UNCERTAIN, or None on failure; raw is the estimator's own value.
Pure: no Ray, no vLLM, no MLflow.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ual_ray.columns import Messages
from ual_ray.config import ElicitConfig
from ual_ray.data.answers import final_answer
from ual_ray.elicit.grouping import AnswerGrouping, Grouping, LexicalGrouping, group
from ual_ray.elicit.prompts import FIRST, SECOND, Prompts, load_prompts
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
    Turns,
    turns,
)


@dataclass(frozen=True)
class Estimate:
    """`uncertainty` in [0, 1], higher = more uncertain; `raw` in the estimator's own unit; None where it failed."""

    uncertainty: float | None
    raw: float | None


MISSING = Estimate(None, None)

# Below this probability of all choices together, their shares are the noise of a tail.
MIN_CHOICE_MASS = 0.01
# Fewer parsable replies than this share are a property of the prompt, not of the row.
MIN_PARSED_SHARE = 0.5
LONGEST_RATING = 8  # tokens of a sampled number or letter


class Estimator(Protocol):
    """One way to measure uncertainty."""

    name: ClassVar[str]

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Declare what has to be asked about a pair; another attempt asks with other seeds, where there are seeds."""

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Turn the results, in the order of the requests, into an estimate."""


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled: `count` of them, at a temperature, from a seed that every attempt moves on."""

    count: int
    temperature: float
    seed: int = 0
    max_tokens: int = LONGEST_RATING

    def ask(self, prompt: Turns, attempt: int, count: int | None = None) -> Completion:
        """Ask for the replies to a prompt."""
        count = count or self.count
        # Engines give the replies of one request the seeds that follow its own: the next attempt begins behind them.
        return Completion(prompt, self.max_tokens, self.temperature, count, self.seed + attempt * count)


@dataclass(frozen=True)
class Verbalized:
    """Expected rating on a scale, (sum of s p(s) - lowest) / (highest - lowest), p renormalised over the scale (UAL).

    With `sampling` the expectation is the mean of sampled numbers instead. raw: the expected number.
    """

    name: ClassVar[str] = "verbalized"
    prompts: Prompts
    lowest: int
    highest: int
    sampling: Sampling | None = None

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the probabilities of the numbers, or for sampled numbers."""
        prompt = self.prompts.rating(messages, str(self.lowest), str(self.highest))
        if self.sampling is not None:
            return [self.sampling.ask(prompt, attempt)]
        return [Choice(prompt, tuple(str(number) for number in range(self.lowest, self.highest + 1)))]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average the numbers."""
        (result,) = results
        expected: float | None = None
        if isinstance(result, ChoiceResult) and (shares := choice_shares(result.log_probabilities)) is not None:
            expected = math.fsum((self.lowest + step) * share for step, share in enumerate(shares))
        if isinstance(result, CompletionResult):
            numbers = [parse_number(text, self.lowest, self.highest) for text in result.texts]
            expected = mean_of_parsed(numbers)
        if expected is None:
            return MISSING
        return Estimate(_clip((expected - self.lowest) / (self.highest - self.lowest)), expected)


@dataclass(frozen=True)
class PTrue:
    """Probability that the elicitor calls the response false, averaged over both orders of the options.

    P(no) / (P(yes) + P(no)), after Kadavath et al. 2022 (arXiv 2207.05221); asking in both orders cancels a model's liking
    for one letter. raw: mean log-odds of "no", in nats (sampled: the share of "no"); None where not finite.
    """

    name: ClassVar[str] = "p_true"
    prompts: Prompts
    sampling: Sampling | None = None

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the verdict with 'yes' as option A, and with 'yes' as option B."""
        both = [self.prompts.verdict(messages, yes_first=yes_first) for yes_first in (True, False)]
        if self.sampling is not None:
            half = math.ceil(self.sampling.count / 2)
            return [self.sampling.ask(prompt, attempt, half) for prompt in both]
        return [Choice(prompt, (FIRST, SECOND)) for prompt in both]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average the shares of 'no'; one order alone is not an answer."""
        # In the second question the letters have the opposite meaning: its A is no.
        verdicts = [self._verdict(result, no) for result, no in zip(results, (SECOND, FIRST), strict=True)]
        if any(verdict is None for verdict in verdicts):
            return MISSING
        shares, odds = zip(*(verdict for verdict in verdicts if verdict is not None), strict=True)
        raw = sum(odds) / 2  # of an impossible letter infinite, or the difference of infinities
        return Estimate(_clip(math.fsum(shares) / 2), raw if math.isfinite(raw) else None)

    def _verdict(self, result: Result, no: str) -> tuple[float, float] | None:
        if isinstance(result, ChoiceResult) and (shares := choice_shares(result.log_probabilities)) is not None:
            first, second = result.log_probabilities
            return (shares[1], second - first) if no == SECOND else (shares[0], first - second)
        if isinstance(result, CompletionResult):
            share = mean_of_parsed([parse_letter(text, no) for text in result.texts])
            return None if share is None else (share, share)
        return None


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Mean token NLL of the response under the elicitor, squashed by 1 - exp(-NLL): 1 - the geometric mean probability.

    raw: mean NLL in nats per token.
    """

    name: ClassVar[str] = "nll"

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the NLL of the last reply, which is the pair's response."""
        return [Likelihood(turns(messages), last_reply_only=True)]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average over the tokens."""
        nll = _response_nll(results)
        return MISSING if nll is None else Estimate(_clip(-math.expm1(-nll[0] / nll[1])), nll[0] / nll[1])


@dataclass(frozen=True)
class SummedNegativeLogLikelihood:
    """Summed token NLL S of the response under the elicitor, squashed by S / (1 + S), which keeps long responses apart.

    raw: S in nats. It grows with the response's length; see elicit.length_residual.
    """

    name: ClassVar[str] = "nll_sum"

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask what `nll` asks: both share the call."""
        return [Likelihood(turns(messages), last_reply_only=True)]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Take the sum."""
        nll = _response_nll(results)
        return MISSING if nll is None else Estimate(_clip(nll[0] / (1 + nll[0])), nll[0])


@dataclass(frozen=True)
class _Sampled:
    """What the estimators that sample answers to the instruction share: both read the same call."""

    sampling: Sampling
    grouping: Grouping | None
    similarity: float

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for answers to the instruction."""
        return [self.sampling.ask(turns(messages[:-1]), attempt)]

    def _grouping(self, messages: Messages) -> Grouping:
        return self.grouping or grouping_for(messages, self.similarity)


@dataclass(frozen=True)
class SelfConsistency(_Sampled):
    """1 - the share of sampled answers that agree with the given one (after Wang et al. 2022, arXiv 2203.11171).

    raw: the number of answers that agree. `grouping` None = by final answer where the response marks one, else by words.
    """

    name: ClassVar[str] = "self_consistency"

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Count the answers that agree with the response."""
        (result,) = results
        if not isinstance(result, CompletionResult):
            return MISSING
        grouping = self._grouping(messages)
        given, *sampled = grouping.keys([messages[-1]["content"], *result.texts])
        agreeing = sum(grouping.same(given, key) for key in sampled)
        return Estimate(1 - agreeing / len(sampled), float(agreeing))


@dataclass(frozen=True)
class SemanticEntropy(_Sampled):
    """Entropy of the groups that sampled answers fall into, over log(number of samples) (Kuhn et al. 2023, arXiv 2302.09664).

    It is about the instruction: how many different answers the elicitor finds, whatever the given one is.
    raw: the entropy in nats. `grouping` as for SelfConsistency.
    """

    name: ClassVar[str] = "semantic_entropy"

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Group the answers and take the entropy of the groups' shares."""
        (result,) = results
        if not isinstance(result, CompletionResult) or len(result.texts) < 2:
            return MISSING
        grouping = self._grouping(messages)
        sizes = Counter(group(grouping.keys(result.texts), grouping.same)).values()
        entropy = entropy_of(sizes)
        return Estimate(_clip(entropy / math.log(len(result.texts))), entropy)


def make_estimators(config: ElicitConfig, seed: int = 0) -> dict[str, Estimator]:
    """Build the configured estimators, in order. Raises UserError for an invalid template file."""
    prompts = load_prompts(config.templates)
    lowest, highest = map(int, config.scale.split("-"))
    ratings = Sampling(config.samples, config.temperature, seed) if config.mode == "sampled" else None
    answers = Sampling(config.samples, config.temperature, seed, config.max_new_tokens)
    compared = (answers, _grouping(config), config.similarity)
    every: Sequence[Estimator] = (
        Verbalized(prompts, lowest, highest, ratings),
        PTrue(prompts, ratings),
        NegativeLogLikelihood(),
        SummedNegativeLogLikelihood(),
        SelfConsistency(*compared),
        SemanticEntropy(*compared),
    )
    by_name = {estimator.name: estimator for estimator in every}
    return {name: by_name[name] for name in config.estimators}


def grouping_for(messages: Messages, similarity: float) -> Grouping:
    """Compare final answers where the given response marks one, and words elsewhere."""
    return AnswerGrouping() if final_answer(messages[-1]["content"]) is not None else LexicalGrouping(similarity)


def _grouping(config: ElicitConfig) -> Grouping | None:
    if config.grouping == "embedding":
        from ual_ray.elicit.embedding import EmbeddingGrouping

        assert config.embedding_model is not None, "the configuration asks for it"
        return EmbeddingGrouping(config.embedding_model, config.similarity)
    return {"auto": None, "answer": AnswerGrouping(), "lexical": LexicalGrouping(config.similarity)}[config.grouping]


def choice_shares(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise over the choices; None when they have so little mass that the reply would be something else."""
    shares = softmax(log_probabilities)
    mass = math.fsum(math.exp(value) for value in log_probabilities)
    return shares if mass >= MIN_CHOICE_MASS else None


def softmax(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise log-probabilities over the given choices; None when none of them has a finite one."""
    highest = max(log_probabilities)
    if not math.isfinite(highest) or any(map(math.isnan, log_probabilities)):
        return None
    weights = [math.exp(value - highest) for value in log_probabilities]
    total = sum(weights)
    return [weight / total for weight in weights]


def entropy_of(sizes: Iterable[int]) -> float:
    """Entropy, in nats, of the shares that groups of these sizes have."""
    counts = [size for size in sizes if size]
    total = sum(counts)
    return -math.fsum(count / total * math.log(count / total) for count in counts)


def parse_number(text: str, lowest: int, highest: int) -> float | None:
    """Read the first whole number of a reply that is not part of a word; None when there is none or it is off the scale."""
    found = re.search(r"(?<![\w.-])-?\d+(?!\w|\.\d)", text)
    number = int(found[0]) if found else None
    return float(number) if number is not None and lowest <= number <= highest else None


def parse_letter(text: str, wanted: str) -> float | None:
    """Read the first A or B of a reply that stands alone: 1 when it is the wanted one, 0 when the other, None when neither."""
    found = re.search(rf"\b([{FIRST}{SECOND}])\b", text)
    return float(found[1] == wanted) if found else None


def mean_of_parsed(values: Sequence[float | None]) -> float | None:
    """Average the values that could be read; None when they are fewer than half."""
    parsed = [value for value in values if value is not None]
    return math.fsum(parsed) / len(parsed) if values and len(parsed) >= MIN_PARSED_SHARE * len(values) else None


def _response_nll(results: Sequence[Result]) -> tuple[float, int] | None:
    (result,) = results
    if not isinstance(result, LikelihoodResult) or result.target_tokens == 0 or not math.isfinite(result.nll_sum):
        return None
    return max(0.0, result.nll_sum), result.target_tokens


def _clip(value: float) -> float:
    """Keep rounding from leaving [0, 1]."""
    return min(1.0, max(0.0, value))


def requests_of(estimators: Mapping[str, Estimator], messages: Messages) -> dict[Request, list[str]]:
    """List the different requests about a row, with the estimators that share each."""
    shared: dict[Request, list[str]] = {}
    for name, estimator in estimators.items():
        for request in estimator.requests(messages):
            shared.setdefault(request, []).append(name)
    return shared
