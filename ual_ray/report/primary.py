"""The primary measures of a run: recorded before its first results, and compared with what the configuration names later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ual_ray import columns as col
from ual_ray.config import Config, EvaluateConfig
from ual_ray.config.files import read_json, write_json
from ual_ray.run.output import CONFIG_FILE
from ual_ray.stats.comparison import UNRECORDED, described

PRIMARY_FILE = "primary.json"
CONFIDENCE, SEEDS = "confidence", "seeds"
SEED_FOLDER = "seed-"
# Results of trained models, below the folder of a run or of an experiment's scenario.
RESULTS = (f"arms/*/evaluate/*/{col.FIGURES_FILE}", f"{SEED_FOLDER}*/arms/*/evaluate/*/{col.FIGURES_FILE}")


def record(config: Config, root: Path) -> dict[str, Any]:
    """Write the primary measures with their digest, the level and the seeds to `root`/primary.json; return what it has.

    Where there are results, it stays as it is.
    """
    file = root / PRIMARY_FILE
    if any(next(root.glob(pattern), None) for pattern in RESULTS):
        return read_json(file) or described(UNRECORDED)
    root.mkdir(parents=True, exist_ok=True)
    recorded = described(config.primary_measures()) | {CONFIDENCE: config.evaluate.confidence}
    recorded[SEEDS] = [*config.experiment.seeds]
    write_json(file, recorded)
    return recorded


def decisive(roots: Sequence[Path]) -> tuple[tuple[str, ...], bool]:
    """Return the measures that decide a report on these folders, and whether they were chosen after the results.

    They are those that the first folder's configuration names, else those that were recorded. Where another folder recorded
    others, or a record was changed, they were chosen after the results, and so where evaluate.confidence is not the recorded
    one. Folders without a record are of versions that knew one primary measure, those without a level did not record it.
    """
    records = [read_json(root / PRIMARY_FILE) or described(UNRECORDED) for root in roots]
    file = roots[0] / CONFIG_FILE
    content = (yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None) or {}
    level = (content.get("evaluate") or {}).get(CONFIDENCE, EvaluateConfig().confidence)
    measures = tuple((content.get("report") or {}).get("primary") or records[0].get("measures") or UNRECORDED)
    wanted = described(measures) | {CONFIDENCE: level}
    known = [{CONFIDENCE: level} | {key: value for key, value in found.items() if key != SEEDS} for found in records]
    return measures, any(found != wanted for found in known)


def added_seeds(root: Path) -> list[int]:
    """List the training seeds of an experiment's scenario that were not planned before its first results."""
    planned = (read_json(root / PRIMARY_FILE) or {}).get(SEEDS)
    names = (folder.name.removeprefix(SEED_FOLDER) for folder in root.glob(f"{SEED_FOLDER}*") if folder.is_dir())
    trained = {int(name) for name in names if name.isdecimal()}
    return [] if planned is None else sorted(trained - {*planned})
