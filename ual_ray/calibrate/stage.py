"""Calibration of one model's probabilities, and clustering of its hidden states: rows and result rows in, metrics out.

The temperature and the adjustment are fitted on the validation rows, everything else is measured on the test rows. Both are
sorted by id, so that models are compared on the same tokens.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.calibrate.adjustment import Adjustment
from ual_ray.calibrate.answers import probe_answers
from ual_ray.calibrate.clustering import (
    MUELLER_CLASSES,
    Places,
    choose_classes,
    measures,
    mueller_projection,
    pca,
    scatter_ratio,
    thin,
)
from ual_ray.calibrate.metrics import token_summary
from ual_ray.calibrate.probed_model import (
    ProbedModel,
    Progress,
    States,
    TokenStatistics,
    adjustment_of,
    measure,
    nll_at,
    temperature_of,
)
from ual_ray.calibrate.rows import ProbeJob, Taken, split_rows
from ual_ray.config.files import sums_of, write_record, write_sums
from ual_ray.errors import UserError
from ual_ray.models.chat import ChatRenderer
from ual_ray.models.output_head import OutputHead
from ual_ray.models.resolve import resolve_model
from ual_ray.parquet import write_table
from ual_ray.run.memory import peak_memory

# Maximum numbers of points in a plot and of feature rows written to disk.
MOST_POINTS = 1500

Features = NDArray[np.float32]


class Clusters:
    """States at chosen positions: `classes[c]` is a token and its positions, the most frequent token first."""

    def __init__(self, classes: Sequence[tuple[int, Places]], texts: Sequence[str], places: int, norm: str | None) -> None:
        """Take the classes of `choose_classes`, their texts, the total number of positions, and the final norm's name."""
        self._texts = list(texts)
        self._tokens = [token for token, _ in classes]
        self._norm = norm
        chosen = np.concatenate([positions for _, positions in classes])
        self._classes = np.repeat(np.arange(len(classes)), [len(positions) for _, positions in classes])
        # Row of each position's state in the collected features; -1 = not collected.
        self._slots = np.full(places, -1)
        self._slots[chosen] = np.arange(len(chosen))
        self._features: dict[str, Features] = {}

    def take(self, states: States) -> None:
        """Keep the chosen states of a batch."""
        slots = self._slots[states.places]
        rows = torch.from_numpy(np.flatnonzero(slots >= 0))
        if not len(rows):
            return
        for name, values in (("after_norm", states.after), ("before_norm", states.before)):
            if values is not None:
                kept = values[rows.to(values.device)].float().cpu().numpy()
                room = self._features.setdefault(name, np.empty((len(self._classes), kept.shape[1]), dtype=np.float32))
                room[slots[slots >= 0]] = kept

    def write(self, folder: Path, head: OutputHead) -> dict[str, Any]:
        """Measure how the states cluster; write the metrics and the points of the plots, and return the metrics.

        Measures are None with too few classes, and those before the norm also when no norm was found.
        """
        counts = np.bincount(self._classes).tolist()
        after = self._features["after_norm"]
        kept = thin(len(after), MOST_POINTS)
        arrays: dict[str, Any] = {
            "texts": np.array(self._texts),
            "classes": self._classes[kept],
            **{name: features[kept] for name, features in self._features.items()},
            "pca": pca(after)[kept],
        }
        projected = self._project(head, after)
        metrics = {
            "final_norm": self._norm,
            "tokens": [
                {"id": token, "text": text, "positions": count}
                for token, text, count in zip(self._tokens, self._texts, counts, strict=True)
            ],
            **{
                name: measures(self._features[name], self._classes)
                if len(self._tokens) > 1 and name in self._features
                else None
                for name in ("before_norm", "after_norm")
            },
            "mueller": projected and {"tokens": self._texts[:MUELLER_CLASSES], "scatter_ratio": projected[2]},
        }
        if projected is not None:
            points, templates, _ = projected
            few = thin(len(points), MOST_POINTS)
            arrays |= {"mueller": points[few], "mueller_classes": self._classes[few], "mueller_templates": templates}
        np.savez_compressed(points_file := folder / col.CLUSTER_POINTS_FILE, **arrays)
        write_sums(folder, sums_of([points_file]))
        write_record(folder / col.CLUSTERS_FILE, metrics, allow_nan=False)
        return metrics

    def _project(self, head: OutputHead, after: Features) -> tuple[NDArray[Any], NDArray[Any], float] | None:
        """Project the states of the three most frequent tokens; None with fewer tokens."""
        if len(self._tokens) < MUELLER_CLASSES:
            return None
        rows = self._classes < MUELLER_CLASSES
        templates = head.weight.detach()[self._tokens[:MUELLER_CLASSES]].float().cpu().numpy()
        points = mueller_projection(after[rows], templates)
        return points, mueller_projection(templates, templates), scatter_ratio(points, self._classes[rows])


