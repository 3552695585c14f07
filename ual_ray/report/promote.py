"""`ual promote`: give an arm's registered model the alias `champion`, if it is significantly better in the run's comparison."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ual_ray import columns as col
from ual_ray.config import BASE
from ual_ray.config.evaluate import WIN_RATE
from ual_ray.config.files import REGISTERED, REGISTERED_FILE, STORE_FILE, read_json, read_object
from ual_ray.config.load import load
from ual_ray.config.redact import MASK, redact_uri
from ual_ray.errors import UserError
from ual_ray.models.resolve import model_fingerprint
from ual_ray.report.comparable import inputs_of
from ual_ray.report.compare import compare_runs
from ual_ray.report.findings import FINDINGS_FILE, REPORT_FOLDER, Findings, get_nested, without_primary
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.table import paired_text
from ual_ray.run.output import CONFIG_FILE
from ual_ray.run.stage_cache import DONE_FILE
from ual_ray.stats.bootstrap import BETTER, MIN_SEEDS, WORSE, verdict
from ual_ray.stats.comparison import PLAINER, Comparison, Role
from ual_ray.stats.metrics import AURC_OF_TOKENS, METRICS, NLL, NLL_SCALED, metric_of
from ual_ray.stats.primary import CHOSEN_AFTER, measure_of

# The role of the models that an arm has to be better than in the primary comparison: the first of these that there is.
REFERENCES: tuple[Role, ...] = ("sft", "base")
LEGAL = (
    f"an arm that is better in a primary measure than the arm without smoothing (without one, than '{BASE}'), and worse in "
    f"nothing, win rates included, except {NLL} and {NLL_SCALED}, which any smoothing costs, over at least {MIN_SEEDS} "
    "training seeds"
)
PROMOTED = "ual_ray.promoted_by"
SQLITE = "sqlite:///"


def promote(runs: Sequence[Path], console: Console, arm: str | None = None, uri: str | None = None) -> str:
    """Promote a model of an arm that the runs compared, by default of the only arm that may be.

    runs: output folders that differ in the training seed, or one folder of an experiment. Of the arm's models, one per training
    seed, the one with the lowest validation loss, smoothed as in training, is promoted. Return the version's number. uri: the
    MLflow store, by default that of the model's run. Raises UserError when the comparison is missing, or speaks against it.
    """
    findings = compare_runs(runs) if len(runs) > 1 else read_findings(runs[0])
    chosen = arm or _only_promotable(findings)
    if objection := objection_to(chosen, findings):
        raise UserError(
            f"the arm '{chosen}' is not promoted: {objection}",
            expected=LEGAL,
            fix=f"see report/report.md of the run; give runs with {MIN_SEEDS} or more seeds: `ual promote RUN RUN RUN`",
        )
    reason = reason_for(chosen, findings) or ""
    if not any(x.guard for x in findings.comparisons.entries):
        reason += f"; the guard, {METRICS[AURC_OF_TOKENS].label}, was not tested, which needs evaluate.calibration"
    folder = trained_folder(runs[0], chosen, findings)
    check_compared(runs[0], chosen, folder, findings)
    run_folder = next((run for run in runs if folder.is_relative_to(run)), runs[0])
    name, version = _promote_version(run_folder, chosen, folder, uri, reason)
    console.print(f"{name} version {version} is now the champion: {reason}", highlight=False, markup=False)
    console.print(f"the model: {folder}", highlight=False, markup=False)
    return version


def read_findings(run_folder: Path) -> Findings:
    """Read what the run's report found. Raises UserError when there is no report."""
    file = run_folder / REPORT_FOLDER / FINDINGS_FILE
    content = read_object(file)
    if content is None:
        scenarios = sorted(str(place.parents[1]) for place in run_folder.glob(f"*/{REPORT_FOLDER}/{FINDINGS_FILE}"))
        others = f", {', '.join(scenarios)}" if scenarios else ""
        fix = f"give the output folder of a finished `ual run`, or a scenario's folder of `ual experiment`{others}"
        raise UserError("there is no report of a run", got=file, fix=fix)
    return Findings.from_dict(content)


def baselines(arm: str, findings: Findings) -> set[str]:
    """Name the models that an arm has to be better than, whether or not it was compared with them in a primary measure."""
    compared = {name for entry in findings.comparisons.entries for name in (entry.arm, entry.reference)}
    there = {*findings.models} | compared | {name for one in findings.comparisons.absent for name in (one.arm, one.reference)}
    plainer = PLAINER[findings.roles.get(arm, "unknown")]
    for role in REFERENCES:
        if found := {name for name in there - {arm} if role in plainer and findings.roles.get(name) == role}:
            return found
    return set()


