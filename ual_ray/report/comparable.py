"""Whether results may be compared: one method per arm, one way of measuring, and one model from stage to stage."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import BASE
from ual_ray.config.files import read_json
from ual_ray.config.redact import redact_values
from ual_ray.errors import UserError
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import RowFiles, alphas_digest, content_digest
from ual_ray.report.findings import get_nested
from ual_ray.run.stage_cache import DONE_FILE, STARTED_FILE, differences

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