def probe(job: ProbeJob, progress: Progress = lambda tokens: None) -> dict[str, Any]:
    """Measure one model; write token and answer rows, metrics and clusters to the job's folder; return the metrics.

    `progress` gets the number of tokens of every batch. Without a usable validation row, the temperature and all scaled
    and adjusted metrics are None: it is never fitted on test rows. Raises UserError when no test row can be measured.
    """
    started, folder = time.monotonic(), Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, tokenizer = _tokenizer(job)
    renderer = ChatRenderer(tokenizer)
    validation, test = split_rows(job, renderer, col.VALIDATION), _measurable(job, renderer, col.TEST)
    model = ProbedModel(path, job.evaluate.dtype, job.device, job.trust_remote_code)
    start_seconds = time.monotonic() - started
    temperature, adjustment = _fit(model, validation, progress) or (None, None)
    clusters = _clusters(job, model, test, tokenizer)
    fitted = {"scaled": Adjustment(temperature), "adjusted": adjustment} if temperature and adjustment else {}
    tokens = _tokens(job, model, test, fitted, clusters, progress)
    metrics = {
        "temperature": temperature,
        "adjustment": asdict(adjustment) if adjustment else None,
        "temperature_note": None if temperature else "no validation row could be measured, so no temperature was fitted",
        "rows": {col.VALIDATION: validation.as_dict(), col.TEST: test.as_dict()},
        "token": tokens,
        "answer": probe_answers(job, model, renderer, temperature, progress),
        "clusters": clusters.write(folder, model.head) if clusters else None,
        "dtype": model.dtype,
        "device": job.device,
        "peak_memory_gib": peak_memory(model.device),
        "start_seconds": start_seconds,
        "seconds": time.monotonic() - started,
    }
    write_record(folder / col.CALIBRATION_FILE, metrics, allow_nan=False)
    return metrics


def probe_validation(job: ProbeJob, progress: Progress = lambda tokens: None) -> dict[str, Any]:
    """Measure one model on validation rows alone: `scaled_nll` in nats per token at the `temperature` fitted to them.

    Raises UserError when no validation row can be measured.
    """
    path, tokenizer = _tokenizer(job)
    validation = _measurable(job, ChatRenderer(tokenizer), col.VALIDATION)
    model = ProbedModel(path, job.evaluate.dtype, job.device, job.trust_remote_code)
    hidden, labels = _validation_states(model, validation, progress)
    temperature = temperature_of(model.head, hidden, labels)
    return {
        "scaled_nll": nll_at(model.head, hidden, labels, temperature),
        "temperature": temperature,
        "tokens": validation.tokens,
    }


def _tokenizer(job: ProbeJob) -> tuple[str, Any]:
    """Find the job's model; return its path and its tokenizer."""
    from transformers import AutoTokenizer

    path = resolve_model(job.model)
    return path, AutoTokenizer.from_pretrained(path, trust_remote_code=job.trust_remote_code)


