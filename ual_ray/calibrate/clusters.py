"""Hidden states of a model's most frequent tokens: collected while it is probed, then measured and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.calibrate.clustering import MUELLER_CLASSES, Places, measures, mueller_projection, pca, scatter_ratio, thin
from ual_ray.calibrate.probed_model import States
from ual_ray.config.checksums import sums_of, write_sums
from ual_ray.config.files import write_record
from ual_ray.models.output_head import OutputHead

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
