"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems with a number as answer, which is read strictly and flexibly."""

from collections.abc import Sequence

from ual_ray.benchmarks.benchmark import Benchmark, Question, Reading, completed
from ual_ray.columns import Message, Messages
from ual_ray.data.answers import extract_flexible, extract_strict, same_number
from ual_ray.engines.requests import Request, Result
from ual_ray.stats.metrics import EXACT_MATCH_FLEXIBLE, EXACT_MATCH_STRICT

EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "A baker fills 6 trays with 12 rolls each and sells 50 rolls. How many rolls are left?",
        "The baker makes 6 * 12 = 72 rolls.\nAfter selling 50 there are 72 - 50 = 22 rolls left.\n#### 22",
    ),
    (
        "Nora reads 18 pages a day. Her book has 270 pages, and she has read for 9 days. How many more days does she need?",
        "In 9 days Nora has read 9 * 18 = 162 pages.\nThere are 270 - 162 = 108 pages left.\n"
        "At 18 pages a day that takes 108 / 18 = 6 days.\n#### 6",
    ),
    (
        "A ticket for the ferry costs $14, and children pay half. What do 2 adults and 3 children pay?",
        "A child pays 14 / 2 = $7.\nThe adults pay 2 * 14 = $28.\nThe children pay 3 * 7 = $21.\n"
        "Together they pay 28 + 21 = $49.\n#### 49",
    ),
    (
        "A tank holds 1,500 litres. A pump fills 40% of it in the first hour, and 250 litres in the second. "
        "How many litres are still missing?",
        "In the first hour the pump fills 1500 * 0.4 = 600 litres.\nAfter the second hour there are 600 + 250 = 850 litres.\n"
        "So 1500 - 850 = 650 litres are missing.\n#### 650",
    ),
    (
        "Ben is 4 years older than twice Ida's age. Together they are 31 years old. How old is Ben?",
        "If Ida is x years old, Ben is 2x + 4.\nTogether they are 3x + 4 = 31, so 3x = 27 and x = 9.\n"
        "Ben is 2 * 9 + 4 = 22 years old.\n#### 22",
    ),
)


STRICT, FLEXIBLE = "strict", "flexible"


class Gsm8k(Benchmark):
    """Questions whose reference answer ends in '#### n'; with 5 shots, worked examples come before as turns of the chat."""

    kind = "gsm8k"
    version = 9
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
