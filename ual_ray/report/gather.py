"""Which results of a folder count, and what they amount to. The only owner of "the newest result"."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute
import yaml

from ual_ray import columns as col
from ual_ray.config import BASE, EvaluateConfig
from ual_ray.config.experiment import TRIALS_FILE
from ual_ray.config.files import read_json
from ual_ray.config.names import VERSUS
from ual_ray.errors import UserError
from ual_ray.parquet import content_digest
from ual_ray.report.findings import TRAIN_ROWS, Findings, get_nested, judged_key
from ual_ray.report.judged import settled
from ual_ray.report.over_seeds import average
from ual_ray.report.primary import added_seeds, decisive
from ual_ray.run.output import CONFIG_FILE
from ual_ray.run.stage_cache import DONE_FILE, STARTED_FILE, newest
from ual_ray.stats.alignment import COLUMNS, copied_seeds
from ual_ray.stats.comparison import Role, compare_models, role_of
from ual_ray.stats.metrics import measure, over_seeds
from ual_ray.stats.results import read_metrics, read_results, read_tokens

logger = logging.getLogger(__name__)

READ_KEYS = ("resamples", "confidence", "benchmarks")
Found = TypeVar("Found")
# model -> training seed -> the folder of its evaluation
BySeed = Mapping[str, Mapping[int, Path]]


@dataclass
class StageFolders:
    """The folders that hold a run's results, by model ('base' or an arm; `judged` by `judged_key`).

    `trained`, `calibrated` and `judged` are of one training seed, all of them in `..._by_seed`, which are empty in a run.
    `harness`: results of lm-evaluation-harness by training seed, the newest last.
    """

    elicited: Path | None = None
    smoothed: dict[str, Path] = field(default_factory=dict)
    trained: dict[str, Path] = field(default_factory=dict)
    trained_by_seed: dict[str, dict[int, Path]] = field(default_factory=dict)
    evaluated: dict[str, Path] = field(default_factory=dict)
    calibrated: dict[str, Path] = field(default_factory=dict)
    calibrated_by_seed: dict[str, dict[int, Path]] = field(default_factory=dict)
    judged: dict[str, Path] = field(default_factory=dict)
    judged_by_seed: dict[str, dict[int, Path]] = field(default_factory=dict)
    harness: dict[str, dict[int, list[Path]]] = field(default_factory=dict)


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


def find_results(folders: Sequence[Path]) -> tuple[dict[str, dict[int, Path]], StageFolders]:
    """Find the newest results of every model below the folders, by training seed where the folders differ in it.

    Raises UserError when there are none, and when two folders hold the same arm with the same seed.
    """
    by_seed: dict[str, dict[int, Path]] = {}
    stages, pairs = StageFolders(), dict[str, tuple[str, str]]()
    for root in folders:
        _, seed = read_settings(root)
        for name, folder in _evaluations(root).items():
            known = by_seed.setdefault(name, {}).setdefault(seed, folder)
            # The untrained model is the same everywhere; of two trained ones, one would be dropped silently.
            if name != BASE and known.resolve() != folder.resolve():
                raise UserError(
                    f"two folders hold results of '{name}' with the training seed {seed}",
                    got=f"{known} and {folder}",
                    expected="runs that differ in `seed`, or models of different names",
                    fix="report on one of them, or evaluate one under another name (`ual evaluate --name`)",
                )
        for arm in (root / "arms").glob("*/smooth"):
            if smoothed := newest_stage(arm):
                _check_same(arm.parent.name, "spec", stages.smoothed.setdefault(arm.parent.name, smoothed), smoothed)
        for arm in (root / "arms").glob("*/train"):
            if trained := newest_stage(arm):
                _check_same(arm.parent.name, "train", stages.trained.setdefault(arm.parent.name, trained), trained)
                stages.trained_by_seed.setdefault(arm.parent.name, {})[seed] = trained
        for model, found in find_harness(root, seed).items():
            for own_seed, those in found.items():
                stages.harness.setdefault(model, {}).setdefault(own_seed, []).extend(those)
        for file in newest_last(root.rglob(col.CALIBRATION_FILE)):
            model = _model_of(file)
            stages.calibrated[model] = stages.calibrated_by_seed.setdefault(model, {})[seed] = file.parent
        for file in newest_last(root.rglob(col.WIN_RATES_FILE)):
            content = json.loads(file.read_text())
            pair = _pair_of(content, pairs)
            if not is_current(file.parent, content, {name: tables.get(seed) for name, tables in by_seed.items()}):
                logger.warning("%s is of answers that are not the newest any more; it does not count", file.parent)
                continue
            stages.judged[pair] = stages.judged_by_seed.setdefault(pair, {})[seed] = file.parent
    if not by_seed and not stages.harness:
        raise UserError(
            "there are no results to report",
            got=[str(folder) for folder in folders],
            fix="give output folders of `ual run` or `ual evaluate` that finished",
        )
    names = sorted(by_seed, key=lambda name: (name != BASE, name))
    return {name: by_seed[name] for name in names}, stages


def is_current(judging: Path, content: Mapping[str, Any], evaluated: Mapping[str, Path | None]) -> bool:
    """Whether a judging is of the newest answers of its models, as far as these are known.

    content: of its win_rates.json. evaluated: by model, the folder of the evaluation.
    """
    inputs = (read_json(judging / STARTED_FILE) or {}).get("inputs") or {}
    for side in ("candidate", "reference"):
        answers, judged = evaluated.get(str(content.get(side))), inputs.get(side)
        if answers and judged and content_digest(answers / col.RESULTS_FOLDER, [*col.JUDGED]) != judged:
            return False
    return True


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


def _check_same(arm: str, what: Literal["spec", "train"], first: Path, other: Path) -> None:
    """Raise UserError for two arms of one name whose maps or trainings differ: averaged over seeds, they would be one."""
    specs = [((read_json(folder / STARTED_FILE) or {}).get("inputs") or {}).get(what) for folder in (first, other)]
    if specs[0] != specs[1]:
        raise UserError(
            f"two folders hold an arm '{arm}' with different {'maps' if what == 'spec' else 'training settings'}",
            got=f"{first}: {specs[0]}; {other}: {specs[1]}",
            expected="runs that differ in `seed` alone",
            fix="report on runs of one configuration, or give the arms different names",
        )


def _evaluations(root: Path) -> dict[str, Path]:
    files = newest_last(root.rglob(col.FIGURES_FILE))
    folders = [file.parent for file in files if (file.parent / col.RESULTS_FOLDER).is_dir()]
    return {read_metrics(folder)[0]: folder for folder in folders if not (folder / col.HARNESS_FILE).is_file()}


def find_harness(root: Path, seed: int) -> dict[str, dict[int, list[Path]]]:
    """Find the results of lm-evaluation-harness below a folder: model -> training seed -> folders, the newest last.

    The seed is that of the closest folder above with a configuration, `seed` where none has one.
    """
    found: dict[str, dict[int, list[Path]]] = {}
    for file in newest_last(root.rglob(col.HARNESS_FILE)):
        folder = file.parent
        if (folder / col.RESULTS_FOLDER).is_dir():
            above = (place for place in folder.parents if place.is_relative_to(root) and (place / CONFIG_FILE).is_file())
            home = next(above, None)
            own_seed = seed if home is None else read_settings(home)[1]
            found.setdefault(read_metrics(folder)[0], {}).setdefault(own_seed, []).append(folder)
    return found


def read_all_results(evaluated: Path | None, harness: Sequence[Path]) -> pa.Table:
    """Read a model's results (COLUMNS): those of its evaluation, and of every task of the harness the newest.

    Results of the harness on another model of the same name, such as one that was trained before, are left out.
    """
    parts = [] if evaluated is None else [evaluated]
    model, tables, seen = None, [], set[str]()
    for folder in [*parts, *reversed(harness)]:
        table = read_results(folder, [*COLUMNS, col.MODEL_DIGEST])
        digests = table[col.MODEL_DIGEST].drop_null().unique().to_pylist()
        model = model or next(iter(digests), None)
        if digests and digests != [model]:
            logger.warning("left out %s: it is about another model of the same name (%s, not %s)", folder, digests, model)
            continue
        new = pa.compute.invert(pa.compute.is_in(table[col.BENCHMARK], pa.array(sorted(seen), pa.string())))
        tables.append(table.filter(new).select(COLUMNS))
        seen |= {*table[col.BENCHMARK].unique().to_pylist()}
    return pa.concat_tables(tables)


def _model_of(file: Path) -> str:
    """Name the model of HOME/calibrate/KEY/file: as HOME/evaluate names it, or as HOME is called, such as arms/ARM."""
    home = file.parents[2]
    evaluated = newest_last((home / "evaluate").rglob(col.FIGURES_FILE))
    return read_metrics(evaluated[-1].parent)[0] if evaluated else home.name


def read_settings(root: Path) -> tuple[EvaluateConfig, int]:
    """Read the options of a run's intervals, its benchmarks, and its seed, from its configuration; defaults without one."""
    file = root / CONFIG_FILE
    content = (yaml.safe_load(file.read_text()) if file.is_file() else None) or {}
    known = {key: content.get("evaluate", {})[key] for key in READ_KEYS if key in (content.get("evaluate") or {})}
    return EvaluateConfig(**known), int(content.get("seed") or 0)


