"""Which results of a folder count, and what they amount to. The only owner of "the newest result"."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ual_ray import columns as col
from ual_ray.config import BASE, EvaluateConfig
from ual_ray.config.experiment import ELICIT_FOLDER
from ual_ray.config.files import read_json
from ual_ray.config.names import VERSUS
from ual_ray.errors import UserError
from ual_ray.report.comparable import check_base, check_measuring, check_one_method, check_one_model, inputs_of, is_current
from ual_ray.report.findings import get_nested, judged_key
from ual_ray.report.primary import SEED_FOLDER
from ual_ray.run.metrics_log import read_metrics
from ual_ray.run.output import CONFIG_FILE, recorded_config
from ual_ray.run.stage_cache import DONE_FILE, STARTED_FILE, newest
from ual_ray.stats.results import read_metrics as read_figures

logger = logging.getLogger(__name__)
READ_KEYS = ("resamples", "confidence", "benchmarks")
Found = TypeVar("Found")


@dataclass
class StageFolders:
    """The folders that hold the results of one training seed, by model ('base' or an arm; `judged` by `judged_key`).

    `harness`: results of lm-evaluation-harness, the newest last.
    """

    elicited: Path | None = None
    smoothed: dict[str, Path] = field(default_factory=dict)
    trained: dict[str, Path] = field(default_factory=dict)
    evaluated: dict[str, Path] = field(default_factory=dict)
    calibrated: dict[str, Path] = field(default_factory=dict)
    judged: dict[str, Path] = field(default_factory=dict)
    harness: dict[str, list[Path]] = field(default_factory=dict)


def newest_last(files: Iterable[Path]) -> list[Path]:
    """Order files that stages wrote, each in its stage's folder: those that a run went on with at the end, else by age.

    Copies of such files elsewhere, as MLflow keeps them, are left out.
    """
    originals = [file for file in files if (file.parent / STARTED_FILE).is_file()]
    return sorted(originals, key=lambda file: (newest(file.parents[1]) == file.parent, file.stat().st_mtime))


def newest_stage(home: Path) -> Path | None:
    """Find the finished folder of a stage: `home` itself or, of its subfolders, the newest one; None when there is none."""
    found = newest_last(file for file in (home / DONE_FILE, *home.glob(f"*/{DONE_FILE}")) if file.is_file())
    return found[-1].parent if found else None


def find_elicitation(root: Path, named: Mapping[str, Any]) -> Path | None:
    """Find the elicitation that a report is about; named: the folders that its findings name.

    Where they name none, the newest: of the folder, itself one, or next to an experiment's scenario, or to that of a seed.
    """
    if recorded := get_nested(named, "elicited", "rows"):
        return root / recorded[0]
    scenario = root.parent if root.name.startswith(SEED_FOLDER) else root
    own = newest_stage(root / ELICIT_FOLDER) or newest_stage(root)
    return own or (newest_stage(scenario.parent / ELICIT_FOLDER) if next(scenario.glob(f"{SEED_FOLDER}*"), None) else None)


def find_results(folders: Sequence[Path]) -> dict[int, StageFolders]:
    """Find the newest results of every model below the folders, by training seed: that of the closest configuration above.

    Raises UserError when there are none, when a folder has nothing finished, when two folders hold the same arm with the same
    seed, when arms of one name differ in more than the seed, when models were measured in different ways, when the newest
    results of a model are not those of its newest training, when there are several models before training, and for an
    experiment of several scenarios.
    """
    found: defaultdict[int, StageFolders] = defaultdict(StageFolders)
    pairs, first = dict[str, tuple[str, str]](), dict[tuple[str, str], Path]()
    for root in folders:
        _check_one_scenario(root)
        seed_of = _seeds_below(root)
        for (seed, name), folder in _evaluations(root, seed_of).items():
            known = found[seed].evaluated.setdefault(name, folder)
            # The untrained model is the same everywhere; of two trained ones, one would be dropped silently.
            if name != BASE and known.resolve() != folder.resolve():
                raise _twice(name, seed, known, folder)
            if name == BASE:
                check_base(first.setdefault((BASE, "evaluate"), folder), folder)
        for stage in ("smooth", "train"):
            # Of a run, of a scenario of an experiment, of an experiment of one scenario.
            for home in (
                home for place in ("", f"{SEED_FOLDER}*/", f"*/{SEED_FOLDER}*/") for home in root.glob(f"{place}arms/*/{stage}")
            ):
                if newest_one := newest_stage(home):
                    arm = home.parent.name
                    check_one_method(arm, stage, first.setdefault((arm, stage), newest_one), newest_one)
                    of_seed = found[seed_of(home)]
                    (of_seed.smoothed if stage == "smooth" else of_seed.trained).setdefault(arm, newest_one)
        for seed, own in find_harness(root).items():
            for model, those in own.items():
                found[seed].harness.setdefault(model, []).extend(those)
        for file in newest_last(root.rglob(col.CALIBRATION_FILE)):
            found[seed_of(file.parent)].calibrated[_model_of(file)] = file.parent
        for file in newest_last(root.rglob(col.WIN_RATES_FILE)):
            content, stages = read_json(file), found[seed_of(file.parent)]
            pair = _pair_of(content, pairs)
            if not is_current(file.parent, content, stages.evaluated):
                logger.warning("%s is of answers that are not the newest any more; it does not count", file.parent)
                continue
            stages.judged[pair] = file.parent
    without = [str(folder) for folder in folders if not any(folder.rglob(DONE_FILE))]
    if without or not any(stages.evaluated or stages.harness for stages in found.values()):
        raise UserError(
            "there are no results to report",
            got=without or [str(folder) for folder in folders],
            fix="give output folders of `ual run` or `ual evaluate` that finished",
        )
    _check_comparable(found)
    return {seed: replace(stages, evaluated=dict(sorted(stages.evaluated.items()))) for seed, stages in sorted(found.items())}


def _check_comparable(found: Mapping[int, StageFolders]) -> None:
    """Raise UserError where models were not measured alike, and where newest results are of another model than the newest."""
    arms = {BASE}.union(*(stages.smoothed for stages in found.values()))
    for stages in found.values():
        for model in {*stages.smoothed, BASE}:
            kinds = (stages.smoothed, stages.trained, stages.evaluated, stages.calibrated)
            check_one_model(model, *(kind.get(model) for kind in kinds))
    for kind, stage in (("evaluated", "evaluate"), ("calibrated", "calibrate"), ("judged", "judge")):
        folders = [
            one for stages in found.values() for one in getattr(stages, kind).items() if kind == "judged" or one[0] in arms
        ]
        check_measuring(stage, folders)


def _seeds_below(root: Path) -> Callable[[Path], int]:
    """Return what tells the training seed of a folder below another one; without a configuration it is 0."""

    @cache
    def seed_of(folder: Path) -> int:
        if folder == root or (folder / CONFIG_FILE).is_file():
            return read_settings(folder)[1]
        return seed_of(folder.parent)

    return seed_of


def _check_one_scenario(root: Path) -> None:
    """Raise UserError for the output folder of an experiment of several scenarios: they would be taken for one."""
    if len(scenarios := sorted({home.parent.name for home in root.glob(f"*/{SEED_FOLDER}*")})) > 1:
        raise UserError(
            f"{root} holds an experiment of several scenarios",
            got=", ".join(scenarios),
            expected="the folder of one scenario",
            fix=f"give {root / scenarios[0]}",
        )


def _pair_of(content: Mapping[str, Any], known: dict[str, tuple[str, str]]) -> str:
    """Name the pair of models of a judging. Raises UserError where another pair has that name; known: pairs by name."""
    sides = str(content.get("candidate")), str(content.get("reference"))
    pair = judged_key(*sides)
    if known.setdefault(pair, sides) != sides:
        raise UserError(
            f"two pairs of models are both called {pair}",
            got=f"{' and '.join(known[pair])}; {' and '.join(sides)}",
            fix=f"evaluate one of them under another name, without -{VERSUS}- (`ual evaluate --name`)",
        )
    return pair


def _evaluations(root: Path, seed_of: Callable[[Path], int]) -> dict[tuple[int, str], Path]:
    """Find the newest evaluation by training seed and model. Raises UserError for one of another folder by the same name."""
    found: dict[tuple[int, str], Path] = {}
    for folder in (file.parent for file in newest_last(root.rglob(col.FIGURES_FILE))):
        if (folder / col.RESULTS_FOLDER).is_dir() and not (folder / col.HARNESS_FILE).is_file():
            seed, name = seed_of(folder), read_figures(folder)[0]
            known = found.get((seed, name), folder)
            if name != BASE and known.parent != folder.parent:
                raise _twice(name, seed, known, folder)
            found[seed, name] = folder
    return found


def _twice(name: str, seed: int, known: Path, other: Path) -> UserError:
    return UserError(
        f"two folders hold results of '{name}' with the training seed {seed}",
        got=f"{known} and {other}",
        expected="runs that differ in `seed`, or models of different names",
        fix="report on one of them, or evaluate one under another name (`ual evaluate --name`)",
    )


def find_harness(root: Path) -> dict[int, dict[str, list[Path]]]:
    """Find the results of lm-evaluation-harness below a folder: training seed -> model -> folders, the newest last."""
    found: dict[int, dict[str, list[Path]]] = {}
    seed_of = _seeds_below(root)
    for file in newest_last(root.rglob(col.HARNESS_FILE)):
        if ((folder := file.parent) / col.RESULTS_FOLDER).is_dir():
            found.setdefault(seed_of(folder), {}).setdefault(read_figures(folder)[0], []).append(folder)
    return found


def _model_of(file: Path) -> str:
    """Name the model of HOME/calibrate/KEY/file: as HOME/evaluate names it, or as HOME is called, such as arms/ARM.

    HOME may have evaluations of several models; where none is recorded to be of this one, the newest names it.
    """
    home, model = file.parents[2], inputs_of(file.parent).get("model")
    evaluated = [figures.parent for figures in newest_last((home / "evaluate").rglob(col.FIGURES_FILE))]
    same = [folder for folder in evaluated if model and inputs_of(folder).get("model") == col.digest(model)]
    return read_figures((same or evaluated)[-1])[0] if evaluated else home.name


def read_settings(root: Path) -> tuple[EvaluateConfig, int]:
    """Read the options of a run's intervals, its benchmarks, and its seed, from its configuration; defaults without one."""
    content = recorded_config(root)
    known = {key: content.get("evaluate", {})[key] for key in READ_KEYS if key in (content.get("evaluate") or {})}
    return EvaluateConfig(**known), int(content.get("seed") or 0)


def read_steps(trained: Path) -> list[dict[str, float]]:
    """Read the metrics of a finished training's steps. Raises UserError where the file was damaged."""
    last = get_nested(read_json(trained / DONE_FILE), "figures", "last", "step")
    return read_metrics(trained / col.METRICS_FILE, last)


def validation_curve(steps: Iterable[Mapping[str, float]]) -> list[list[float]]:
    """List [step, unsmoothed validation NLL] of the steps that were validated."""
    return [[line["step"], line[col.VALIDATION_NLL]] for line in steps if line.get(col.VALIDATION_NLL) is not None]


def relative_to(folder: Path, root: Path) -> str:
    """Name a folder for a file in `root`: relative where it is inside, so that the whole may be moved.

    The elicitation that the scenarios of an experiment share is next to them, and moves with them.
    """
    shared = folder.is_relative_to(root.parent / ELICIT_FOLDER)
    return os.path.relpath(folder, root) if shared or folder.is_relative_to(root) else str(folder)
