"""The rows on which a model is probed: sorted by id, rendered, up to calibration.max_tokens tokens."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.dataset

from ual_ray import columns as col
from ual_ray.calibrate.probed_model import Text
from ual_ray.config import EvaluateConfig
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, Rendered
from ual_ray.parquet import RowFiles

# Reasons for leaving a row out.
NOT_RENDERABLE = "not_renderable"
OVERLONG = "overlong"
NO_TARGET = "no_target"

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Render = Callable[[Row], Sequence[Rendered]]


@dataclass(frozen=True)
class ProbeJob:
    """The inputs of one model's calibration.

    rows: canonical rows of all splits. results: `columns.RESULTS` rows of this model, None = no answers are measured.
    device: "cpu" or "cuda".
    """

    model: str
    rows: str
    results: str | None
    folder: str
    evaluate: EvaluateConfig
    max_model_len: int
    trust_remote_code: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Taken:
    """Rows with their rendered texts (one, or one per choice), and the number of rows left out, by reason."""

    rows: list[Row]
    texts: list[list[Text]]
    dropped: dict[str, int]

    @property
    def flat(self) -> list[Text]:
        """The texts of all rows, concatenated."""
        return [text for texts in self.texts for text in texts]

    @property
    def tokens(self) -> int:
        """Number of label tokens."""
        return sum(len(text.positions) for text in self.flat)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serializable counts."""
        return {"rows": len(self.rows), "tokens": self.tokens, "dropped": self.dropped}


def split_rows(job: ProbeJob, renderer: ChatRenderer, split: str) -> Taken:
    """Read and render rows of one split of `job.rows`; every assistant turn is a label, as in training."""
    wanted = pyarrow.dataset.field(col.SPLIT) == split
    rows = first_rows(job.rows, wanted, [col.ID, col.SOURCE, col.MESSAGES], job.evaluate.calibration.max_tokens)
    return take(rows, lambda row: renderer.sequences(row[col.MESSAGES]), job)


def first_rows(path: str, wanted: pyarrow.dataset.Expression, columns: list[str], most: int) -> list[Row]:
    """Read the first rows by id, at most one per token needed, as every row has at least one token."""
    files = RowFiles(path)
    ids = files.to_table(columns=[col.ID], filter=wanted).sort_by(col.ID)[col.ID][:most]
    chosen = files.to_table(columns=columns, filter=wanted & pyarrow.dataset.field(col.ID).isin(ids.combine_chunks()))
    return chosen.sort_by(col.ID).to_pylist()


def take(rows: Sequence[Row], render: Render, job: ProbeJob) -> Taken:
    """Render whole rows up to calibration.max_tokens label tokens, but at least one usable row."""
    taken = Taken([], [], {})
    dropped: Counter[str] = Counter()
    tokens = 0
    for row in rows:
        try:
            texts = [_text(rendered) for rendered in render(row)]
        except ValueError as error:
            dropped[NOT_RENDERABLE] += 1
            logger.info("row %s is left out: %s", row[col.ID], error)
            continue
        if any(len(text.input_ids) > job.max_model_len for text in texts):
            dropped[OVERLONG] += 1
        elif not all(len(text.positions) for text in texts):
            dropped[NO_TARGET] += 1
        else:
            tokens += sum(len(text.positions) for text in texts)
            if taken.rows and tokens > job.evaluate.calibration.max_tokens:
                break
            taken.rows.append(row)
            taken.texts.append(texts)
    taken.dropped.update(sorted(dropped.items()))
    return taken


def _text(rendered: Rendered) -> Text:
    labels = np.array(rendered.labels, dtype=np.int64)
    # No token predicts the first one.
    positions = np.flatnonzero(labels[1:] != IGNORE_INDEX) + 1
    return Text(np.array(rendered.input_ids, dtype=np.int64), positions)
