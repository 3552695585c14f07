"""Pairs of answers to the same question for the judge: the candidate's, and another model's or the file's reference.

Also how long a context they need: a pair that does not fit would be missing, and long answers first. The judge's prompt is
prompts.yaml or a user's file of the same format; its hash is in every row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.columns import Message, Messages, digest
from ual_ray.config import REFERENCE_ANSWERS
from ual_ray.engines.prompt_files import load_templates
from ual_ray.engines.requests import Turns, messages_of
from ual_ray.errors import UserError
from ual_ray.models.chat import ChatRenderer
from ual_ray.parquet import RowFiles

# The verdicts: the reply shown first, and the one shown second.
FIRST, SECOND = "m", "M"
LETTERS = (FIRST, SECOND)
PLACEHOLDERS = {"comparison": {"conversation", "first", "second"}}
Row = Mapping[str, Any]
QUESTION = "question"
# The turns after two conversations diverge, as text: each model answered a follow-up to its own earlier answer.
EARLIER_CANDIDATE = "earlier_candidate"
EARLIER_REFERENCE = "earlier_reference"
# Such a question has no verdict, like one with a missing answer.
UNASKED = "asked of one side only"
# Raise it when the same answers make other pairs, or other figures of the same verdicts.
PAIRING_VERSION = 3
RESULT_COLUMNS = (col.ID, col.BENCHMARK, col.MESSAGES, col.ANSWER, col.REFERENCE, col.PREDICTION, col.EXTRACTED, col.ERROR)
# The pool's input. The id is a digest of question and texts, so that equal pairs are judged once.
PAIRS = pa.schema(
    [
        *col.fields(col.ID, col.BENCHMARK, col.MESSAGES, col.CANDIDATE, col.REFERENCE, col.TEXT_CANDIDATE, col.TEXT_REFERENCE),
        *col.fields(col.LENGTH_CANDIDATE, col.LENGTH_REFERENCE, col.CANDIDATE_FIRST, col.ERROR),
        *col.fields(QUESTION, EARLIER_CANDIDATE, EARLIER_REFERENCE),
    ]
)
# The longest prompt in tokens is among so many of the longest in characters.
LOOKED_AT = 32


@dataclass(frozen=True)
class JudgePrompts:
    """The prompt template and its version."""

    version: int
    comparison: str

    def compare(self, conversation: Messages, first: str, second: str) -> Turns:
        """Ask which of two replies to a conversation is better."""
        return (("user", self.comparison.format(conversation=as_text(conversation), first=first, second=second)),)

    @property
    def template(self) -> Turns:
        """What is asked, with {{name}} for what differs between pairs."""
        return self.compare([Message(role="user", content="{{conversation}}")], "{{first}}", "{{second}}")

    @property
    def hash(self) -> str:
        """Hash of version and wording: 16 hexadecimal digits."""
        return digest(asdict(self))


@lru_cache
def load_judge_prompts(path: str | None = None) -> JudgePrompts:
    """Read the built-in prompt, or a user's prompt file. Raises UserError for an invalid file."""
    own = resources.files("ual_ray.judge").joinpath("prompts.yaml")
    return JudgePrompts(**load_templates(own, path, "judge.templates", PLACEHOLDERS))


def as_text(messages: Sequence[Message]) -> str:
    """Format messages as text, with roles if there is more than one message."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(named(message) for message in messages)


def named(message: Message) -> str:
    """Format a message as text with its role."""
    return f"{message['role'].capitalize()}: {message['content']}"


@dataclass(frozen=True)
class AnswerSet:
    """Answers of one model: a Parquet file or folder of `columns.RESULTS`; None = the reference answers of the questions.

    `name` is its name in verdicts; None = the one in the rows.
    """

    results: Path | None
    name: str | None = None


def make_pairs(
    candidate: AnswerSet, reference: AnswerSet, seed: int, benchmarks: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Pair the open-ended answers by question, ordered by id: rows of PAIRS.

    Questions of the named benchmarks, or of those without a gold answer. A pair that lacks an answer has an ERROR, and so has a
    question that only one side was asked; a question without a reference answer in the data has no such pair. Raises UserError
    when no question has both sides.
    """
    asked = _open_ended(_results(candidate), benchmarks)
    known = {row[col.ID]: row for row in _results(reference)} if reference.results is not None else None
    candidate_name, reference_name = name_of(candidate), name_of(reference)
    both = [(row, other) for row in asked if (other := _given(row) if known is None else known.get(row[col.ID]))]
    one_sided = [] if known is None else _one_sided(asked, known, benchmarks)
    names = {col.CANDIDATE: candidate_name, col.REFERENCE: reference_name}
    pairs = [_pair(*sides, seed) | names for sides in (*both, *one_sided)]
    if not both:
        value = f"{len(asked)} open-ended answers of {candidate_name}, none with a counterpart"
        expected = "results on the same questions, or questions with a reference answer"
        fix = "evaluate both models on one benchmark of kind open_ended; its reference answers are those of a column output, "
        fix += "output_reference or reference of its file"
        what = f"no question of {candidate_name} can be compared with {reference_name}"
        raise UserError(what, got=value, expected=expected, fix=fix)
    return sorted(pairs, key=lambda pair: pair[col.ID])


def in_other_order(pair: Row) -> dict[str, Any]:
    """Copy a pair so that its answers are shown in the other order, with an id of its own."""
    return {**pair, col.ID: col.digest([pair[col.ID], "other order"]), col.CANDIDATE_FIRST: not pair[col.CANDIDATE_FIRST]}


