"""The embedded sample, the paper's "mixed scenario": open-ended rows written for this project, and generated arithmetic.

The deterministic half is made by reasoning-gym from a fixed seed: grade-school word problems (gsm_symbolic) and chains of
additions, each with a worked answer that ends in "#### n".
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Iterator
from importlib import resources

from ual_ray.columns import Message, Messages
from ual_ray.errors import UserError

OPEN_ENDED = "open_ended"
DETERMINISTIC = "deterministic"

SEED = 20240610
# A number, an operator, a number and their result, with no further operator on either side.
EQUATION = re.compile(
    r"(?<![\d.*/+-])(?<![*/+-] )(\d+(?:\.\d+)?) ?([*/+-]) ?(\d+(?:\.\d+)?) ?= ?(\d+(?:\.\d+)?)(?! ?[\d*/+%-])"
)
LONGEST_WORKED_ANSWER = 320  # characters: the demo has to fit into minutes on two CPU cores


def sample_rows() -> list[tuple[str, Messages]]:
    """List (source, messages) of the whole sample: as many deterministic rows as open-ended ones, in turn."""
    open_ended = list(open_ended_rows())
    pairs = zip(open_ended, deterministic_rows(len(open_ended)), strict=True)
    return [row for first, second in pairs for row in ((OPEN_ENDED, first), (DETERMINISTIC, second))]


def open_ended_rows() -> Iterator[Messages]:
    """Yield the open-ended rows that the package carries."""
    text = resources.files("ual_ray.data").joinpath("open_ended.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        row = json.loads(line)
        yield _pair("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"])


def deterministic_rows(count: int) -> Iterator[Messages]:
    """Yield `count` different questions with worked answers, half word problems and half chains of additions."""
    word_problems, chains = _word_problems(), _addition_chains()
    seen: set[str] = set()
    while len(seen) < count:
        question, answer = next(word_problems if len(seen) % 2 == 0 else chains)
        if question not in seen:
            seen.add(question)
            yield _pair(question, answer)


def _word_problems() -> Iterator[tuple[str, str]]:
    for item in _reasoning_gym("gsm_symbolic"):
        answer = item["metadata"]["answer_cot"]
        if len(answer) <= LONGEST_WORKED_ANSWER and ends_in(answer, item["answer"]) and equations_hold(answer):
            yield item["question"], answer


def ends_in(answer: str, number: str) -> bool:
    """Tell whether a worked answer ends in the right number."""
    return answer.rstrip().endswith(f"#### {number}")


def equations_hold(answer: str) -> bool:
    """Tell whether every 'a op b = c' of a worked answer is true: some of reasoning-gym's are cut to whole numbers."""
    operators = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    return all(
        math.isclose(operators[sign](float(left), float(right)), float(result), abs_tol=1e-6)
        for left, sign, right, result in EQUATION.findall(answer)
        if sign != "/" or float(right) != 0
    )


def _addition_chains() -> Iterator[tuple[str, str]]:
    for item in _reasoning_gym("chain_sum", min_terms=2, max_terms=4, min_digits=1, max_digits=2):
        expression = item["metadata"]["expression"]
        yield f"What is {expression}? Work it out step by step.", work_out(expression)


def work_out(expression: str) -> str:
    """Work a chain such as '4 - 1 - 7' out from left to right, one line a step, ending in '#### -4'."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {result}")
        total = result
    return "\n".join([*lines, f"#### {total}"])


def _reasoning_gym(task: str, **options: int) -> Iterator[dict]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            "data.path is 'demo', whose arithmetic needs reasoning-gym",
            fix="pip install 'ual_ray[demo]', or set data.path",
        ) from error
    yield from reasoning_gym.create_dataset(task, size=100_000, seed=SEED, **options)


def _pair(question: str, answer: str) -> Messages:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]
