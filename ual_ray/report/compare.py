"""What the results of a folder amount to: every model's metrics, and the arms against their references.

Calibration, clusters and win rates of an arm are averaged over its training seeds.
"""

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import special

from ual_ray import columns as col
from ual_ray.config import BASE, EvaluateConfig
from ual_ray.config.evaluate import WIN_RATE
from ual_ray.config.experiment import TRIALS_FILE
from ual_ray.config.files import read_json
from ual_ray.errors import UserError
from ual_ray.report.comparable import check_harness, inputs_of
from ual_ray.report.findings import TRAIN_ROWS, Findings, Folders, get_nested, judged_key
from ual_ray.report.gather import (
    StageFolders,
    find_harness,
    find_results,
    newest_stage,
    read_settings,
    read_steps,
    relative_to,
    validation_curve,
)
from ual_ray.report.judged import settled
from ual_ray.report.primary import SEED_FOLDER, decisive, measured_before, planned_seeds
from ual_ray.run.stage_cache import DONE_FILE
from ual_ray.stats.alignment import COLUMNS, LEFT_OUT, NOBODY, Absent, copied_seeds
from ual_ray.stats.comparison import Role, compare_models, pairs_of, role_of
from ual_ray.stats.metrics import measure, over_seeds
from ual_ray.stats.results import read_results, read_tokens
from ual_ray.stats.score_quality import FOLLOWS

logger = logging.getLogger(__name__)

# What stages leave a folder of for every model and training seed, apart from answers.
KINDS = ("calibrated", "smoothed", "judged", "trained")
BASE_ROLE: Role = "base"
Found = TypeVar("Found")
ERROR = "_standard_error"
LOW, HIGH = "_low", "_high"
DEVIATION, QUESTIONS = "_seed_deviation", "_question_error"


def compare_runs(folders: Sequence[Path]) -> Findings:
    """Compare the newest results of every model below the folders, an arm that was trained with several seeds as one arm.

    Raises UserError as `find_results` and `make_findings` do.
    """
    return make_findings(find_results(folders), *read_settings(folders[0]), folders[0], folders)


