"""The results of a run, from the folders of its stages: everything that tables, plots and the page show. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ual_ray.stats.comparison import PRIMARY, Comparisons, Role
from ual_ray.stats.metrics import MetricValue, metric_of

REPORT_FOLDER = "report"
FINDINGS_FILE = "findings.json"
COMPARISON_FILE = "comparison.json"
# kind of result ("evaluated", "calibrated", "judged") -> model -> the folders that hold its rows, one per training seed.
Folders = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Findings:
    """Results by model ('base' or an arm); a part that was not measured has no entry.

    `seeds` counts the training seeds behind a model's metrics; calibration, clusters and win rates are means over them, in the
    form in which the stages wrote them. `alphas` are means. `validation` holds [step, unsmoothed validation NLL] of the first
    seed's training. `roles` has no entry for a model whose map was not recorded.
    """

    metrics: dict[str, list[MetricValue]]
    comparisons: Comparisons
    roles: dict[str, Role] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    win_rates: dict[str, dict[str, Any]] = field(default_factory=dict)
    folders: Folders = field(default_factory=dict)
    validation: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order they were given."""
        return tuple(self.metrics)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: [entry.as_dict() for entry in found] for name, found in self.metrics.items()}
        others = ("roles", "alphas", "seeds", "calibration", "clusters", "win_rates", "folders", "validation")
        return {"figures": plain, "comparisons": self.comparisons.as_dict(), **{name: getattr(self, name) for name in others}}

    def with_role(self, role: Role) -> list[str]:
        """Name the models of a role."""
        return [model for model in self.models if self.roles.get(model) == role]

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Findings:
        """Read what `as_dict` wrote."""
        metrics = {name: [MetricValue(**entry) for entry in found] for name, found in content["figures"].items()}
        others = {key: value for key, value in content.items() if key not in ("figures", "comparisons")}
        return Findings(metrics, Comparisons.from_dict(content["comparisons"]), **others)


def without_primary(findings: Findings) -> str | None:
    """State why there is no primary comparison and what to set; None where there is one, or nothing was compared."""
    entries = findings.comparisons.entries
    if not entries or any(entry.primary for entry in entries):
        return None
    return (
        f"there is no primary comparison: {metric_of(PRIMARY[1]).label}, needs the calibration of an arm and of its reference; "
        "set evaluate.calibration.enabled=true and data.validation_share above 0"
    )


def regime_of(findings: Findings) -> str | None:
    """State whether the arm without smoothing had begun to overfit, which decides what smoothing can be expected to do.

    None where there is no such arm, or it was validated fewer than twice.
    """
    for arm in findings.with_role("sft"):
        curve = findings.validation.get(arm, [])
        if len(curve) < 2:
            continue
        step, lowest = min(curve, key=lambda point: (point[1], point[0]))
        last_step, last = curve[-1]
        if step == last_step:
            return (
                f"{arm} had not begun to overfit: its validation NLL was lowest at the last step ({last_step:.0f}). Until "
                "then, smoothing costs raw NLL and has little to improve."
            )
        return (
            f"{arm} overfitted: its validation NLL was lowest at step {step:.0f} ({lowest:.3f}) and {last:.3f} at the last "
            f"step ({last_step:.0f})."
        )
    return None


def get_nested(content: Mapping[str, Any] | None, *keys: str) -> Any:
    """Look a value up in nested mappings; None where any of them is missing."""
    for key in keys:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content
