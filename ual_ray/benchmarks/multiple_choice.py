"""Multiple choice by the likelihood of each answer, for files in the format of ARC or HellaSwag.

A choice is the assistant's reply, without the end of its turn. `accuracy` compares summed log-probabilities,
`accuracy_normalised` these sums over the length in characters: acc and acc_norm of lm-evaluation-harness.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from ual_ray.benchmarks.benchmark import Benchmark, Question, Reading, source_of
from ual_ray.columns import Message
from ual_ray.data.formats import BadRow, Record
from ual_ray.engines.requests import Likelihood, LikelihoodResult, Request, Result, turns
from ual_ray.stats.metrics import ACCURACY, ACCURACY_NORMALISED

SUMMED, NORMALISED = "summed", "normalised"


class MultipleChoice(Benchmark):
    """The model is not shown the choices: each is scored as its reply."""

    kind = "multiple_choice"
    version = 3
    record_format = "ARC's (question, choices {text, label}, answerKey) or HellaSwag's (ctx, endings, label)"
    metrics = (ACCURACY, ACCURACY_NORMALISED)
    needs_likelihood = True
    settings = ()

    def from_record(self, record: Record, where: str) -> Question:
        """Read ARC's format (question, choices {text, label}, answerKey) or HellaSwag's (ctx, endings, label)."""
        reads = ["ctx", "endings"] if "endings" in record else ["choices"]
        prompt, choices, gold = _hellaswag(record) if "endings" in record else _arc(record)
        choices = [text.strip() if isinstance(text, str) else "" for text in choices]
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadRow("no question: its text is empty")
        if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
            raise BadRow("choices are not two or more different texts")
        messages = self.asked(record, [Message(role="user", content=prompt.strip())], reads)
        return Question(messages, source_of(record, where), str(gold), tuple(choices))

    def requests(self, question: Question) -> Sequence[Request]:
        """Ask for the likelihood of every choice."""
        asked = turns(question.messages)
        return [
            Likelihood((*asked, ("assistant", choice)), last_reply_only=True, content_only=True) for choice in question.choices
        ]

    def read(self, question: Question, results: Sequence[Result]) -> Reading:
        """Choose by sum and by sum over length; the confidence is the chosen one's share of the summed probabilities."""
        sums = [-result.nll_sum for result in results if isinstance(result, LikelihoodResult)]
        assert len(sums) == len(question.choices), "one likelihood per choice"
        by_length = [value / len(choice) for value, choice in zip(sums, question.choices, strict=True)]
        summed, normalised = _highest(sums), _highest(by_length)
        scores = {
            ACCURACY: float(str(summed) == question.answer),
            ACCURACY_NORMALISED: float(str(normalised) == question.answer),
        }
        chosen = {SUMMED: str(summed), NORMALISED: str(normalised)}
        return Reading(question.choices[summed], chosen, scores, share(sums, summed))


def share(values: Sequence[float], chosen: int) -> float:
    """Return the chosen one's share of the sum of probabilities that are given by their logarithms, in [0, 1]."""
    highest = max(values)
    return math.exp(values[chosen] - highest) / math.fsum(math.exp(value - highest) for value in values)


def _highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _arc(record: Record) -> tuple[Any, Sequence[Any], int]:
    choices = record.get("choices")
    if not isinstance(choices, dict) or not all(isinstance(choices.get(name), list) for name in ("text", "label")):
        raise BadRow(f"unknown format: not {MultipleChoice.record_format}")
    labels, key = [str(label) for label in choices["label"]], str(record.get("answerKey"))
    if key not in labels or len(labels) != len(choices["text"]):
        raise BadRow(f"no gold answer: answerKey {key!r:.20} is none of the labels")
    return record.get("question"), choices["text"], labels.index(key)


def _hellaswag(record: Record) -> tuple[Any, Sequence[Any], int]:
    endings, label = record["endings"], str(record.get("label"))
    if not isinstance(endings, list) or label not in map(str, range(len(endings))):
        raise BadRow(f"no gold answer: label {label!r:.20} is not the number of an ending")
    subject, context = record.get("activity_label"), str(record.get("ctx") or "")
    prompt = f"{subject}: {context}" if subject and context else context
    return _plain(prompt), [_plain(text) if isinstance(text, str) else text for text in endings], int(label)


def _plain(text: str) -> str:
    """Remove markers of HellaSwag's source pages, such as [header] and [title]."""
    # A bracket that is not closed is kept, with the rest of its line, which is not searched again from each bracket in it.
    text = re.sub(r"\[[^\]\n]*(\]?)", lambda found: "" if found[1] else found[0], text.replace(" [title]", ". "))
    return re.sub(r" {2,}", " ", text).strip()
