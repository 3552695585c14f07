"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems with a number as answer, which is read strictly and flexibly."""

from __future__ import annotations

from collections.abc import Sequence

from ual_ray.benchmarks.benchmark import Benchmark, Question, Reading, completed
from ual_ray.benchmarks.gsm8k_examples import EXAMPLES
from ual_ray.columns import Message, Messages
from ual_ray.data.answers import extract_flexible, extract_strict, same_number
from ual_ray.engines.requests import Request, Result
from ual_ray.stats.metrics import EXACT_MATCH_FLEXIBLE, EXACT_MATCH_STRICT

STRICT, FLEXIBLE = "strict", "flexible"


class Gsm8k(Benchmark):
    """Questions whose reference answer ends in '#### n'; with 5 shots, worked examples come before as turns of the chat."""

    kind = "gsm8k"
    version = 7
    record_format = "question and answer, or a conversation in any other format; the answer ends in '#### n'"
    metrics = (EXACT_MATCH_STRICT, EXACT_MATCH_FLEXIBLE)
    settings = ("shots", "max_new_tokens")

    def question(self, messages: Messages, source: str) -> Question | None:
        """Take the turns before the reply, which has to hold '#### n'."""
        gold = extract_strict(messages[-1]["content"])
        return None if gold is None else Question(messages[:-1], source, answer=gold)

    def requests(self, question: Question) -> Sequence[Request]:
        """Ask for one greedy answer."""
        system = [message for message in question.messages if message["role"] == "system"]
        asked = [message for message in question.messages if message["role"] != "system"]
        return [self.complete([*system, *_shots(self.config.shots), *asked])]

    def read(self, question: Question, results: Sequence[Result]) -> Reading:
        """Extract both ways, and compare by value; an answer without a number is wrong."""
        text, confidence = completed(results)
        strict, flexible = extract_strict(text), extract_flexible(text)
        scores = {
            EXACT_MATCH_STRICT: float(same_number(strict, question.answer)),
            EXACT_MATCH_FLEXIBLE: float(same_number(flexible, question.answer)),
        }
        return Reading(text, {STRICT: strict, FLEXIBLE: flexible}, scores, confidence)


def _shots(count: int) -> list[Message]:
    pairs = EXAMPLES[:count]
    return [Message(role=role, content=text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