def compare_runs(folders: Sequence[Path]) -> Findings:
    """Compare the newest results of every model below the folders, an arm that was trained with several seeds as one arm.

    Raises UserError as `find_results` does.
    """
    by_seed, stages = find_results(folders)
    return make_findings(stages, *read_settings(folders[0]), folders[0], by_seed, folders)


def make_findings(
    stages: StageFolders,
    options: EvaluateConfig,
    seed: int,
    root: Path,
    by_seed: BySeed | None = None,
    runs: Sequence[Path] = (),
) -> Findings:
    """Read the results of all stages and compare the arms with their references; no text of a row is read.

    root: the folder that paths in the findings are relative to. by_seed: the evaluations of every training seed, where there
    are several. runs: folders that recorded their primary measures, by default the root.
    """
    primary, chosen_after = decisive(runs or [root])
    evaluated = by_seed or {model: {seed: folder} for model, folder in stages.evaluated.items()}
    answers, rows = _answers(evaluated, stages.harness or find_harness(root, seed))
    calibrated = _by_seed(stages.calibrated, stages.calibrated_by_seed, seed)
    tokens = {
        model: {number: read_tokens(folder) for number, folder in folders.items() if (folder / col.TOKENS_FILE).is_file()}
        for model, folders in calibrated.items()
    }
    trained = _by_seed(stages.trained, stages.trained_by_seed, seed)
    judged = _by_seed(stages.judged, stages.judged_by_seed, seed)
    copies = copied_seeds(rows, tokens)
    rows, answers, tokens = _without(copies, rows), _without(copies, answers), _without(copies, tokens)
    calibrated, trained = _without(copies, calibrated), _without(copies, trained)
    judged = {pair: _without_copies_of_sides(copies, folders) for pair, folders in judged.items()}
    found = {
        "evaluated": {model: [folder for those in by.values() for folder in those] for model, by in answers.items()},
        **{kind: {model: [folder] for model, folder in getattr(stages, kind).items()} for kind in ("calibrated", "smoothed")},
        "judged": {pair: [*by.values()] for pair, by in judged.items()},
        "trained": {arm: [*folders.values()] for arm, folders in trained.items()},
        "elicited": {"rows": [stages.elicited]} if stages.elicited else {},
    }
    done = _read_all(stages.smoothed, DONE_FILE)
    recorded = {arm: content["figures"] for arm, content in done.items()}
    roles: dict[str, Role] = {
        arm: role_of(own.get("map"), own.get("weight", "none"), own.get("loss")) for arm, own in recorded.items()
    }
    roles[BASE] = "base"
    compared = compare_models(rows, roles, tokens, options.confidence, options.resamples, seed, primary)
    findings = Findings(
        metrics={model: over_seeds([measure(table) for table in tables.values()]) for model, tables in rows.items()},
        comparisons=replace(compared, chosen_after=chosen_after),
        roles={model: role for model, role in roles.items() if model in rows},
        alphas={arm: content["figures"]["mean"] for arm, content in done.items()},
        seeds={model: len(tables) for model, tables in rows.items()},
        calibration=_over_seeds(calibrated, col.CALIBRATION_FILE, options.confidence),
        clusters=_over_seeds(calibrated, col.CLUSTERS_FILE, options.confidence),
        win_rates=_over_seeds(judged, col.WIN_RATES_FILE, options.confidence),
        trials=(read_json(root / TRIALS_FILE) or {}).get("trials", []),
        copies={model: {str(copy): seed for copy, seed in seeds.items()} for model, seeds in copies.items()},
        added_seeds=added_seeds(root),
        trainings={arm: _settings_of(next(iter(folders.values()))) for arm, folders in trained.items() if folders},
        validation={arm: [*map(_validation, folders.values())] for arm, folders in trained.items()},
        folders={
            kind: {model: [relative_to(folder, root) for folder in folders] for model, folders in by_model.items()}
            for kind, by_model in found.items()
        },
    )
    return replace(findings, comparisons=settled(findings))


