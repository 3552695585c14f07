"""Which results of a folder count, and what they amount to. The only owner of "the newest result".

Those that are compared have in common a method per arm, a way of measuring, and one model from stage to stage.
"""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import BASE, EvaluateConfig
from ual_ray.config.experiment import ELICIT_FOLDER
from ual_ray.config.files import read_json
from ual_ray.config.names import VERSUS
from ual_ray.config.redact import redact_values
from ual_ray.errors import UserError
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import RowFiles, alphas_digest, content_digest
from ual_ray.report.findings import get_nested, judged_key
from ual_ray.report.primary import SEED_FOLDER
from ual_ray.run.metrics_log import read_metrics
from ual_ray.run.output import CONFIG_FILE
from ual_ray.run.stage_cache import DONE_FILE, STARTED_FILE, differences, newest
from ual_ray.stats.results import read_metrics as read_figures

# Inputs of a stage that differ between seeds of one method: its seed, and rows that were drawn by it.
BY_SEED = {"smooth": ("seed", "scored"), "train": ("seed", "smoothed")}
# What older versions did not record.
UNRECORDED = ("scores",)
# What is called otherwise than its input.
WORDS = {
    "spec": "maps",
    "scores": "elicitations",
    "train": "training settings",
    "model": "models to train",
    "tokens": "models to train",
    "trained": "training settings",
}
# Inputs of measuring in which all models agree that are compared.
MEASURING = {
    "evaluate": ("engine", "questions"),
    "calibrate": ("evaluate", "max_model_len", "statistics"),
    "judge": ("measuring", "benchmarks", "figures"),
}
# Of a task of lm-evaluation-harness, what changes neither its questions, whose ids are those of their content, nor the scores.
# `metadata` has the model's path.
NOT_MEASURING = ("metadata", "task_alias", "tag", "process_docs", "dataset_path", "dataset_name", "dataset_kwargs")
MEASURED = {"evaluate": "evaluated", "calibrate": "calibrated", "judge": "judged"}
AGAIN = "run the command that made them again with the configuration to report on: it does what is missing, and no more"
logger = logging.getLogger(__name__)
READ_KEYS = ("resamples", "confidence", "benchmarks")
Found = TypeVar("Found")


def inputs_of(folder: Path | None) -> dict[str, Any]:
    """Read what a stage recorded of its inputs; empty where there is nothing."""
    return get_nested(read_json(folder / STARTED_FILE) if folder else None, "inputs") or {}


def check_one_method(arm: str, stage: str, first: Path, other: Path) -> None:
    """Raise UserError for two arms of one name that differ in more than the seed: averaged over seeds, they would be one."""
    one, two = ({key: own for key, own in inputs_of(folder).items() if key not in BY_SEED[stage]} for folder in (first, other))
    for what in dict.fromkeys([*one, *two]):
        if what in UNRECORDED and not (what in one and what in two):
            continue
        if found := _told(what, one.get(what), two.get(what)):
            raise UserError(
                f"two folders hold an arm '{arm}' with different {WORDS.get(what, what)}",
                got=f"{first} there, {other} now: {found}",
                expected="runs that differ in `seed` alone",
                fix="report on runs of one configuration, or give the arms different names",
            )


def check_measuring(stage: str, folders: Iterable[tuple[str, Path]]) -> None:
    """Raise UserError where models were measured in different ways, as far as that is recorded. folders: with their models."""
    first: dict[str, tuple[str, Path, Any]] = {}
    for model, folder in folders:
        inputs = inputs_of(folder)
        for what in (key for key in MEASURING[stage] if key in inputs):
            known, place, value = first.setdefault(what, (model, folder, _without_seed(inputs[what])))
            if found := _told(what, value, _without_seed(inputs[what])):
                raise UserError(
                    f"'{known}' and '{model}' were {MEASURED[stage]} in different ways",
                    got=f"{place} there, {folder} now: {found}",
                    expected="the same questions and settings, or a difference may be one of these",
                    fix=AGAIN,
                )


def check_harness(used: Iterable[tuple[str, Path, Sequence[str]]], arms: Set[str]) -> None:
    """Raise UserError where models were given a task of lm-evaluation-harness in different ways, as far as that is recorded.

    used: models, folders, and the tasks in them that count. arms: the models that also need one engine and harness.
    """
    first: dict[tuple[str, str], tuple[str, Path, Any]] = {}
    for model, folder, tasks in used:
        inputs, content = inputs_of(folder), read_json(folder / col.HARNESS_FILE)
        own = {key: inputs[key] for key in ("engine", "lm_eval") if model in arms and key in inputs}
        for task in tasks:
            settings = get_nested(content, "configs", task)
            for what, value in (own | ({"task": _measuring_of(settings)} if settings else {})).items():
                known, place, before = first.setdefault((task, what), (model, folder, value))
                if found := _told(what, before, value):
                    raise UserError(
                        f"'{known}' and '{model}' were given {task} by lm-evaluation-harness in different ways",
                        got=f"{place} there, {folder} now: {found}",
                        expected="one task, engine and version of the harness, or a difference may be one of these",
                        fix=AGAIN,
                    )


def _measuring_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a task's settings what its scores depend on; functions without a source have their address in memory."""
    kept = {key: json.dumps(value, sort_keys=True) for key, value in settings.items() if key not in NOT_MEASURING}
    return {key: re.sub(r" at 0x[0-9a-f]+", "", value) for key, value in kept.items()}


def _told(what: str, there: Any, now: Any) -> str | None:
    """Name what differs by its keys, with both values but those that are secret; None where nothing does."""
    if there == now:
        return None
    return "; ".join(differences({what: redact_values(there)}, {what: redact_values(now)})) or f"{what}: values that are secret"


