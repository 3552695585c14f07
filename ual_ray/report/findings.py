"""The results of a run, from the folders of its stages: everything that tables, plots and the page show. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ual_ray.config.evaluate import WIN_RATE
from ual_ray.config.names import VERSUS
from ual_ray.errors import UserError
from ual_ray.stats.comparison import PRIMARY, UNRECORDED, Comparisons, Role
from ual_ray.stats.metrics import MetricValue, metric_of

REPORT_FOLDER = "report"
FINDINGS_FILE = "findings.json"
COMPARISON_FILE = "comparison.json"
# Raise it when a verdict on the same results may change, or the form of the file does: older files are not read.
FINDINGS_VERSION = 6
# Of a training: the number of rows that it trained on.
TRAIN_ROWS = "train_rows"
WITHOUT_TRAINING = "There is no training of it here, so both are one model, which counts once"
# kind of result ("evaluated", "calibrated", "judged") -> model -> the folders that hold its rows, one per training seed.
Folders = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Findings:
    """Results by model ('base' or an arm); a part that was not measured has no entry.

    `seeds` counts the training seeds behind a model's metrics; calibration, clusters and win rates are means over them, in the
    form in which the stages wrote them. `alphas` are means per row, `token_alphas` per token as it counts in the loss.
    `follows`: rank correlations of an arm's alphas with the uncertainty, as means over training seeds.
    `validation` holds a curve per training seed, of [step, unsmoothed validation NLL]. `roles` has no entry for a model whose
    map was not recorded, and one for arms that were dropped after their results. `trials` are the entries of
    learning_rates.json. `copies`: by model, training seeds that were left out, with the one whose results they have.
    `trainings`: settings of each arm's training, and the number of its rows, as far as recorded. `added_seeds`: training
    seeds of an experiment that do not count, as they were not planned before their results. `planned_seeds`: how many were,
    0 where that was not recorded. `earlier`: by arm, how many trainings before the one that counts answered the same questions.
    """

    metrics: dict[str, list[MetricValue]]
    comparisons: Comparisons
    roles: dict[str, Role] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    token_alphas: dict[str, float] = field(default_factory=dict)
    follows: dict[str, float] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    win_rates: dict[str, dict[str, Any]] = field(default_factory=dict)
    folders: Folders = field(default_factory=dict)
    validation: dict[str, list[list[list[float]]]] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    copies: dict[str, dict[str, int]] = field(default_factory=dict)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)
    added_seeds: list[int] = field(default_factory=list)
    planned_seeds: int = 0
    earlier: dict[str, int] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order they were given."""
        return tuple(self.metrics)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: [entry.as_dict() for entry in found] for name, found in self.metrics.items()}
        others = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("metrics", "comparisons")}
        return {"version": FINDINGS_VERSION, "figures": plain, "comparisons": self.comparisons.as_dict(), **others}

    def with_role(self, role: Role) -> list[str]:
        """Name the models of a role."""
        return [model for model in self.models if self.roles.get(model) == role]

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Findings:
        """Read what `as_dict` wrote. Raises UserError for what another version wrote, whose verdicts may be others."""
        if (version := content.get("version", 1)) != FINDINGS_VERSION:
            raise UserError(
                f"{FINDINGS_FILE} is of another version of ual, whose verdicts on the same results may differ",
                got=f"version {version}",
                expected=f"version {FINDINGS_VERSION}",
                fix="write the report again: `ual report RUN --out RUN/report`, or the command that made the run",
            )
        metrics = {name: [MetricValue(**entry) for entry in found] for name, found in content["figures"].items()}
        others = {key: value for key, value in content.items() if key not in ("version", "figures", "comparisons")}
        return Findings(metrics, Comparisons.from_dict(content["comparisons"]), **others)


def judged_key(candidate: str, reference: str) -> str:
    """Name the judging of a candidate's answers against those of a reference."""
    return f"{candidate}-{VERSUS}-{reference}"


def without_primary(findings: Findings) -> str | None:
    """State why there is no primary comparison and what to set; None where there is one, or nothing was compared."""
    entries, measures = findings.comparisons.entries, findings.comparisons.primary
    if not entries or any(entry.primary for entry in entries) or (WIN_RATE in measures and findings.win_rates):
        return None
    needed = f"{metric_of(PRIMARY[1]).label}, needs the calibration of an arm and of its reference; set "
    needed += "evaluate.calibration.enabled=true and data.validation_share above 0"
    return f"there is no primary comparison: {needed}" if measures == UNRECORDED else f"nothing has {' or '.join(measures)}"


