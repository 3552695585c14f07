"""The contract of a benchmark: rows -> questions -> requests -> readings. Pure.

A benchmark defines how a record becomes a question, what the model is asked, how its answer is read, and which metrics of
`stats.metrics` result. Everything else is shared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ual_ray import columns as col
from ual_ray.config import BenchmarkConfig
from ual_ray.data.formats import FORMATS, BadRow, Record, columns_of, common_of, convert, rename, unread
from ual_ray.data.records import check_unicode, name_of
from ual_ray.data.turns import add_common
from ual_ray.engines.requests import Completion, CompletionResult, Request, Result, turns
from ual_ray.engines.thoughts import behind_thought
from ual_ray.models.chat import RENDERING_VERSION

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One question: `messages` is what the model is asked (for a likelihood, the whole conversation).

    `answer` is the gold answer as text (for choices, the index from 0), `reference` another system's answer.
    """

    messages: col.Messages
    source: str = ""
    answer: str | None = None
    choices: tuple[str, ...] = ()
    reference: str | None = None

    @classmethod
    def of_row(cls, row: Row) -> Question:
        """Read a row of `columns.QUESTIONS`."""
        choices = tuple(row[col.CHOICES] or ())
        return cls(row[col.MESSAGES], row[col.SOURCE], row[col.ANSWER], choices, row[col.REFERENCE])


@dataclass(frozen=True)
class Reading:
    """What is read out of a model's results: the columns that a benchmark adds to a row of `columns.RESULTS`.

    `scores` has one value per metric (None = not measurable), `confidence` is the model's, in [0, 1].
    """

    prediction: str | None = None
    extracted: Mapping[str, str | None] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    confidence: float | None = None
    nll_sum: float | None = None
    target_tokens: int | None = None


class Benchmark(ABC):
    """One configured benchmark.

    kind: its name in the registry. version: part of every question's id; increase it when the requests or the reading change.
    needs_likelihood: as of an estimator. record_format: what a file's records look like, for an error message. settings: keys
    of its section that change the requests. default_max_new_tokens: of an answer, as people use the benchmark.
    default_max_rows: of its questions, None = all. lowest_ids: fewer questions are those with the lowest ids, not the first.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[str, ...]] = ()
    needs_likelihood: ClassVar[bool] = False
    record_format: ClassVar[str] = "a conversation in any format of training data"
    settings: ClassVar[tuple[str, ...]] = ("max_new_tokens",)
    default_max_new_tokens: ClassVar[int] = 1024
    default_max_rows: ClassVar[int | None] = None
    lowest_ids: ClassVar[bool] = False

    def __init__(self, config: BenchmarkConfig | None = None) -> None:
        """Keep the settings, and fill in the length of answers and the number of questions where they are not set."""
        given = config or BenchmarkConfig()
        self.max_new_tokens = given.max_new_tokens or self.default_max_new_tokens
        self.max_rows = given.max_rows or self.default_max_rows
        self.config = given.model_copy(update={"max_new_tokens": self.max_new_tokens, "max_rows": self.max_rows})

    def check(self) -> None:  # noqa: B027 - most benchmarks need nothing
        """Raise UserError if a library that reads the answers is missing."""

    def question(self, messages: col.Messages, source: str) -> Question | None:
        """Make a question of a conversation, such as a row of the run's test split; None where it is not one."""
        return None

    @abstractmethod
    def requests(self, question: Question) -> Sequence[Request]:
        """Return the first requests about a question."""

    def follow_up(self, question: Question, results: Sequence[Result]) -> Sequence[Request]:
        """Return the next requests, given all results so far; empty when there are no more."""
        return ()

    @abstractmethod
    def read(self, question: Question, results: Sequence[Result]) -> Reading:
        """Read and score the results, in the order of the requests; none of them is a Failure."""

    def questions(self, records: Iterable[Record | BadRow], where: str) -> Iterator[Question | BadRow]:
        """Turn the records of a file into questions, or into the reason why a record has none."""
        for record in records:
            if isinstance(record, BadRow):
                yield record
                continue
            try:
                question = self.from_record(rename(record, self.config.columns), where)
                texts = [turn["content"] for turn in question.messages] + [question.source, *question.choices]
                check_unicode("the question", "\n".join([*texts, question.answer or "", question.reference or ""]))
                yield question
            except BadRow as reason:
                yield reason

    def from_record(self, record: Record, where: str) -> Question:
        """Make a question of one record of a file, its columns renamed. Raises BadRow if that is impossible."""
        format_name = next((name for name, form in FORMATS.items() if form.fits(record)), None)
        if format_name is None:
            raise BadRow(f"unknown format: columns {', '.join(columns_of([record]))}")
        ((_, messages),) = convert([record], format_name, {name: name for name in self.config.columns})
        if isinstance(messages, BadRow):
            raise messages
        self.check_unread(record, FORMATS[format_name].reads)
        question = self.question(messages, source_of(record, where))
        if question is None:
            raise BadRow(f"no question: the row has no answer that {self.kind} can read")
        return question

    def asked(self, record: Record, messages: col.Messages, reads: Collection[str] = ()) -> col.Messages:
        """Add the system message, the tools and the mapped context of a record that is in no format of the training data.

        reads: the columns that the messages are made of. Raises BadRow.
        """
        self.check_unread(record, reads)
        return add_common(record, messages, common_of(self.config.columns))

    def check_unread(self, record: Record, reads: Collection[str]) -> None:
        """Raise BadRow for a column that a question makes no sense without, and that is not read."""
        if column := unread(record, {*reads, *self.config.columns}):
            use = f"evaluate.benchmarks.*.columns={{context: {column}}} puts a text before the question"
            raise BadRow(f"a column that is not read: {column} ({use})")

    def identify(self, name: str, question: Question) -> str:
        """Return the id of a question under the benchmark's name: 16 hexadecimal digits, the same for every model."""
        # Most turns have no more than their text.
        asked = [
            [part for key in ("role", "content", "extra") if (part := turn.get(key)) is not None] for turn in question.messages
        ]
        known = [question.source, question.answer, list(question.choices), question.reference]
        return col.digest([name, self.provenance(), asked, known])

    def provenance(self) -> dict[str, Any]:
        """Return what the requests and the reading depend on, in addition to the question."""
        rendering = {"rendering": RENDERING_VERSION} if self.needs_likelihood else {}
        return {"kind": self.kind, "version": self.version} | rendering | self.config.model_dump(include=set(self.settings))

    def complete(self, messages: col.Messages) -> Completion:
        """Return the request for a greedy answer with its confidence."""
        return Completion(turns(messages), self.max_new_tokens, confidence=True)


def completed(results: Sequence[Result]) -> tuple[str, float | None]:
    """Return the text and the confidence of the last result, which is a completion; its thought is left out of the text."""
    last = results[-1]
    assert isinstance(last, CompletionResult), f"a completion was asked for, {type(last).__name__} came"
    return behind_thought(last.texts[0]), last.confidence


def source_of(record: Record, where: str) -> str:
    """Return a record's own source, or else where it is from."""
    return name_of(record.get(col.SOURCE)) or where
