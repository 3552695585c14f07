"""Calibration of a model's confidence in its own answers, from the `columns.RESULTS` rows of an evaluation.

Confidence is the mean token probability of the answer, exp(mean log-probability); for multiple choice, the chosen one's share
of the summed probabilities. Both come from the engine; temperature scaling recomputes the logits.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.benchmarks import make_benchmarks
from ual_ray.benchmarks.benchmark import Benchmark, Question
from ual_ray.calibrate.metrics import ANSWERS_FILE, summary
from ual_ray.calibrate.probed_model import ProbedModel, Progress, log_probabilities
from ual_ray.calibrate.rows import ProbeJob, Row, Taken, first_rows, take
from ual_ray.engines.requests import Completion, Likelihood, messages_of
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, Rendered
from ual_ray.parquet import write_table
from ual_ray.stats.metrics import ACCURACY, EXACT_MATCH_FLEXIBLE, EXACT_MATCH_MATH

# The metrics that state whether an answer is right; the first that a benchmark has is used.
VERDICTS = (EXACT_MATCH_FLEXIBLE, EXACT_MATCH_MATH, ACCURACY)
# The confidence as measured here, at temperature 1, to check that the engine saw the same tokens.
PROBED_CONFIDENCE = "probed_confidence"

ANSWERS = pa.schema(
    [
        *col.fields(col.ID, col.BENCHMARK, col.TARGET_TOKENS, col.CORRECT, col.CONFIDENCE),
        pa.field(PROBED_CONFIDENCE, pa.float64()),
        *col.fields(col.SCALED_CONFIDENCE),
    ]
)
COLUMNS = [
    *(col.ID, col.BENCHMARK, col.SOURCE, col.MESSAGES, col.ANSWER, col.CHOICES, col.REFERENCE),
    *(col.PREDICTION, col.SCORES, col.CONFIDENCE, col.GENERATED_TOKENS),
]


def probe_answers(
    job: ProbeJob, model: ProbedModel, renderer: ChatRenderer, temperature: float | None, progress: Progress
) -> dict[str, Any]:
    """Measure the confidence in the answers to every scored benchmark; write one row per answer; return the metrics.

    Per benchmark, up to calibration.max_tokens answer tokens are used.
    """
    metrics: dict[str, Any] = {}
    rows: list[Row] = []
    for name, benchmark in make_benchmarks(job.evaluate.benchmarks).items() if job.results else ():
        answered = _answered(str(job.results), name, job.evaluate.calibration.max_tokens)
        taken = take(answered, partial(render_answer, benchmark, renderer), job)
        if taken.rows:
            answers = _rescored(model, taken, temperature, progress)
            rows += answers
            metrics[name] = _metrics(answers, job.evaluate.calibration.bins) | {"dropped": taken.dropped}
    write_table(pa.Table.from_pylist(rows, schema=ANSWERS), Path(job.folder) / ANSWERS_FILE)
    return metrics


def _answered(results: str, benchmark: str, most: int) -> list[Row]:
    """Read a benchmark's rows that have an answer and a score."""
    column = pyarrow.dataset.field
    wanted = (column(col.BENCHMARK) == benchmark) & (column(col.STATUS) == col.STATUS_OK) & column(col.PREDICTION).is_valid()
    rows = first_rows(results, wanted, COLUMNS, most)
    judged = ((row, _verdict(dict(row[col.SCORES] or []))) for row in rows)
    return [{**row, col.CORRECT: verdict} for row, verdict in judged if verdict is not None]


def _verdict(scores: Mapping[str, float | None]) -> bool | None:
    return next((bool(value) for name in VERDICTS if (value := scores.get(name)) is not None), None)


def render_answer(benchmark: Benchmark, renderer: ChatRenderer, row: Row) -> list[Rendered]:
    """Render the prompt of one result row with the model's answer, or with each choice; only the answer's tokens are labels."""
    # From the request, as only that contains the few-shot examples.
    requests = benchmark.requests(Question.of_row(row))
    if row[col.CHOICES]:
        asked = [request for request in requests if isinstance(request, Likelihood)]
        assert len(asked) == len(row[col.CHOICES]), "one likelihood per choice"
        return [
            renderer.conversation(messages_of(one.conversation), last_reply_only=True, content_only=one.content_only)
            for one in asked
        ]
    last = requests[-1]
    assert isinstance(last, Completion), "what is judged was completed"
    reply = col.Message(role="assistant", content=row[col.PREDICTION])
    rendered = renderer.conversation([*messages_of(last.prompt), reply], last_reply_only=True)
    # A truncated answer has no end-of-turn token to measure.
    return [_first_targets(rendered, row[col.GENERATED_TOKENS]) if row[col.GENERATED_TOKENS] else rendered]


def _first_targets(rendered: Rendered, count: int) -> Rendered:
    targets = [position for position, label in enumerate(rendered.labels) if label != IGNORE_INDEX]
    labels = list(rendered.labels)
    for position in targets[count:]:
        labels[position] = IGNORE_INDEX
    return Rendered(rendered.input_ids, labels)


def _rescored(model: ProbedModel, taken: Taken, temperature: float | None, progress: Progress) -> list[Row]:
    temperatures = [1.0] if temperature is None else [1.0, temperature]
    values = [np.empty(taken.tokens) for _ in temperatures]
    for states in model.states(taken.flat, progress):
        log_probabilities(model.head, states, temperatures, values)
    starts = np.cumsum([0, *(len(text.positions) for text in taken.flat)])
    sums = [np.add.reduceat(each, starts[:-1]) for each in values]
    answers, first = [], 0
    for row, texts in zip(taken.rows, taken.texts, strict=True):
        mine = slice(first, first + len(texts))
        first += len(texts)
        probed, *scaled = _confidences(row, [each[mine] for each in sums], len(texts[0].positions))
        answers.append(
            {
                **{name: row[name] for name in (col.ID, col.BENCHMARK, col.CORRECT)},
                col.TARGET_TOKENS: sum(len(text.positions) for text in texts),
                # If the engine gave no confidence, use the one measured here at temperature 1.
                col.CONFIDENCE: row[col.CONFIDENCE] if row[col.CONFIDENCE] is not None else probed,
                PROBED_CONFIDENCE: probed,
                col.SCALED_CONFIDENCE: scaled[0] if scaled else None,
            }
        )
    return answers


def _confidences(row: Row, sums: Sequence[NDArray[np.float64]], tokens: int) -> list[float]:
    """The model's confidence at every temperature, in [0, 1]: the share of its choice, or its mean token probability."""
    if not row[col.CHOICES]:
        return [float(np.exp(total[0] / tokens)) for total in sums]
    # The choice the model made, even if another is likelier at another temperature.
    chosen = row[col.CHOICES].index(row[col.PREDICTION])
    shares = [np.exp(total - np.logaddexp.reduce(total)) for total in sums]
    return [float(np.clip(share[chosen], 0, 1)) for share in shares]


def _metrics(answers: Sequence[Row], bins: int) -> dict[str, Any]:
    correct = [row[col.CORRECT] for row in answers]
    scaled = [row[col.SCALED_CONFIDENCE] for row in answers]
    gaps = [abs(row[col.CONFIDENCE] - row[PROBED_CONFIDENCE]) for row in answers]
    return {
        "n": len(answers),
        "raw": summary([row[col.CONFIDENCE] for row in answers], correct, bins),
        "scaled": None if None in scaled else summary(scaled, correct, bins),
        # Mean absolute difference between the engine's confidence and the one measured here.
        "probe_difference": float(np.mean(gaps)),
    }