def make_findings(
    by_seed: Mapping[int, StageFolders], options: EvaluateConfig, seed: int, root: Path, runs: Sequence[Path] = ()
) -> Findings:
    """Read the results of all stages and compare the arms with their references; no text of a row is read.

    by_seed: the folders of every training seed; those of the model before training may stand under any of them. seed: of the
    bootstrap. root: the folder that paths in the findings are relative to. runs: folders that recorded their primary measures
    and seeds, by default the root. Raises UserError for answers by the name of an arm that nothing is known of.
    """
    primary, chosen_after = decisive(runs or [root])
    planned = planned_seeds(runs or [root])
    by_seed = _with_harness(by_seed, root)
    _check_trained(by_seed)
    by_seed, added = _planned_only(by_seed, planned)
    answers, rows, models = _answers(by_seed)
    folders: dict[str, dict[str, dict[int, Path]]] = {kind: by_model(by_seed, kind) for kind in KINDS}
    tokens = {
        model: {number: read_tokens(folder) for number, folder in own.items() if (folder / col.TOKENS_FILE).is_file()}
        for model, own in folders["calibrated"].items()
    }
    copies = copied_seeds(rows, tokens, models)
    rows, answers, tokens = _without(copies, rows), _without(copies, answers), _without(copies, tokens)
    judged = {pair: _without_copies_of_sides(copies, own) for pair, own in folders["judged"].items()}
    folders = {kind: _without(copies, own) for kind, own in folders.items()} | {"judged": judged}
    done = {arm: read_json(next(iter(own.values())) / DONE_FILE) for arm, own in folders["smoothed"].items() if own}
    roles = {arm: _role(content["figures"]) for arm, content in done.items() if content is not None} | {BASE: BASE_ROLE}
    settings = options.confidence, options.resamples, seed
    compared = compare_models(rows, roles, tokens, *settings, primary, len(planned))
    lost = {one.measure for one in compared.absent if one.reason == NOBODY} | (set() if folders["judged"] else {WIN_RATE})
    nobody_has = lost - measured_before(root, lost)
    known = (
        one if one.measure in nobody_has or one.reason != NOBODY else replace(one, reason=LEFT_OUT) for one in compared.absent
    )
    compared = replace(compared, absent=tuple(known))
    dropped = _dropped(root, roles)
    left_out = _left_out(
        root, roles, dropped, folders["judged"], [name for name in primary if name not in nobody_has] or primary
    )
    compared = replace(compared, absent=(*compared.absent, *left_out))
    findings = Findings(
        metrics={model: over_seeds([measure(table) for table in tables.values()]) for model, tables in rows.items()},
        comparisons=replace(compared, chosen_after=chosen_after),
        roles={model: role for model, role in roles.items() if model in rows} | dropped,
        alphas=_mean_figures(folders["smoothed"], "mean"),
        token_alphas=_mean_figures(folders["smoothed"], "mean_by_length"),
        follows=_mean_figures(folders["smoothed"], FOLLOWS),
        seeds={model: len(tables) for model, tables in rows.items()},
        calibration=_over_seeds(folders["calibrated"], col.CALIBRATION_FILE, options.confidence),
        clusters=_over_seeds(folders["calibrated"], col.CLUSTERS_FILE, options.confidence),
        win_rates=_over_seeds(folders["judged"], col.WIN_RATES_FILE, options.confidence),
        trials=(read_json(root / TRIALS_FILE) or {}).get("trials", []),
        copies={model: {str(copy): seed for copy, seed in seeds.items()} for model, seeds in copies.items()},
        added_seeds=added,
        planned_seeds=len(planned),
        earlier=_earlier(by_seed),
        trainings={arm: _settings_of(next(iter(own.values()))) for arm, own in folders["trained"].items() if own},
        validation={
            arm: [validation_curve(read_steps(folder)) for folder in own.values()] for arm, own in folders["trained"].items()
        },
        folders=_named(answers, folders, [stages.elicited for stages in by_seed.values() if stages.elicited][:1], root),
    )
    return replace(findings, comparisons=settled(findings))


def _dropped(root: Path, roles: Mapping[str, Role]) -> dict[str, Role]:
    """Find the arms that have results below the root and are not in the report, with their roles."""
    homes = {
        home.name: home for place in ("", f"{SEED_FOLDER}*/") for home in root.glob(f"{place}arms/*") if home.name not in roles
    }
    found: dict[str, Role] = {}
    for arm, home in sorted(homes.items()):
        smoothed = newest_stage(home / "smooth")
        recorded = get_nested(read_json(smoothed / DONE_FILE), "figures") if smoothed else None
        if recorded and newest_stage(home / "evaluate"):
            found[arm] = _role(recorded)
    return found


def _left_out(
    root: Path, roles: Mapping[str, Role], dropped: Mapping[str, Role], judged: Collection[str], measures: Sequence[str]
) -> Iterator[Absent]:
    """List the comparisons with dropped arms: who saw them may have dropped those that were not better, or not beaten.

    They count in the correction as inconclusive. measures: primary ones that models of the report have, or where they have
    none, for the win rates that do not decide, all. Win rates against a reference count where there were some.
    """
    pairs = [pair for pair in pairs_of({**roles, **dropped}) if BASE not in pair]
    for name in measures:
        for arm, other in pairs:
            gone = arm in dropped or (other in dropped and name != WIN_RATE)
            if gone or (name == WIN_RATE and _judged_before(root, arm, other, judged)):
                yield Absent(arm, other, name, LEFT_OUT)


