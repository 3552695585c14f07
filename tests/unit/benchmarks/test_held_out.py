"""Held-out likelihood: what is asked, what is kept."""

from __future__ import annotations

import pytest

from ual_ray.benchmarks import benchmark
from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.held_out import HeldOut
from ual_ray.columns import Message
from ual_ray.config.registry import BENCHMARKS
from ual_ray.engines.requests import Likelihood, LikelihoodResult

CHAT = [Message(role="user", content="q"), Message(role="assistant", content="a")]


def test_every_conversation_is_a_question_and_its_whole_likelihood_is_asked() -> None:
    held_out = HeldOut()
    question = held_out.question(CHAT, "s")
    assert held_out.requests(question) == [Likelihood((("user", "q"), ("assistant", "a")))]
    reading = held_out.read(question, [LikelihoodResult(6.0, 3, 5)])
    assert (reading.nll_sum, reading.target_tokens, reading.scores, reading.prediction) == (6.0, 3, {}, None)


def test_files_may_have_any_form_and_name_their_sources() -> None:
    records = [{"instruction": "q", "output": "a", "source": "alpaca"}, {"messages": CHAT}, {"instruction": "q", "output": ""}]
    found = list(HeldOut().questions(records, "file"))
    assert found[:2] == [Question(CHAT, "alpaca"), Question(CHAT, "file")]
    assert str(found[2]) == "no response: output is empty"


@pytest.mark.parametrize("kind", sorted(BENCHMARKS))
def test_a_likelihood_belongs_to_how_rows_are_rendered(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's kept likelihoods, compared with those of a model that was measured later, would be of other labels."""
    made = BENCHMARKS[kind]()
    before = made.provenance()
    monkeypatch.setattr(benchmark, "RENDERING_VERSION", benchmark.RENDERING_VERSION + 1)
    assert (made.provenance() != before) == made.needs_likelihood
