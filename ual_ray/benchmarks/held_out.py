"""Unsmoothed NLL of the reference replies, by source: rows that nothing was trained on."""

from collections.abc import Sequence

from ual_ray.benchmarks.benchmark import Benchmark, Question, Reading
from ual_ray.columns import Messages
from ual_ray.engines.requests import Likelihood, LikelihoodResult, Request, Result, turns
from ual_ray.stats.metrics import NLL


class HeldOut(Benchmark):
    """Every conversation is a question; its NLL is that of all the assistant's turns."""

    kind = "held_out"
    metrics = (NLL,)
    needs_likelihood = True
    settings = ()
    # A fifth of ten million rows would be asked of every model, in its full precision.
    default_max_rows = 20_000
    lowest_ids = True

    def question(self, messages: Messages, source: str) -> Question:
        """Take the whole conversation."""
        return Question(messages, source)

    def requests(self, question: Question) -> Sequence[Request]:
        """Ask for the likelihood."""
        return [Likelihood(turns(question.messages))]

    def read(self, question: Question, results: Sequence[Result]) -> Reading:
        """Take sum and number of tokens: the figure is a ratio over rows, so no row has a score of its own."""
        (result,) = results
        assert isinstance(result, LikelihoodResult)
        return Reading(nll_sum=result.nll_sum, target_tokens=result.target_tokens)