def _earlier(by_seed: Mapping[int, StageFolders]) -> dict[str, int]:
    """Count by arm, over seeds the most, the other trainings that answered the questions of the one that counts."""
    found: dict[str, int] = {}
    for stages in by_seed.values():
        for arm in stages.smoothed.keys() & stages.evaluated.keys():
            now = inputs_of(stages.evaluated[arm])
            all_of_it = [inputs_of(file.parent) for file in stages.evaluated[arm].parent.glob(f"*/{DONE_FILE}")]
            same = {one.get("model") for one in all_of_it if one.get("questions") == now.get("questions")}
            if others := same - {now.get("model"), None}:
                found[arm] = max(found.get(arm, 0), len(others))
    return dict(sorted(found.items()))


def _judged_before(root: Path, arm: str, other: str, judged: Collection[str]) -> bool:
    """Whether two models' answers were judged against each other below the root, and count no more."""
    keys = {judged_key(arm, other), judged_key(other, arm)}
    there = (root.glob(f"{place}judge/{key}/*/{DONE_FILE}") for place in ("", f"{SEED_FOLDER}*/") for key in keys)
    return keys.isdisjoint(judged) and any(next(found, None) for found in there)


def _with_harness(by_seed: Mapping[int, StageFolders], root: Path) -> dict[int, StageFolders]:
    """Add the results of lm-evaluation-harness below the root, where there are none yet."""
    found = dict(by_seed)
    if not any(stages.harness for stages in by_seed.values()):
        for seed, own in find_harness(root).items():
            found[seed] = replace(found.get(seed, StageFolders()), harness=own)
    return found


def _check_trained(by_seed: Mapping[int, StageFolders]) -> None:
    """Raise UserError for answers by the name of an arm without its training: they would count as one more training seed."""
    arms = set[str]().union(*(stages.smoothed for stages in by_seed.values()))
    for seed, stages in by_seed.items():
        for model in sorted((arms & {*stages.evaluated, *stages.harness}) - {*stages.smoothed}):
            raise UserError(
                f"with the training seed {seed}, there is nothing of how '{model}' was trained",
                got=stages.evaluated.get(model) or stages.harness[model][0],
                expected="the run that trained it, as for other seeds",
                fix="evaluate it under another name (`ual evaluate --name`), or into the folder of its own seed (--out)",
            )


def _planned_only(by_seed: Mapping[int, StageFolders], planned: Set[int]) -> tuple[dict[int, StageFolders], list[int]]:
    """Leave out the arms that were trained with seeds that were not planned, where some were; return these seeds too."""
    added = sorted(seed for seed, stages in by_seed.items() if planned and stages.smoothed and seed not in planned)
    return {seed: _without_arms(stages) if seed in added else stages for seed, stages in by_seed.items()}, added


def _without_arms(stages: StageFolders) -> StageFolders:
    """Keep what there is of models that were not trained, such as the one before training."""
    kinds = ("evaluated", "calibrated", "harness")
    left = {
        kind: {model: one for model, one in getattr(stages, kind).items() if model not in stages.smoothed} for kind in kinds
    }
    return StageFolders(stages.elicited, **left)


def by_model(by_seed: Mapping[int, StageFolders], kind: str) -> dict[str, dict[int, Any]]:
    """List what the stages of a kind left by model and training seed, the model before training first."""
    found: dict[str, dict[int, Any]] = {}
    for seed, stages in by_seed.items():
        for model, left in getattr(stages, kind).items():
            found.setdefault(model, {})[seed] = left
    return dict(sorted(found.items(), key=lambda item: item[0] != BASE))


