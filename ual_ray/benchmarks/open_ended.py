"""Open-ended prompts whose answers a judge compares: files in the format of AlpacaEval, Koala or MT-Bench.

With two turns, as in MT-Bench, the second is asked after the model's own first answer; the prediction is the second answer,
and the first is kept in `extracted`.
"""

from collections.abc import Sequence

from ual_ray.benchmarks.benchmark import Benchmark, Question, Reading, completed, source_of
from ual_ray.benchmarks.math import marked_answer
from ual_ray.columns import Message, Messages
from ual_ray.data.answers import extract_strict
from ual_ray.data.formats import BadRow, Record
from ual_ray.data.known_formats import NO_INPUT
from ual_ray.data.records import is_missing
from ual_ray.engines.requests import Request, Result

# Columns that may contain another system's answer.
REFERENCES = ("output_reference", "reference", "output")


class OpenEnded(Benchmark):
    """Prompts without a gold answer; not scored here."""

    kind = "open_ended"
    version = 5
    default_max_new_tokens = 2048
    record_format = "AlpacaEval's (instruction, input), Koala's (prompt) or MT-Bench's (turns), or a conversation"

    def question(self, messages: Messages, source: str) -> Question | None:
        """Use the turns before the reply, which is the reference; rows with a gold answer belong to other benchmarks."""
        reply = messages[-1]["content"]
        if extract_strict(reply) is not None or marked_answer(reply) is not None:
            return None
        return Question(messages[:-1], source, reference=reply)

    def from_record(self, record: Record, where: str) -> Question:
        """Read AlpacaEval's format (instruction, input), Koala's (prompt), MT-Bench's (turns), or a conversation."""
        if "turns" in record:
            asked = record["turns"] if isinstance(record["turns"], list) else [record["turns"]]
        elif "prompt" in record:
            asked = [record["prompt"]]
        elif "instruction" not in record:
            return super().from_record(record, where)
        else:
            parts = [record.get("instruction"), record.get("input")]
            said = (part for part in parts if isinstance(part, str) and part and not is_missing(part))
            asked = ["\n\n".join(part for part in said if not NO_INPUT.fullmatch(part))]
        if not asked or not all(isinstance(text, str) and text.strip() and not is_missing(text) for text in asked):
            raise BadRow("no question: none of instruction, prompt and turns is text")
        reads = ["input"] if {"turns", "prompt"}.isdisjoint(record) else []
        messages = self.asked(record, [Message(role="user", content=text.strip()) for text in asked], reads)
        return Question(messages, _source(record, where), reference=_reference(record))

    def requests(self, question: Question) -> Sequence[Request]:
        """Request one greedy answer, to the first turn if there are several."""
        return [self.complete(_history(question, ()))]

    def follow_up(self, question: Question, results: Sequence[Result]) -> Sequence[Request]:
        """Request the answer to the next turn, after the answers so far."""
        if len(results) >= _rounds(question):
            return ()
        return [self.complete(_history(question, [completed([result])[0] for result in results]))]

    def read(self, question: Question, results: Sequence[Result]) -> Reading:
        """Use the last answer as the prediction; keep the others in `extracted`."""
        text, confidence = completed(results)
        earlier = {f"turn_{number}": completed([result])[0] for number, result in enumerate(results[:-1], start=1)}
        return Reading(text, earlier, {}, confidence)


def _rounds(question: Question) -> int:
    """Count the missing answers: user turns at the end without a reply."""
    replies = [at for at, message in enumerate(question.messages) if message["role"] == "assistant"]
    open_turns = question.messages[replies[-1] + 1 :] if replies else question.messages
    return sum(message["role"] == "user" for message in open_turns)


def _history(question: Question, answers: Sequence[str]) -> list[Message]:
    """Insert the answers so far after their turns, up to the next turn to answer."""
    first_open = len(question.messages) - _rounds(question)
    history = [*question.messages[:first_open]]
    for turn, answer in zip(question.messages[first_open:], [*answers, None], strict=False):
        history += [turn] if answer is None else [turn, Message(role="assistant", content=answer)]
    return history


def _reference(record: Record) -> str | None:
    for name in REFERENCES:
        value = record.get(name)
        # MT-Bench has one per turn.
        value = value[-1] if isinstance(value, list) and value else value
        if isinstance(value, str) and value and not is_missing(value):
            return value
    return None


def _source(record: Record, where: str) -> str:
    """Return the source: AlpacaEval's `dataset`, MT-Bench's `category`, or else where the record was read from."""
    named = next((record[name] for name in ("dataset", "category") if isinstance(record.get(name), str)), where)
    return source_of(record, named)