def _answers(
    evaluated: BySeed, harness: Mapping[str, Mapping[int, list[Path]]]
) -> tuple[dict[str, dict[int, list[Path]]], dict[str, dict[int, pa.Table]]]:
    """Return the folders and the rows of every model's answers by training seed, the harness's tasks with the benchmarks."""
    answers: dict[str, dict[int, list[Path]]] = {}
    rows: dict[str, dict[int, pa.Table]] = {}
    for model in [*evaluated, *(name for name in harness if name not in evaluated)]:
        for number in sorted({*evaluated.get(model, {}), *harness.get(model, {})}):
            own, more = evaluated.get(model, {}).get(number), harness.get(model, {}).get(number, [])
            rows.setdefault(model, {})[number] = read_all_results(own, more)
            answers.setdefault(model, {})[number] = [*filter(None, [own]), *more]
    return answers, rows


def _without(copies: Mapping[str, Mapping[int, int]], found: Mapping[str, Mapping[int, Found]]) -> dict[str, dict[int, Found]]:
    """Leave out the training seeds that are copies of others."""
    return {
        model: {number: one for number, one in by_seed.items() if number not in copies.get(model, {})}
        for model, by_seed in found.items()
    }


def _without_copies_of_sides(copies: Mapping[str, Mapping[int, int]], judged: Mapping[int, Path]) -> dict[int, Path]:
    """Leave out the judgings of a training seed that is a copy for either side."""
    kept = {}
    for number, folder in judged.items():
        content = read_json(folder / col.WIN_RATES_FILE) or {}
        if not any(number in copies.get(str(content.get(side)), {}) for side in ("candidate", "reference")):
            kept[number] = folder
    return kept