def primary(arm: str, findings: Findings) -> list[Comparison]:
    """Return the arm's primary comparisons with its baselines."""
    references = baselines(arm, findings)
    return [x for x in findings.comparisons.entries if x.arm == arm and x.primary and x.reference in references]


def objection_to(arm: str, findings: Findings) -> str | None:
    """Return the reason why an arm cannot be promoted; None if it can."""
    mine = [x for x in findings.comparisons.entries if x.arm == arm]
    if arm not in _arms(findings):
        return f"it was not compared; the arms are {', '.join(_arms(findings)) or 'none'}"
    if worse := [x for x in mine if harms(x, findings.comparisons.level)]:
        return "; ".join(map(describe, worse))
    judged = [x for x in judged_verdicts(findings) if x.rate.arm == arm]
    if lost := [x.sentence() for x in judged if x.is_lost(findings.comparisons.level)]:
        return f"the judge prefers other answers at equal lengths: {'; '.join(lost)}"
    if findings.comparisons.chosen_after:
        measures = ", ".join(findings.comparisons.primary)
        return (
            f"the primary measures ({measures}), or evaluate.confidence = {findings.comparisons.level:g}, were {CHOSEN_AFTER}"
        )
    if reason_for(arm, findings):
        return without_guard(arm, findings)
    first = primary(arm, findings)
    if not first and (none := without_primary(findings)):
        return none
    missing = sorted(baselines(arm, findings) - {x.reference for x in first})
    if missing or not first:
        others = ", ".join(missing) or f"an arm without smoothing, or with '{BASE}'"
        why = "; ".join(dict.fromkeys(x.reason for x in findings.comparisons.absent if x.arm == arm and x.reference in missing))
        return f"in {', '.join(findings.comparisons.primary)}, it was not compared with {others}{why and f': {why}'}"
    return "; ".join(map(describe, first))


def reason_for(arm: str, findings: Findings) -> str | None:
    """Word the first primary measure, win rates included, in which an arm is better than all its baselines; None without."""
    references, first = baselines(arm, findings), primary(arm, findings)
    judged = [x for x in judged_verdicts(findings) if x.rate.arm == arm and x.rate.reference in references]
    for measure in findings.comparisons.primary:
        found = [(x.reference, x.verdict, describe(x)) for x in first if measure_of(x) == measure]
        found += [(x.rate.reference, x.verdict, x.sentence()) for x in judged if measure == WIN_RATE]
        better = {reference for reference, decided, _ in found if decided == BETTER}
        if references and better == references and len(found) == len(references):
            return "; ".join(words for *_, words in found)
    return None


def without_guard(arm: str, findings: Findings) -> str | None:
    """State against which baselines an arm lacks the guards that other comparisons have; None where there is no such one."""
    guards = [x for x in findings.comparisons.entries if x.guard]
    missing = baselines(arm, findings) - {x.reference for x in guards if x.arm == arm and x.allows_a_verdict}
    if not guards or not missing:
        return None
    labels = ", ".join(sorted({metric_of(x.metric).label for x in guards}))
    return f"the guard, {labels}, was not tested against {', '.join(sorted(missing))}, which needs the calibration of both"


def harms(entry: Comparison, level: float) -> bool:
    """Whether an arm is worse in a measure that smoothing does not cost by construction.

    An exploratory measure, which has no verdict, counts by its p-value at the level of the verdicts.
    """
    if metric_of(entry.metric).shown and not entry.primary:
        return False
    direction = metric_of(entry.metric).direction
    if not entry.exploratory or direction is None:
        return entry.verdict == WORSE
    return verdict(entry.difference, entry.p_value, direction, entry.seeds, level) == WORSE


def describe(comparison: Comparison) -> str:
    """Word a comparison with its interval, its p value after Holm, and its n."""
    return (
        f"{comparison.metric} on {comparison.benchmark} against {comparison.reference}: {comparison.verdict}, "
        f"difference {comparison.difference:+.4g} ({comparison.ci_low:+.4g} to {comparison.ci_high:+.4g}), "
        f"p {comparison.p_holm:.3g}, n {paired_text(comparison)}, {comparison.seeds} of at least {MIN_SEEDS} training seeds"
        f"{f'; {comparison.reason}' if comparison.reason else ''}"
    )