def _answers(
    by_seed: Mapping[int, StageFolders],
) -> tuple[dict[str, dict[int, list[Path]]], dict[str, dict[int, pa.Table]], dict[str, dict[int, str]]]:
    """Return the folders, the rows and the digest of every model's answers by training seed, the harness's tasks among them."""
    answers: dict[str, dict[int, list[Path]]] = {}
    rows: dict[str, dict[int, pa.Table]] = {}
    models: dict[str, dict[int, str]] = {}
    evaluated, harness = by_model(by_seed, "evaluated"), by_model(by_seed, "harness")
    used: list[tuple[str, Path, list[str]]] = []
    for model in dict.fromkeys([*evaluated, *harness]):
        for number in sorted({*evaluated.get(model, {}), *harness.get(model, {})}):
            own, more = evaluated.get(model, {}).get(number), harness.get(model, {}).get(number, [])
            rows.setdefault(model, {})[number], digest, tasks = read_all_results(own, more)
            used += [(model, folder, those) for folder, those in tasks.items() if folder != own]
            if digest:
                models.setdefault(model, {})[number] = digest
            answers.setdefault(model, {})[number] = [*filter(None, [own]), *more]
    check_harness(used, {BASE}.union(*(stages.smoothed for stages in by_seed.values())))
    return answers, rows, models


def read_all_results(evaluated: Path | None, harness: Sequence[Path]) -> tuple[pa.Table, str | None, dict[Path, list[str]]]:
    """Read a model's results (COLUMNS), of every task of the harness the newest ones.

    Returns them, the model's digest, if known, and the sources by the folder that they are read from.

    Results of the harness on another model of the same name, such as one that was trained before, are left out.
    """
    parts = [] if evaluated is None else [evaluated]
    model, tables, seen, used = None, [], set[str](), dict[Path, list[str]]()
    for folder in [*parts, *reversed(harness)]:
        table = read_results(folder, [*COLUMNS, col.MODEL_DIGEST])
        digests = table[col.MODEL_DIGEST].drop_null().unique().to_pylist()
        model = model or next(iter(digests), None)
        if digests and digests != [model]:
            logger.warning("left out %s: it is about another model of the same name (%s, not %s)", folder, digests, model)
            continue
        new = pa.compute.invert(pa.compute.is_in(table[col.BENCHMARK], pa.array(sorted(seen), pa.string())))
        tables.append(table.filter(new).select(COLUMNS))
        used[folder] = tables[-1][col.SOURCE].drop_null().unique().to_pylist()
        seen |= {*table[col.BENCHMARK].unique().to_pylist()}
    return pa.concat_tables(tables), model, used


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


def _over_seeds(folders: Mapping[str, Mapping[int, Path]], name: str, level: float) -> dict[str, dict[str, Any]]:
    found = {model: [read_json(folder / name) for folder in by_seed.values()] for model, by_seed in folders.items()}
    known = {model: [content for content in contents if content is not None] for model, contents in found.items()}
    return {model: average(contents, level) for model, contents in known.items() if contents}


def _settings_of(trained: Path) -> dict[str, Any]:
    """Read what a training was set to, digests of the model that it started from and of all rows, and how many it had."""
    inputs = inputs_of(trained)
    rows = get_nested(read_json(trained / DONE_FILE), "figures", TRAIN_ROWS)
    known = {key: inputs[key] for key in ("model", "rows") if inputs.get(key)}
    return (inputs.get("train") or {}) | known | ({} if rows is None else {TRAIN_ROWS: rows})


def _mean_figures(smoothed: Mapping[str, Mapping[int, Path]], key: str) -> dict[str, float]:
    """Average a figure of every arm's alphas over its training seeds: random controls draw theirs with each."""
    found = {
        arm: [get_nested(read_json(folder / DONE_FILE), "figures", key) for folder in own.values()]
        for arm, own in smoothed.items()
    }
    return {arm: float(np.mean(means)) for arm, means in found.items() if means and None not in means}


def _role(recorded: Mapping[str, Any]) -> Role:
    alphas = (recorded["min"], recorded["max"]) if "min" in recorded and "max" in recorded else None
    return role_of(recorded.get("map"), recorded.get("weight", "none"), recorded.get("loss"), alphas)


