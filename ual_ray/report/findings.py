"""What an evaluation found, gathered from the folders of its stages: all that the table, the plots and the page show. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ual_ray.report.comparison import Comparisons
from ual_ray.stats.metrics import Figure

REPORT_FOLDER = "report"
FINDINGS_FILE = "findings.json"
COMPARISON_FILE = "comparison.json"
# kind of result ("evaluated", "calibrated", "judged") -> model -> the folders that hold its rows, one per training seed.
Folders = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Findings:
    """Everything by model ('base' or an arm); a part that was not measured has no entry.

    `seeds` counts the training seeds behind a model's figures; calibration, clusters and win rates are those of one seed,
    as the stages wrote them.
    """

    figures: dict[str, list[Figure]]
    comparisons: Comparisons
    alphas: dict[str, float] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    win_rates: dict[str, dict[str, Any]] = field(default_factory=dict)
    folders: Folders = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order they were given."""
        return tuple(self.figures)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: [figure.as_dict() for figure in found] for name, found in self.figures.items()}
        others = ("alphas", "seeds", "calibration", "clusters", "win_rates", "folders")
        return {
            "figures": plain,
            "comparisons": self.comparisons.as_dict(),
            **{name: getattr(self, name) for name in others},
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Findings:
        """Read what `as_dict` wrote."""
        figures = {name: [Figure(**figure) for figure in found] for name, found in content["figures"].items()}
        others = {key: value for key, value in content.items() if key not in ("figures", "comparisons")}
        return Findings(figures, Comparisons.from_dict(content["comparisons"]), **others)


def read_json(path: Path) -> Any:
    """Read a JSON file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_all(folders: Mapping[str, Path], name: str) -> dict[str, dict[str, Any]]:
    """Read one file of every folder that has it, by model."""
    found = {model: read_json(folder / name) for model, folder in folders.items()}
    return {model: content for model, content in found.items() if content is not None}


def place_of(folder: Path, root: Path) -> str:
    """Name a folder for a file in `root`: relative where it lies within, so that the whole may be moved."""
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)


def within(content: Mapping[str, Any] | None, *keys: str) -> Any:
    """Look a value up in nested mappings; None where any of them is missing."""
    for key in keys:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content


@dataclass(frozen=True)
class Rate:
    """A win rate in percent with its interval (None where it was not measured)."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Judged:
    """What a judge said of one arm's answers to a benchmark ('overall' = to all): `valid` of `n` pairs have a verdict."""

    arm: str
    reference: str
    benchmark: str
    raw: Rate
    controlled: Rate
    n: int | None
    valid: int | None
    length: float | None
    reference_length: float | None


def judged_rates(win_rates: Mapping[str, Mapping[str, Any]]) -> list[Judged]:
    """Read win_rates.json of every arm: one entry per benchmark that was judged, the overall one first."""
    found = []
    for arm, content in win_rates.items():
        for benchmark, rate in (within(content, "win_rates") or {}).items():
            found.append(
                Judged(
                    arm,
                    str(content.get("reference") or "the reference"),
                    benchmark,
                    _rate(rate, "win_rate", "win_rate"),
                    _rate(rate, "length_controlled_win_rate", "length_controlled"),
                    rate.get("n"),
                    rate.get("n_valid"),
                    rate.get("mean_length_candidate"),
                    rate.get("mean_length_reference"),
                )
            )
    return found


def _rate(rate: Mapping[str, Any], name: str, interval: str) -> Rate:
    return Rate(rate.get(name), rate.get(f"{interval}_low"), rate.get(f"{interval}_high"))


def reliability_of(content: Mapping[str, Any] | None, kind: str) -> list[tuple[float, float, int]]:
    """Read a reliability diagram of tokens: (confidence, accuracy, tokens) of each bin that has any; kind: raw or scaled."""
    bins = within(content, "token", kind, "reliability") or within(content, "reliability", kind)
    columns: Sequence[Any] = [within(bins, name) or [] for name in ("confidence", "accuracy", "count")]
    return [(x, y, n) for x, y, n in zip(*columns, strict=False) if n and x is not None and y is not None]