def name_of(answers: AnswerSet) -> str:
    """Return the name of answers in verdicts: as given, as in its rows, or 'reference' for the questions' own answers."""
    if answers.name is not None:
        return answers.name
    if answers.results is None:
        return REFERENCE_ANSWERS
    names = RowFiles(answers.results).to_table(columns=[col.MODEL])[col.MODEL].unique()
    return ", ".join(sorted(filter(None, names.to_pylist()))) or answers.results.stem


def shown_first(question: str, seed: int) -> bool:
    """Draw whether the candidate's answer is shown first, seeded by the question: the same order for all candidates."""
    return int(col.digest([question, seed]), 16) % 2 == 0


def _results(answers: AnswerSet) -> list[dict[str, Any]]:
    if answers.results is None:
        raise UserError("the candidate has no answers", expected="results of `ual evaluate`, or model_outputs.json")
    table = RowFiles(answers.results)
    return table.to_table(columns=[*RESULT_COLUMNS]).to_pylist()


def _open_ended(rows: Sequence[dict[str, Any]], benchmarks: Sequence[str] | None) -> list[dict[str, Any]]:
    if benchmarks is None:
        gold = {row[col.BENCHMARK] for row in rows if row[col.ANSWER] is not None}
        answered = {row[col.BENCHMARK] for row in rows if row[col.PREDICTION] is not None}
        benchmarks = sorted(answered - gold, key=str)
    return [row for row in rows if row[col.BENCHMARK] in benchmarks]


def _one_sided(
    asked: Sequence[dict[str, Any]], known: Mapping[str, dict[str, Any]], benchmarks: Sequence[str] | None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair the questions that one side alone was asked with an answer that is missing; known: all of the reference's rows."""
    ours = {row[col.ID] for row in asked}
    # Files from elsewhere may call a benchmark otherwise: what it asked of both sides tells.
    shared = {row[col.BENCHMARK] for key, row in known.items() if key in ours}
    theirs = {row[col.ID]: row for row in _open_ended([*known.values()], benchmarks)}
    theirs |= {key: row for key, row in known.items() if row[col.BENCHMARK] in shared}
    pairs = [(row, _unasked(row)) for row in asked if row[col.ID] not in known]
    return pairs + [(_unasked(row), row) for key, row in theirs.items() if key not in ours]


def _unasked(row: Row) -> dict[str, Any]:
    """Stand in for the answer of a model to a question that only another one was asked."""
    return {**row, col.PREDICTION: None, col.EXTRACTED: None, col.ERROR: UNASKED}


def _given(row: Row) -> dict[str, Any] | None:
    return (
        None
        if row[col.REFERENCE] is None
        else {col.MESSAGES: row[col.MESSAGES], col.PREDICTION: row[col.REFERENCE], col.ERROR: None}
    )


def _pair(row: Row, other: Row, seed: int) -> dict[str, Any]:
    conversation, earlier, earlier_other = _part(_asked(row), _asked(other))
    text, other_text = row[col.PREDICTION], other[col.PREDICTION]
    missing = _missing("candidate", row) or _missing("reference", other)
    return {
        col.ID: col.digest([row[col.ID], conversation, earlier, text, earlier_other, other_text]),
        QUESTION: row[col.ID],
        col.BENCHMARK: row[col.BENCHMARK],
        col.MESSAGES: conversation,
        col.TEXT_CANDIDATE: text,
        col.TEXT_REFERENCE: other_text,
        EARLIER_CANDIDATE: earlier,
        EARLIER_REFERENCE: earlier_other,
        col.LENGTH_CANDIDATE: None if text is None else len(text),
        col.LENGTH_REFERENCE: None if other_text is None else len(other_text),
        col.CANDIDATE_FIRST: shown_first(row[col.ID], seed),
        col.ERROR: missing,
    }


def _missing(whose: str, row: Row) -> str | None:
    if row[col.ERROR] == UNASKED:
        return f"{UNASKED}: the {whose} was not"
    reason = f" ({row[col.ERROR]})" if row[col.ERROR] else ""
    return None if row[col.PREDICTION] is not None else f"no answer: the {whose} gave none{reason}"


def _asked(row: Row) -> list[col.Message]:
    """Format the conversation before the last answer, with the model's own answers to its earlier turns."""
    extracted = dict(row.get(col.EXTRACTED) or ())
    own = [extracted[name] for name in (f"turn_{number}" for number in range(1, len(extracted) + 1)) if name in extracted]
    messages = [col.Message(role=message["role"], content=message["content"]) for message in row[col.MESSAGES]]
    conversation = messages[: len(messages) - len(own) - 1]
    for turn, answer in zip(messages[len(conversation) :], [*own, None], strict=True):
        conversation += [turn] if answer is None else [turn, col.Message(role="assistant", content=answer)]
    return conversation


def _part(first: Sequence[col.Message], second: Sequence[col.Message]) -> tuple[list[col.Message], str, str]:
    """Split two conversations into their shared prefix and the rest of each, as text that precedes the last answer."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return [*first[:same]], _rest(first[same:]), _rest(second[same:])


def _rest(messages: Sequence[col.Message]) -> str:
    return "\n\n".join([*map(named, messages), "Assistant: "]) if messages else ""


def needed_context(prompts: Sequence[Turns], reply_tokens: int, renderer: ChatRenderer, *, thinking: bool = False) -> int:
    """Return the tokens of the longest prompt and of the reply to it; 0 without prompts."""
    longest = sorted(prompts, key=lambda prompt: sum(len(content) for _, content, *_ in prompt), reverse=True)[:LOOKED_AT]
    tokens = [len(renderer.prompt_ids(messages_of(prompt), thinking=thinking)) for prompt in longest]
    return max(tokens) + reply_tokens if tokens else 0


def longest_context(model: str, trust_remote_code: bool = False) -> int | None:
    """Return the context that a resolved model was made for, in tokens; None where its configuration does not tell."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    return getattr(config, "max_position_embeddings", None)
