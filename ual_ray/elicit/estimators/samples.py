"""Estimators from answers that the elicitor samples to the instruction; both share one request."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from scipy.special import entr

from ual_ray.benchmarks.answer_key import marked_answer
from ual_ray.columns import Messages, response_of
from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators.contract import MISSING, Estimate, Estimator, Sampling, clip, missing
from ual_ray.elicit.grouping import AnswerGrouping, EmbeddingGrouping, Grouping, LexicalGrouping, NliGrouping, group
from ual_ray.elicit.prompts import instruction_of
from ual_ray.engines.reading import MIN_READ_SHARE
from ual_ray.engines.reply_text import Unread, answered
from ual_ray.engines.requests import CompletionResult, Request, Result, turns


@dataclass(frozen=True)
class _OfAnswers(Estimator):
    """Sample answers; `grouping` None = compare final answers where the response marks one, and words elsewhere."""

    sampling: Sampling
    grouping: Grouping | None
    similarity: float

    @classmethod
    def build(cls, config: ElicitConfig, seed: int) -> Self:
        """Choose the grouping."""
        return cls(Sampling.of_answers(config, seed), _configured_grouping(config), config.similarity)

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for answers to the instruction."""
        return [self.sampling.ask(turns(messages[:-1]), attempt)]

    def grouping_of(self, messages: Messages) -> Grouping:
        """Return how the answers to a pair's instruction are compared."""
        if isinstance(self.grouping, NliGrouping):
            return replace(self.grouping, context=instruction_of(messages))
        return self.grouping or grouping_for(messages, self.similarity)

    def votes(self, results: Sequence[Result]) -> list[str] | Estimate:
        """Return the answers that the model ended, without their thoughts; an estimate without a value for too few."""
        (result,) = results
        if not isinstance(result, CompletionResult):
            return MISSING
        said = [answered(text, finish) for text, finish in result.replies]
        votes = [text for text in said if isinstance(text, str)]
        if len(votes) < max(self.min_samples, MIN_READ_SHARE * len(said)):
            reasons = Counter(reply.reason for reply in said if isinstance(reply, Unread))
            reason = reasons.most_common(1)[0][0] if reasons else "unparsable: there is no reply"
            return missing(f"{reason}; {len(votes)} of {len(said)} answers ended")
        return votes


@dataclass(frozen=True)
class SelfConsistency(_OfAnswers):
    """1 - the share of sampled answers that agree with the given one (after Wang et al. 2022, arXiv 2203.11171).

    raw: the number of answers that agree. Answers that were cut do not vote.
    """

    summary: ClassVar[str] = "1 - the share of the elicitor's own answers to the instruction that agree with the response."

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Count the answers that agree with the response."""
        votes = self.votes(results)
        if isinstance(votes, Estimate):
            return votes
        grouping = self.grouping_of(messages)
        given, *sampled = grouping.keys([response_of(messages[-1]), *votes])
        agreeing = sum(grouping.same(given, key) for key in sampled)
        return Estimate(1 - agreeing / len(sampled), float(agreeing))


@dataclass(frozen=True)
class SemanticEntropy(_OfAnswers):
    """Entropy of the groups of equal sampled answers, over log(number of answers) (Kuhn et al. 2023, arXiv 2302.09664).

    It measures the instruction: how many different answers the elicitor finds, independent of the given one.
    raw: the entropy in nats.
    """

    summary: ClassVar[str] = "How many different answers the elicitor finds to the instruction, independent of the response."
    min_samples: ClassVar[int] = 2

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Group the answers and take the entropy of the groups' shares."""
        votes = self.votes(results)
        if isinstance(votes, Estimate):
            return votes
        grouping = self.grouping_of(messages)
        sizes = np.array([*Counter(group(grouping.keys(votes), grouping.same)).values()])
        spread = abs(float(np.sum(entr(sizes / sizes.sum()))))  # without the sign of -0.0
        return Estimate(clip(spread / math.log(len(votes))), spread)


def grouping_for(messages: Messages, similarity: float) -> Grouping:
    """Compare final answers where the given response marks one, and words elsewhere."""
    return AnswerGrouping() if marked_answer(response_of(messages[-1])) is not None else LexicalGrouping(similarity)


def _configured_grouping(config: ElicitConfig) -> Grouping | None:
    if config.grouping == "nli":
        assert config.nli_model is not None, "the configuration asks for it"
        return NliGrouping(config.nli_model)
    if config.grouping == "embedding":
        assert config.embedding_model is not None, "the configuration asks for it"
        return EmbeddingGrouping(config.embedding_model, config.similarity)
    return {"auto": None, "answer": AnswerGrouping(), "lexical": LexicalGrouping(config.similarity)}[config.grouping]