def _named(
    answers: Mapping[str, Mapping[int, Sequence[Path]]],
    folders: Mapping[str, Mapping[str, Mapping[int, Path]]],
    elicited: Sequence[Path],
    root: Path,
) -> Folders:
    """Name the folders that count, by kind and model."""
    found = {"evaluated": {model: [folder for those in own.values() for folder in those] for model, own in answers.items()}}
    found |= {kind: {model: [*own.values()] for model, own in by_model.items()} for kind, by_model in folders.items()}
    found |= {"elicited": {"rows": [*elicited]}} if elicited else {}
    return {
        kind: {model: [relative_to(folder, root) for folder in own] for model, own in by_model.items()}
        for kind, by_model in found.items()
    }


def average(by_seed: Sequence[Mapping[str, Any]], level: float) -> dict[str, Any]:
    """Average what the stages wrote, seed by seed, at every depth; everything else, such as bins, is that of the first seed.

    What one seed lacks is None: a mean over the others would be one of other trainings.

    Numbers become their means, counts (integers) the smallest, but the pairs of which `n_valid` have a verdict the most of any
    seed, so that what one seed lacks is missing. X_standard_error becomes that of the mean:
    error^2 = mean over seeds of error^2 + variance between seeds / seeds, as in `stats.metrics.over_seeds`; X_low and X_high,
    percentages of an interval at their own level, become the t interval of the mean at `level` from the same error, within
    [0, 100], with its two parts: X_seed_deviation, the standard deviation between seeds, and X_question_error, of one seed over
    the questions.
    """
    if len(by_seed) == 1:
        return dict(by_seed[0])
    found = {key: _mean([content.get(key) for content in by_seed], level) for key in by_seed[0]}
    for key in by_seed[0]:
        if f"{key}{ERROR}" in found and _numbers(values := [content.get(key) for content in by_seed]):
            errors = [content.get(f"{key}{ERROR}") for content in by_seed]
            found[f"{key}{ERROR}"] = _error(values, errors) if _numbers(errors) else None
    if "n_valid" in found:
        found["n"] = max(content["n"] for content in by_seed)
    for low in (key for key in by_seed[0] if key.endswith(LOW)):
        found |= _interval(by_seed, low.removesuffix(LOW), level)
    return found


def _mean(values: Sequence[Any], level: float) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return average(values, level)
    if any(value is None for value in values):
        return None
    if not _numbers(values):
        return values[0]
    return min(values) if all(isinstance(value, int) for value in values) else float(np.mean(values))


def _numbers(values: Sequence[Any]) -> TypeGuard[Sequence[float]]:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _parts(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Return the standard deviation between seeds, and the standard error over questions of one seed."""
    return float(np.std(values, ddof=1)), math.sqrt(float(np.mean(np.square(errors))))


def _error(values: Sequence[float], errors: Sequence[float]) -> float:
    deviation, questions = _parts(values, errors)
    return math.hypot(questions, deviation / math.sqrt(len(values)))


def _interval(by_seed: Sequence[Mapping[str, Any]], name: str, level: float) -> dict[str, float | None]:
    """Widen the intervals of single seeds by the variance between these; None where a seed has none."""
    rate = name if name in by_seed[0] else f"{name}_win_rate"
    values, lows, highs = ([content.get(key) for content in by_seed] for key in (rate, name + LOW, name + HIGH))
    if not (_numbers(values) and _numbers(lows) and _numbers(highs)):
        return {name + LOW: None, name + HIGH: None, name + DEVIATION: None, name + QUESTIONS: None}
    # At the level of its judging, which may be another one.
    widths = [2 * float(special.ndtri((1 + content.get("level", level)) / 2)) for content in by_seed]
    errors = [(high - low) / width for low, high, width in zip(lows, highs, widths, strict=True)]
    error, (deviation, questions) = _error(values, errors), _parts(values, errors)
    margin, mean = float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * error, float(np.mean(values))
    ends: dict[str, float | None] = {name + LOW: max(0.0, mean - margin), name + HIGH: min(100.0, mean + margin)}
    return ends | {name + DEVIATION: deviation, name + QUESTIONS: questions}