def regime_of(findings: Findings) -> str | None:
    """State whether the arm without smoothing had begun to overfit, which decides what smoothing can be expected to do.

    All training seeds count that were validated twice or more. None where there is no such arm, or no such seed.
    """
    for arm in findings.with_role("sft"):
        if curves := [curve for curve in findings.validation.get(arm, []) if len(curve) >= 2]:
            return _regime(arm, curves)
    return None


def _regime(arm: str, curves: Sequence[Sequence[Sequence[float]]]) -> str:
    """Word the regime of an arm: its validation NLL where it was lowest, and at the last step, as means over seeds."""
    lowest = [min(curve, key=lambda point: (point[1], point[0])) for curve in curves]
    last = [curve[-1] for curve in curves]
    overfitted = sum(low[0] != end[0] for low, end in zip(lowest, last, strict=True))
    seeds = f"{len(curves)} training seeds" if len(curves) > 1 else ""
    before = "Until then, smoothing costs raw NLL and has little to improve."
    if not overfitted:
        where = f" in any of {seeds}" if seeds else ""
        return (
            f"{arm} had not begun to overfit{where}: its validation NLL was lowest at the last step ({_steps(last)}). {before}"
        )
    where, means = (f" in {overfitted} of {seeds}", ", means over the seeds") if seeds else ("", "")
    text = (
        f"{arm} overfitted{where}: its validation NLL was lowest at step {_steps(lowest)} ({_mean_nll(lowest):.3f}) and "
        f"{_mean_nll(last):.3f} at the last step ({_steps(last)}){means}."
    )
    return text if overfitted == len(curves) else f"{text} {before}"


def _steps(points: Sequence[Sequence[float]]) -> str:
    """Write the steps of points, one of every seed: the one step, or the smallest and the largest."""
    first, last = min(point[0] for point in points), max(point[0] for point in points)
    return f"{first:.0f}" if first == last else f"{first:.0f} to {last:.0f}"


def _mean_nll(points: Sequence[Sequence[float]]) -> float:
    return sum(point[1] for point in points) / len(points)


def tried_before(findings: Findings) -> list[str]:
    """State which arms were trained before and answered the same questions, as where their settings were changed after that."""
    if not findings.earlier:
        return []
    listed = ", ".join(f"{arm} ({count})" for arm, count in findings.earlier.items())
    return [
        f"Earlier trainings of these arms answered the same questions: {listed}. Where their settings were others, they do not "
        "count in the correction, and who changes settings until an arm is better finds it by chance more often than the level "
        "states. Use a new output folder, with other test rows, once the settings are fixed."
    ]


def at_an_end(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """State whose learning rate is the smallest or the largest that was tried: a better one may lie beyond."""
    found = []
    for arm in dict.fromkeys(trial["arm"] for trial in trials):
        rates = {trial["learning_rate"]: trial["chosen"] for trial in trials if trial["arm"] == arm}
        ends = {min(rates): "smallest", max(rates): "largest"} if len(rates) > 1 else {}
        found += [f"{arm} {rate:g}, the {end}" for rate, end in ends.items() if rates[rate]]
    if not found:
        return []
    return [
        f"The chosen learning rate is at an end of those that were tried: {'; '.join(found)}. A better one may lie beyond, so "
        "such an arm may be below its best: add rates there to experiment.learning_rates."
    ]


def copied(findings: Findings) -> list[str]:
    """State which training seeds do not count, as all of their likelihoods are those of another one."""
    return [
        f"{model}: the training seed {copy} has the likelihoods of the seed {seed}, in every question of all benchmarks that "
        f"both have. {'It is a copy of one training and does not count' if model in findings.trainings else WITHOUT_TRAINING}."
        for model, seeds in findings.copies.items()
        for copy, seed in seeds.items()
    ]


def get_nested(content: Mapping[str, Any] | None, *keys: str) -> Any:
    """Look a value up in nested mappings; None where any of them is missing."""
    for key in keys:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content
