"""The rows and files passed between stages: their columns, units, ranges and directions.

Stages exchange data only through Parquet files whose columns are declared here. The direction of every uncertainty is the same:
HIGHER = MORE UNCERTAIN, in [0, 1]; a failed measurement is null, never 0 or 1.
"""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NotRequired, TypedDict

import pyarrow as pa

from ual_ray.config import ENSEMBLE

SCHEMA_VERSION = 6
ID_LENGTH = 16


class Message(TypedDict):
    """One turn of a chat: role is system, user, assistant or tool.

    extra: JSON of what else a chat template reads of the turn, or null: `reasoning_content`, `tool_calls`, `name`,
    `tool_call_id`; `weight` 0 of a reply that is not trained on; and, in the first turn, the `tools` of the conversation, and
    the `reference` answer that the elicitor is shown, which no chat template reads.
    """

    role: str
    content: str
    extra: NotRequired[str | None]


Messages = Sequence[Message]

# Reasoning at the start of a reply, and the keys under which data has it and chat templates look for it.
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
# 0 in the extra of a reply that is not trained on.
REPLY_WEIGHT = "weight"

# Columns of every row, set by the reader.
ID = "id"
SOURCE = "source"
SPLIT = "split"
# The user's own id of the row, if the data has a column of this name; else null.
GIVEN_ID = "given_id"
MESSAGES = "messages"

# Added by elicitation.
UNCERTAINTY = "uncertainty"
RESPONSE_LENGTH = "response_length"
TRUNCATED = "truncated"
STATUS = "status"
ERROR = "error"
ELICITOR = "elicitor"
PROMPT_HASH = "prompt_hash"
PROMPT_TOKENS = "prompt_tokens"
GENERATED_TOKENS = "generated_tokens"
CALLS = "calls"
# What the engine answered about a row, kept in the store of measured rows alone.
REPLIES = "replies"
# In the figures of an elicitation: the folder of this store, as seen from that of the scores.
STORE = "store"

# Added by smoothing.
ALPHA = "alpha"
# How much a row counts in the loss, 0 or above, 1 on average; the column is left out where all rows count alike.
LOSS_WEIGHT = "loss_weight"

# Read by training: one row per rendered sample.
INPUT_IDS = "input_ids"
LABELS = "labels"

# Written by evaluation.
BENCHMARK = "benchmark"
BENCHMARK_VERSION = "benchmark_version"
MODEL = "model"
MODEL_DIGEST = "model_digest"
ENGINE_DIGEST = "engine_digest"
ANSWER = "answer"
CHOICES = "choices"
REFERENCE = "reference"
PREDICTION = "prediction"
EXTRACTED = "extracted"
SCORES = "scores"
CONFIDENCE = "confidence"
NLL_SUM = "nll_sum"
TARGET_TOKENS = "target_tokens"

# Added by judging.
CANDIDATE = "candidate"
JUDGE = "judge"
PREFERENCE = "preference"
MASS = "mass"
FINISH = "finish"
CANDIDATE_FIRST = "candidate_first"
LENGTH_CANDIDATE = "length_candidate"
LENGTH_REFERENCE = "length_reference"
TEXT_CANDIDATE = "text_candidate"
TEXT_REFERENCE = "text_reference"

# Added by calibration, one row per token; `scaled_` = after temperature scaling, `adjusted_` = after removing
# temperature and smoothing floor.
POSITION = "position"
VOCABULARY_ID = "token_id"
NLL = "nll"
CORRECT = "correct"
BRIER = "brier"
SCALED_NLL = "scaled_nll"
SCALED_CONFIDENCE = "scaled_confidence"
SCALED_BRIER = "scaled_brier"
ADJUSTED_NLL = "adjusted_nll"
ADJUSTED_CONFIDENCE = "adjusted_confidence"
ADJUSTED_BRIER = "adjusted_brier"

# What a stage leaves in its folder for later stages: files, folders of Parquet files, and their metadata.
ROWS_FOLDER = "rows"
SCORED_FOLDER = "scored"
SELF_CHECK_FILE = "self_check.json"
SMOOTHED_FILE = "smoothed.parquet"
MAP_METADATA = b"ual_ray.map"
SCORED_DIGEST = "scored_digest"
# The columns that alpha depends on.
SMOOTHING_READS = (ID, SPLIT, UNCERTAINTY, SOURCE, RESPONSE_LENGTH)
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
METRICS_FILE = "metrics.jsonl"
VALIDATION_NLL = "validation_nll"
# At the mean alpha of the trained tokens: what an arm is trained for, on rows that it is not trained on.
VALIDATION_LOSS = "validation_smoothed_loss"
# Of results: what a judging depends on.
JUDGED = (ID, BENCHMARK, PREDICTION, EXTRACTED, REFERENCE)
QUESTIONS_FILE = "questions.parquet"
RESULTS_FOLDER = "results"
FIGURES_FILE = "figures.json"
# What lm-evaluation-harness returned without its samples: marks a folder whose results are those of its tasks.
HARNESS_FILE = "lm_eval.json"
CALIBRATION_FILE = "calibration.json"
TOKENS_FILE = "tokens.parquet"
CLUSTERS_FILE = "clusters.json"
CLUSTER_POINTS_FILE = "clusters.npz"
WIN_RATES_FILE = "win_rates.json"

