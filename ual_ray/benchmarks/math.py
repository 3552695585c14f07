r"""Competition mathematics: answers in \boxed{...} (MATH) or after 'The answer is:' (MetaMath), compared by math-verify.

Answers are equal when they are mathematically equal, such as 1/2, 0.5 and \frac{1}{2}.
"""

import re
from collections.abc import Sequence
from typing import Any

from ual_ray.benchmarks.answer_key import (
    AnswerKey,
    answer_of,
    boxed_answer,
    in_full,
    is_inequality,
    is_interval,
    other_unit,
    same_answer,
)
from ual_ray.benchmarks.benchmark import Benchmark, Question, Reading, completed, source_of
from ual_ray.benchmarks.math_check import Checker, load
from ual_ray.columns import Message, Messages
from ual_ray.data.answers import in_ascii
from ual_ray.data.formats import BadRow, Record
from ual_ray.data.records import name_of
from ual_ray.engines.requests import Request, Result
from ual_ray.stats.metrics import EXACT_MATCH_MATH

ANSWER_IS = re.compile(r"(?i)the (?:final )?answer is:\s*(.+)")
ANSWER = "answer"
# Marks of emphasis around words, not of a product, and the end of a sentence that another one follows.
_EMPHASIS = re.compile(r"(?<![\w)}*])\*{1,3}(?=[^\s*])([^*\n]+)(?<=[^\s*])\*{1,3}(?![\w({*])")
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[^\W\d_])")

# One process per actor, started by its first answer.
checker = Checker()


class Math(Benchmark):
    """Problems whose reference solution marks its final answer."""

    kind = "math"
    version = 9
    default_max_new_tokens = 4096
    record_format = (
        r"problem and solution (and answer), or a conversation in any other format; it holds \boxed{...} or 'The answer is:'"
    )
    metrics = (EXACT_MATCH_MATH,)

    def check(self) -> None:
        """Raise UserError if math-verify is missing."""
        load()

    def question(self, messages: Messages, source: str) -> Question | None:
        r"""Use the turns before the reply, which must contain \boxed{...} or 'The answer is:'."""
        gold = marked_answer(messages[-1]["content"])
        return None if gold is None else Question(messages[:-1], source, answer=gold)

    def from_record(self, record: Record, where: str) -> Question:
        """Read MATH's own format (problem, solution, and in some editions answer), or any format of the training data."""
        if "problem" not in record:
            return super().from_record(record, where)
        problem = record["problem"]
        gold = _given(record.get(ANSWER)) or marked_answer(str(record.get("solution") or ""))
        if not isinstance(problem, str) or not problem.strip() or gold is None:
            raise BadRow("no question: problem is empty, or the solution marks no answer")
        messages = self.asked(record, [Message(role="user", content=problem.strip())])
        return Question(messages, source_of(record, where), answer=gold)

    def requests(self, question: Question) -> Sequence[Request]:
        """Request one greedy answer."""
        return [self.complete(question.messages)]

    def read(self, question: Question, results: Sequence[Result]) -> Reading:
        """Compare by math-verify, numbers and words also as such; what is missing, or not compared in time, is wrong."""
        text, confidence = completed(results)
        gold, marked = question.answer or "", marked_answer(text)
        said = in_full(_EMPHASIS.sub(r"\1", text)) if marked is None else f"\\boxed{{{marked}}}"
        found, right = checker(gold, said)
        right = _same_or(right, answer_of(f"\\boxed{{{gold}}}"), answer_of(said))
        return Reading(text, {ANSWER: marked or found}, {EXACT_MATCH_MATH: float(right)}, confidence)


def _same_or(right: bool, gold: AnswerKey | None, said: AnswerKey | None) -> bool:
    """Correct math-verify, which reads "18 eggs" and "Monday" as other things, "at least 18" as 18, and no unit or base."""
    if gold is None or not gold.exact:
        return right
    if gold.value is not None and (said is None or not said.exact):
        return False
    if said is not None and other_unit(gold, said) and (None in (gold.value, said.value) or gold.value == said.value):
        return False
    if said is None:
        return right
    told = None not in (gold.value, said.value) or (gold.value is None and gold.text == said.text)
    return right or ((told or (is_interval(gold) and is_inequality(said))) and same_answer(gold, said))


def _given(answer: Any) -> str | None:
    """Return the answer of a column of its own, which may be a list of one. Raises BadRow for several."""
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    if isinstance(answer, list | dict):
        raise BadRow(f"answer is not one text or number: {answer!r:.80}")
    text = name_of(answer)
    return text and (marked_answer(text) or in_ascii(text))


def marked_answer(text: str) -> str | None:
    r"""Return what the last \boxed{...} contain, else the text after the last 'The answer is:', else None."""
    text = in_ascii(_EMPHASIS.sub(r"\1", text))
    if content := boxed_answer(text):
        return content
    found = ANSWER_IS.findall(text)
    if not found:
        return None
    formula = re.match(r"\$([^$]+)\$", found[-1].strip())  # with words behind it
    return formula[1] if formula else _SENTENCE_END.split(found[-1].strip())[0].rstrip(".").strip("$") or None