def _measurable(job: ProbeJob, renderer: ChatRenderer, split: str) -> Taken:
    """Take the rows of a split; raise UserError where none can be measured."""
    taken = split_rows(job, renderer, split)
    if not taken.rows:
        raise UserError(
            f"{job.rows} holds no row of the split '{split}' whose tokens can be measured",
            got=taken.dropped or None,
            fix=f"raise engine.max_model_len, or data.{split}_share",
        )
    return taken


def _fit(model: ProbedModel, validation: Taken, progress: Progress) -> tuple[float, Adjustment] | None:
    """Fit a temperature, alone and with a floor."""
    if not validation.rows:
        return None
    hidden, labels = _validation_states(model, validation, progress)
    temperature = temperature_of(model.head, hidden, labels)
    return temperature, adjustment_of(model.head, hidden, labels, temperature)


def _validation_states(model: ProbedModel, validation: Taken, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states [n, H] and labels [n] of all validation tokens, which are kept in memory."""
    hidden = torch.empty(0)
    labels = torch.empty(validation.tokens, dtype=torch.int64)
    for states in model.states(validation.flat, progress):
        if not len(hidden):
            hidden = states.after.new_empty(validation.tokens, states.after.shape[1])
        hidden[torch.from_numpy(states.places)] = states.after
        labels[torch.from_numpy(states.places)] = states.labels.cpu()
    return hidden, labels


def _tokens(
    job: ProbeJob,
    model: ProbedModel,
    test: Taken,
    fitted: Mapping[str, Adjustment],
    clusters: Clusters | None,
    progress: Progress,
) -> dict[str, Any]:
    """Measure the test tokens, raw and under what was `fitted`; write a row per token, pass their states to the clusters."""
    adjustments = {"raw": Adjustment(), **fitted}
    measured = {name: TokenStatistics.empty(test.tokens) for name in adjustments}
    for states in model.states(test.flat, progress):
        measure(model.head, states, [*adjustments.values()], [*measured.values()])
        if clusters is not None:
            clusters.take(states)
    raw = measured["raw"]
    counts = [len(text.positions) for text in test.flat]
    ids = np.repeat([row[col.ID] for row in test.rows], counts).tolist()
    columns = {
        col.ID: ids,
        col.SOURCE: np.repeat(np.array([row[col.SOURCE] for row in test.rows], dtype=object), counts).tolist(),
        col.POSITION: np.concatenate([text.positions for text in test.flat]),
        col.VOCABULARY_ID: np.concatenate([text.labels for text in test.flat]),
        **{col.NLL: raw.nll, col.CONFIDENCE: raw.confidence, col.CORRECT: raw.correct, col.BRIER: raw.brier},
    }
    for name in fitted:
        values = measured[name]
        columns |= {f"{name}_nll": values.nll, f"{name}_confidence": values.confidence, f"{name}_brier": values.brier}
    missing = [None] * len(ids)
    arrays = [pa.array(columns.get(field.name, missing), field.type, safe=False) for field in col.TOKEN_STATISTICS]
    write_table(pa.Table.from_arrays(arrays, schema=col.TOKEN_STATISTICS), Path(job.folder) / col.TOKENS_FILE)

    def summed(values: TokenStatistics) -> dict[str, Any]:
        bins, resamples = job.evaluate.calibration.bins, job.evaluate.resamples
        return token_summary(ids, values.nll, values.confidence, values.correct, values.brier, bins, resamples)

    return {"scaled": None, "adjusted": None, **{name: summed(values) for name, values in measured.items()}}


def _clusters(job: ProbeJob, model: ProbedModel, test: Taken, tokenizer: Any) -> Clusters | None:
    """Choose the tokens whose states are kept, from the data alone: the same for every model with the same tokenizer."""
    settings = job.evaluate.clustering
    labels = np.concatenate([text.labels for text in test.flat])
    chosen = choose_classes(labels, settings.tokens, settings.positions) if settings.tokens else []
    texts = [tokenizer.decode([token]) for token, _ in chosen]
    return Clusters(chosen, texts, len(labels), model.norm) if chosen else None