STATUS_OK = "ok"
STATUS_QUARANTINED = "quarantined"

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)

MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())]))

# One entry per request. `request` and `check`: the two halves of its key, without seed and number of replies; `check` is null
# where the reply is of a version before it was kept; `asked_by`: the estimators it was for; `n`
# replies with seeds from `seed` on (null where nothing is sampled), their texts and finish reasons; or choices and their
# log-probabilities, or the summed NLL (both in nats) of so many tokens.
REPLIES_TYPE = pa.list_(
    pa.struct(
        [
            *[
                ("request", pa.uint64()),
                ("check", pa.uint64()),
                ("asked_by", pa.list_(pa.string())),
                ("seed", pa.int64()),
                ("n", pa.int32()),
            ],
            *[("texts", pa.list_(pa.string())), ("finish_reasons", pa.list_(pa.string()))],
            *[("choices", pa.list_(pa.string())), ("log_probabilities", pa.list_(pa.float64()))],
            *[("nll_sum", pa.float64()), ("target_tokens", pa.int64())],
        ]
    )
)

# The types of columns that are not texts.
TYPES = {
    MESSAGES: MESSAGES_TYPE,
    REPLIES: REPLIES_TYPE,
    CHOICES: pa.list_(pa.string()),
    EXTRACTED: pa.map_(pa.string(), pa.string()),
    SCORES: pa.map_(pa.string(), pa.float64()),
    **dict.fromkeys((INPUT_IDS, LABELS), pa.list_(pa.int32())),
    **dict.fromkeys((TRUNCATED, CANDIDATE_FIRST, CORRECT), pa.bool_()),
    **dict.fromkeys((POSITION, VOCABULARY_ID), pa.int32()),
    **dict.fromkeys((RESPONSE_LENGTH, PROMPT_TOKENS, GENERATED_TOKENS, CALLS, TARGET_TOKENS, BENCHMARK_VERSION), pa.int64()),
    **dict.fromkeys((LENGTH_CANDIDATE, LENGTH_REFERENCE), pa.int64()),
    **dict.fromkeys((ALPHA, LOSS_WEIGHT, UNCERTAINTY, CONFIDENCE, NLL_SUM, PREFERENCE, MASS, NLL, BRIER), pa.float64()),
    **dict.fromkeys((SCALED_NLL, SCALED_CONFIDENCE, SCALED_BRIER), pa.float64()),
    **dict.fromkeys((ADJUSTED_NLL, ADJUSTED_CONFIDENCE, ADJUSTED_BRIER), pa.float64()),
}


def fields(*names: str) -> list[pa.Field]:
    """Declare columns by name, each of the type in TYPES or else a text."""
    return [pa.field(name, TYPES.get(name, pa.string())) for name in names]


ROWS = pa.schema(fields(ID, SOURCE, SPLIT, GIVEN_ID, MESSAGES))


def uncertainty_column(estimator: str) -> str:
    """Return the column name of an estimator's uncertainty: in [0, 1], higher = more uncertain, null on failure."""
    return f"uncertainty_{estimator}"


def raw_column(estimator: str) -> str:
    """Return the column name of an estimator's raw value: in the estimator's own unit, null on failure."""
    return f"raw_{estimator}"


def retest_column(estimator: str) -> str:
    """Return the column name of an uncertainty measured a second time; null for rows measured once."""
    return f"retest_{estimator}"


def mass_column(estimator: str) -> str:
    """Return the column name of the probability of all choices together, in [0, 1]; null without log-probabilities."""
    return f"mass_{estimator}"


def finish_column(estimator: str) -> str:
    """Return the column name of why each sampled reply ended ('stop', 'length', ...); null where none was sampled."""
    return f"finish_{estimator}"


def measured_schema(estimators: Collection[str]) -> pa.Schema:
    """Columns that an engine actor adds to a row: every estimator's values, their cost, their provenance, and the replies.

    `response_length` is in characters, of all replies that are trained on; `truncated`: the elicitor did not see the whole
    pair; `calls`: number of generations requested.
    """
    values = [column(name) for name in estimators for column in (uncertainty_column, raw_column)]
    values += map(retest_column, estimators)
    added = fields(*(RESPONSE_LENGTH, TRUNCATED, STATUS, ERROR, ELICITOR, PROMPT_HASH, PROMPT_TOKENS, GENERATED_TOKENS, CALLS))
    values += map(mass_column, estimators)
    finished = [pa.field(finish_column(name), pa.list_(pa.string())) for name in estimators]
    return pa.schema([*ROWS, *(pa.field(name, pa.float64()) for name in values), *finished, *added, *fields(REPLIES)])