def trained_folder(run_folder: Path, arm: str, findings: Findings) -> Path:
    """Find the training of an arm to promote: of those compared, the one with the lowest finite smoothed validation loss.

    Raises UserError when one of them is not finished, when the report does not state which was compared, and when the model's
    files are not what was written.
    """
    named = get_nested(findings.folders, "trained", arm)
    folders = [run_folder / name for name in named or []]
    if not named:
        folders = [file.parent for file in sorted((run_folder / "arms" / arm / "train").glob(f"*/{DONE_FILE}"))]
    done = [read_json(folder / DONE_FILE) for folder in folders]
    if not folders or None in done:
        raise UserError(
            f"the arm '{arm}' has no finished training in {run_folder}",
            got=", ".join(named or []) or None,
            fix="run the pipeline to its end",
        )
    if len(folders) > 1 and not named:
        raise UserError(
            f"the report does not state which training of the arm '{arm}' it compared",
            got=", ".join(folder.name for folder in folders),
            fix="run `ual run` again with the configuration to promote: it only writes the report again",
        )
    # What the arm is trained for: raw NLL would prefer the seed that smoothing changed the least.
    losses = [get_nested(content, "figures", "exported", col.VALIDATION_LOSS) for content in done]
    finite = [] if None in losses else [loss if math.isfinite(loss) else math.inf for loss in losses]
    best = folders[finite.index(min(finite)) if finite else 0]
    model_fingerprint(str(best / col.MODEL_FOLDER))
    return best


def check_compared(run_folder: Path, arm: str, folder: Path, findings: Findings) -> None:
    """Raise UserError where the model of a training is not one that answered for the arm, as after --force.

    Not checked where the model is not there any more, or where a server answered under a name.
    """
    answered = [inputs_of(run_folder / name) for name in get_nested(findings.folders, "evaluated", arm) or []]
    known = [own.get("model") for own in answered if own.get("engine") and get_nested(own, "engine", "endpoint") is None]
    model = folder / col.MODEL_FOLDER
    if known and None not in known and model.is_dir() and (now := col.digest(model_fingerprint(str(model)))) not in known:
        raise UserError(
            f"the model of the arm '{arm}' is not the one that the report compared: it was trained again since",
            got=f"{model}: {now}; compared: {', '.join(map(str, known))}",
            fix="run the pipeline to its end, and promote by its new report",
        )


def _only_promotable(findings: Findings) -> str:
    objections = {arm: objection_to(arm, findings) for arm in _arms(findings)}
    free = [arm for arm, objection in objections.items() if objection is None]
    # An arm that may be promoted is better than its baselines, whatever these are better than.
    beaten = set().union(*(baselines(arm, findings) for arm in free))
    free = [arm for arm in free if arm not in beaten]
    if len(free) == 1:
        return free[0]
    if free:
        raise UserError("several arms may be promoted", got=", ".join(free), fix="name one with --arm")
    lines = "\n".join(f"  {arm}: {objection}" for arm, objection in objections.items())
    raise UserError(f"no arm may be promoted\n{lines}", expected=LEGAL)


def _arms(findings: Findings) -> list[str]:
    judged = {x.rate.arm for x in judged_verdicts(findings)}
    return sorted({x.arm for x in findings.comparisons.entries} | judged)


def _promote_version(run_folder: Path, arm: str, folder: Path, uri: str | None, reason: str) -> tuple[str, str]:
    from ual_ray.tracking.models import champion_of
    from ual_ray.tracking.run_file import read_run

    tracking = load(run_folder / CONFIG_FILE).tracking
    address = uri or _store_of(run_folder, tracking.uri)
    if MASK in address:
        raise UserError("the address of the MLflow store holds a password", got=address, fix="give it with --uri")
    name = f"{tracking.register_as}-{arm}"
    after = read_json(folder / REGISTERED_FILE) or {}
    version = read_json(folder / DONE_FILE)["figures"].get(REGISTERED) or after.get("version")
    run_id = read_run(folder, redact_uri(address)).get("run_id")
    return name, champion_of(address, name, version, run_id, {PROMOTED: reason})


def _store_of(run_folder: Path, recorded: str | None) -> str:
    """Return the address of the MLflow store of a run or of a scenario: as recorded, or that of its output folder.

    Earlier versions recorded of a scenario where its store was, from which the folder may have been moved. Raises UserError
    where there is none: MLflow would make an empty one.
    """
    from ual_ray.tracking.tracker import default_uri

    file = recorded.removeprefix(SQLITE).partition("?")[0] if recorded and recorded.startswith(SQLITE) else None
    if recorded and (file is None or Path(file).is_file()):
        return recorded
    # Of a run, of a scenario of an experiment, of one of its seeds.
    for place in (run_folder, *run_folder.parents[:2]):
        if (place / STORE_FILE).is_file():
            return default_uri(place)
    raise UserError(
        "there is no MLflow store with the model",
        got=file or run_folder / STORE_FILE,
        expected=f"{STORE_FILE} in the output folder, or a server",
        fix="give its address with --uri",
    )