def _by_seed(of_one: Mapping[str, Path], by_seed: BySeed, seed: int) -> BySeed:
    return by_seed or {model: {seed: folder} for model, folder in of_one.items()}


def _over_seeds(folders: BySeed, name: str, level: float) -> dict[str, dict[str, Any]]:
    found = {model: [read_json(folder / name) for folder in by_seed.values()] for model, by_seed in folders.items()}
    known = {model: [content for content in contents if content is not None] for model, contents in found.items()}
    return {model: average(contents, level) for model, contents in known.items() if contents}


def _settings_of(trained: Path) -> dict[str, Any]:
    """Read what a training was set to, and how many rows it had."""
    settings = get_nested(read_json(trained / STARTED_FILE), "inputs", "train")
    rows = get_nested(read_json(trained / DONE_FILE), "figures", TRAIN_ROWS)
    return (settings if isinstance(settings, dict) else {}) | ({} if rows is None else {TRAIN_ROWS: rows})


def _validation(trained: Path) -> list[list[float]]:
    lines = read_steps(trained / col.METRICS_FILE)
    return [[line["step"], line[col.VALIDATION_NLL]] for line in lines if line.get(col.VALIDATION_NLL) is not None]


def read_steps(path: Path) -> list[dict[str, float]]:
    """Read the training metrics; a last line that was not finished is ignored."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def _read_all(folders: Mapping[str, Path], name: str) -> dict[str, dict[str, Any]]:
    found = {model: read_json(folder / name) for model, folder in folders.items()}
    return {model: content for model, content in found.items() if content is not None}


def relative_to(folder: Path, root: Path) -> str:
    """Name a folder for a file in `root`: relative where it is inside, so that the whole may be moved."""
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