def scored_schema(estimators: Collection[str]) -> pa.Schema:
    """Columns of a scored row: those measured but for the replies, the ensemble's, and `uncertainty`, which smoothing reads."""
    measured = [field for field in measured_schema(estimators) if field.name != REPLIES]
    ensemble = pa.field(uncertainty_column(ENSEMBLE), pa.float64())
    return pa.schema([*measured, ensemble, *fields(UNCERTAINTY)])


# Files of rendered rows.
TOKENS_SUFFIX = ".arrow"
TOKENS = pa.schema(
    [*fields(ID, SPLIT, ALPHA, LOSS_WEIGHT, UNCERTAINTY), pa.field(TARGET_TOKENS, pa.int32()), *fields(INPUT_IDS, LABELS)]
)

# `answer` is the gold answer as text (for a choice: its index from 0), `reference` another system's answer to compare with.
QUESTIONS = pa.schema(fields(ID, BENCHMARK, BENCHMARK_VERSION, SOURCE, MESSAGES, ANSWER, CHOICES, REFERENCE))

# The id is that of the question, by which the rows of different models are paired. `scores` has one value per metric,
# `extracted` is the answer extracted from the prediction, `confidence` (in [0, 1]) how sure the model was of it.
RESULTS = pa.schema(
    fields(
        *QUESTIONS.names,
        *(MODEL, MODEL_DIGEST, PROMPT_HASH, ENGINE_DIGEST, PREDICTION, EXTRACTED, SCORES, CONFIDENCE, NLL_SUM, TARGET_TOKENS),
        *(STATUS, ERROR, PROMPT_TOKENS, GENERATED_TOKENS),
    )
)

# `preference` is in [1, 2], higher = the candidate's answer is the better one; null = no verdict. Lengths are in characters.
# `mass` is the probability of both letters together, `finish` why a sampled verdict ended.
VERDICTS = pa.schema(
    fields(
        *(ID, BENCHMARK, MESSAGES, CANDIDATE, REFERENCE, TEXT_CANDIDATE, TEXT_REFERENCE, LENGTH_CANDIDATE, LENGTH_REFERENCE),
        *(CANDIDATE_FIRST, PREFERENCE, MASS, FINISH, JUDGE, PROMPT_HASH, ENGINE_DIGEST, STATUS, ERROR),
        *(PROMPT_TOKENS, GENERATED_TOKENS),
    )
)

# One row per response token of a test row: NLL in nats, `confidence` the probability of the likeliest token, `correct` whether
# it is the label, `brier` the sum of squared differences from the label over the vocabulary, in [0, 2].
TOKEN_STATISTICS = pa.schema(
    fields(
        *(ID, SOURCE, POSITION, VOCABULARY_ID, NLL, CONFIDENCE, CORRECT, BRIER, SCALED_NLL, SCALED_CONFIDENCE, SCALED_BRIER),
        *(ADJUSTED_NLL, ADJUSTED_CONFIDENCE, ADJUSTED_BRIER),
    )
)


def canonical_json(value: object) -> str:
    """Write a JSON value so that equal values are equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def json_text(value: object) -> str:
    """Write a JSON value with the keys of its objects in their order: chat templates write tools and calls in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def digest(value: object) -> str:
    """Hash any JSON value: 16 hexadecimal digits of SHA-256 over its canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:ID_LENGTH]


def with_extra(message: Message, **extra: Any) -> Message:
    """Add to a message's extra; empty values are left out."""
    found = extra_of(message) | {key: value for key, value in extra.items() if value not in (None, "", [])}
    plain = Message(role=message["role"], content=message["content"])
    return Message(**plain, extra=json_text(dict(sorted(found.items())))) if found else plain


def extra_of(message: Message) -> dict[str, Any]:
    """Return a message's extra; empty where there is none."""
    text = message.get("extra")
    return json.loads(text) if text else {}


def reference_of(messages: Messages) -> str | None:
    """Return the reference answer to the last question of a conversation; None where there is none."""
    return extra_of(messages[0]).get(REFERENCE) if messages else None


def content_id(messages: Messages) -> str:
    """Return the id of a row's messages: the same messages have the same id on every machine."""
    return digest([[message["role"], message["content"], *filter(None, [message.get("extra")])] for message in messages])


def trained_replies(messages: Messages) -> list[int]:
    """Return the positions of the replies that are trained on: not of weight 0, and not the first turn, which has no prompt."""
    replies = (at for at, message in enumerate(messages) if message["role"] == "assistant")
    return [at for at in replies if at and extra_of(messages[at]).get(REPLY_WEIGHT, 1) != 0]


def spoken(message: Message) -> str:
    """Write a reply as text for a reader without its chat template: its content, then its tool calls as JSON."""
    calls = [canonical_json(call.get("function", call)) for call in extra_of(message).get("tool_calls", ())]
    return "\n".join(filter(None, [message["content"], *calls]))


def response_of(message: Message) -> str:
    """Write a reply as `spoken` does, but for the thought that its content starts with, which other data have apart from it."""
    text = spoken(message)
    found = THOUGHT.match(text) if message["role"] == "assistant" else None
    return text[found.end(1) + len("</think>") :].lstrip("\n") if found else text