def _without_seed(value: Any) -> Any:
    """Leave out the seeds of judges: it draws the orders of pairs."""
    if isinstance(value, list):
        return [_without_seed(part) for part in value]
    return {key: own for key, own in value.items() if key != "seed"} if isinstance(value, Mapping) else value


def check_one_model(
    model: str, smoothed: Path | None, trained: Path | None, evaluated: Path | None, calibrated: Path | None
) -> None:
    """Raise UserError where the newest results of a model are not those of its newest alphas and training.

    So it is when a run with another configuration was interrupted: an arm's role and the name of its map would be those of the
    new one, and its answers those of the old one.
    """
    asked = inputs_of(evaluated)
    # A server is asked by the name of a model.
    local = asked.get("model") and asked.get("engine") and get_nested(asked, "engine", "endpoint") is None
    if smoothed and trained and (known := inputs_of(trained).get("smoothed")):
        sources = bool(get_nested(inputs_of(trained), "train", "mixture"))
        _check_same_model(model, known, alphas_digest(smoothed / col.SMOOTHED_FILE, sources=sources), trained, smoothed)
    if trained and evaluated and local and _may_be_another(trained, evaluated):
        _check_same_model(model, asked["model"], digest(model_fingerprint(str(trained / col.MODEL_FOLDER))), evaluated, trained)
    if evaluated and calibrated and local and (known := inputs_of(calibrated).get("model")):
        _check_same_model(model, digest(known), asked["model"], calibrated, evaluated)


def _check_same_model(model: str, known: str, now: str, later: Path, earlier: Path) -> None:
    if known != now:
        raise UserError(
            f"the newest results of '{model}' do not belong together, as where a run with other settings was interrupted",
            got=f"{later} was made from other content ({known}) than {earlier} has ({now})",
            fix=AGAIN,
        )


def _may_be_another(trained: Path, evaluated: Path) -> bool:
    """Tell, without reading the model, whether an evaluation may be of another training."""
    if not (trained / col.MODEL_FOLDER).is_dir():
        return False
    times = [(folder / DONE_FILE).stat().st_mtime if (folder / DONE_FILE).is_file() else 0.0 for folder in (trained, evaluated)]
    elsewhere = trained.parents[1] != evaluated.parents[1]
    return elsewhere or times[0] > times[1] or len([*trained.parent.glob(f"*/{DONE_FILE}")]) > 1


def check_base(first: Path, other: Path) -> None:
    """Raise UserError where the models before training are not one, as far as that is recorded."""
    digests = [
        RowFiles(folder / col.RESULTS_FOLDER).head(1, columns=[col.MODEL_DIGEST])[col.MODEL_DIGEST].to_pylist()
        for folder in (first, other)
    ]
    if all(digest and digest[0] for digest in digests) and digests[0] != digests[1]:
        raise UserError(
            f"two folders hold results of different models before training, which are both called '{BASE}'",
            got=f"{first}: {digests[0][0]}; {other}: {digests[1][0]} (digests of the content of the model's files)",
            expected="runs of one model",
            fix="report on the runs of each model by themselves; results of versions that recorded the times of a model's "
            "files are evaluated again by `ual run`",
        )


def is_current(judging: Path, content: Mapping[str, Any], evaluated: Mapping[str, Path | None]) -> bool:
    """Whether a judging is of the newest answers of its models, as far as these are known.

    content: of its win_rates.json. evaluated: by model, the folder of the evaluation.
    """
    inputs = inputs_of(judging)
    for side in ("candidate", "reference"):
        answers, judged = evaluated.get(str(content.get(side))), inputs.get(side)
        if answers and judged and content_digest(answers / col.RESULTS_FOLDER, [*col.JUDGED]) != judged:
            return False
    return True


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
                raise UserError(
                    f"two folders hold results of '{name}' with the training seed {seed}",
                    got=f"{known} and {folder}",
                    expected="runs that differ in `seed`, or models of different names",
                    fix="report on one of them, or evaluate one under another name (`ual evaluate --name`)",
                )
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
    """Find the newest evaluation by training seed and model."""
    folders = [file.parent for file in newest_last(root.rglob(col.FIGURES_FILE))]
    return {
        (seed_of(folder), read_figures(folder)[0]): folder
        for folder in folders
        if (folder / col.RESULTS_FOLDER).is_dir() and not (folder / col.HARNESS_FILE).is_file()
    }


def find_harness(root: Path) -> dict[int, dict[str, list[Path]]]:
    """Find the results of lm-evaluation-harness below a folder: training seed -> model -> folders, the newest last."""
    found: dict[int, dict[str, list[Path]]] = {}
    seed_of = _seeds_below(root)
    for file in newest_last(root.rglob(col.HARNESS_FILE)):
        if ((folder := file.parent) / col.RESULTS_FOLDER).is_dir():
            found.setdefault(seed_of(folder), {}).setdefault(read_figures(folder)[0], []).append(folder)
    return found


def _model_of(file: Path) -> str:
    """Name the model of HOME/calibrate/KEY/file: as HOME/evaluate names it, or as HOME is called, such as arms/ARM."""
    home = file.parents[2]
    evaluated = newest_last((home / "evaluate").rglob(col.FIGURES_FILE))
    return read_figures(evaluated[-1].parent)[0] if evaluated else home.name


def read_settings(root: Path) -> tuple[EvaluateConfig, int]:
    """Read the options of a run's intervals, its benchmarks, and its seed, from its configuration; defaults without one."""
    file = root / CONFIG_FILE
    content = (yaml.safe_load(file.read_text()) if file.is_file() else None) or {}
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
