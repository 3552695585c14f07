"""Words on a report: what limits its conclusions, what each measure tells, the guards against a promotion. Pure."""

from collections.abc import Iterator

from ual_ray.config import BASE
from ual_ray.config.names import NO_SMOOTHING, OVERALL
from ual_ray.formatting import plural
from ual_ray.report.findings import Findings, at_an_end, copied, get_nested, tried_before
from ual_ray.report.primary import not_counted
from ual_ray.report.table import CALIBRATED, CLUSTERED, NORMS, sentence
from ual_ray.stats.bootstrap import MIN_SEEDS, WORSE
from ual_ray.stats.comparison import MOST_CUT, MOST_CUT_DIFFERENCE, Comparisons
from ual_ray.stats.metrics import CUT, LENGTH_CONTROLLED_WIN_RATE, METRICS, WIN_RATE, MetricValue, metric_of
from ual_ray.stats.score_quality import following_warning

FEW_QUESTIONS = 100
# Mean alphas per token that differ by a smaller share are alike.
MOST_UNLIKE = 0.05
# A share within so many standard errors of 0, or below FLOOR, cannot differ between arms.
FLOOR_ERRORS = 2.0
FLOOR = 0.05
# A judge whose preference moves less than this with the order is not worth a caveat.
MIN_POSITION_BIAS = 0.1
# In the repository: what was measured with enough training seeds.
RESULTS = "docs/results.md"


def caveats_of(findings: Findings | None, quarantined: int) -> list[str]:
    """List the caveats of a run, the most serious first."""
    general = (
        "Training losses of arms with different smoothing are not comparable: the minimum of a smoothed loss depends on alpha. "
        "All curves and metrics on this page are of the unsmoothed loss. Smoothing costs raw NLL by construction: it "
        "decides nothing; the adjusted NLL removes temperature and smoothing floor first."
    )
    if findings is None:
        return [general]
    return [
        *copied(findings),
        *tried_before(findings),
        *_of_controls(findings),
        *_of_strengths(findings),
        *_of_trainings(findings),
        *at_an_end(findings.trials),
        *_of_size(findings),
        *_of_cut_answers(findings),
        *_of_floors(findings),
        *_of_judges(findings),
        *_of_calibration(findings),
        *(
            [f"{quarantined:,} rows have no score; their alphas were imputed or the rows left out, as configured."]
            if quarantined
            else []
        ),
        *_of_unanswered(findings),
        *_of_missing_seeds(findings),
        general,
    ]


def _of_controls(findings: Findings) -> Iterator[str]:
    if findings.with_role("ual") and not findings.with_role("control"):
        yield (
            "No arm is a control, such as `map: shuffled` (the same alphas in random order). Without one, a gain from "
            "uncertainty and a gain from any smoothing of this strength look alike."
        )
    if findings.roles and not findings.with_role("sft"):
        yield f"No arm has `map: {NO_SMOOTHING}`, the baseline of every other arm."
    for arm in findings.with_role("control"):
        for text in following_warning(arm, findings.follows.get(arm)):
            yield f"{text[0].upper()}{text[1:]}."


def differing(findings: Findings) -> list[str]:
    """List what trainings differ in besides their smoothing, by arm; rates that were chosen by trials are each arm's best."""
    names = dict.fromkeys(name for own in findings.trainings.values() for name in own)
    found = []
    for name in names:
        values = {arm: own[name] for arm, own in sorted(findings.trainings.items()) if name in own}
        if len({str(value) for value in values.values()}) > 1 and not (name == "learning_rate" and findings.trials):
            found.append(f"{name.replace('_', ' ')} ({', '.join(f'{arm} {value}' for arm, value in values.items())})")
    return found


def _of_strengths(findings: Findings) -> Iterator[str]:
    """Name the controls that smooth more or less than an arm by uncertainty."""
    for arm in findings.with_role("ual"):
        mean = findings.token_alphas.get(arm, 0.0)
        others = {name: findings.token_alphas.get(name, 0.0) for name in findings.with_role("control")}
        unlike = [f"{name} {one:.3f}" for name, one in others.items() if mean and one and abs(one / mean - 1) > MOST_UNLIKE]
        if unlike:
            yield (
                f"{arm} smooths by {mean:.3f} per token, and other amounts: {', '.join(unlike)}. A difference from these "
                "controls may be one of strength: give them its map as `base`, with the same settings."
            )


def _of_trainings(findings: Findings) -> Iterator[str]:
    if found := differing(findings):
        yield (
            f"The trainings of the arms differ in {'; '.join(found)}. A difference between such arms is not one of their "
            "smoothing alone: a control needs the same."
        )


def _of_size(findings: Findings) -> Iterator[str]:
    seeds = [findings.seeds.get(model, 1) for model in findings.models if model != BASE]
    if seeds and max(seeds) < MIN_SEEDS:
        times = "once" if max(seeds) == 1 else f"{max(seeds)} times"
        yield (
            f"Every arm was trained {times}. The intervals are those of these trained models; whether the method helps is "
            f"inconclusive below {MIN_SEEDS} training seeds."
        )
    by_chance = "Who looks at a verdict and adds seeds until there is one finds it by chance more often than the level states."
    if added := findings.added_seeds:
        yield f"{by_chance} The training seeds {not_counted(added, findings.planned_seeds)}"
    if max(seeds, default=0) >= MIN_SEEDS and not findings.planned_seeds:
        yield f"The number of training seeds was not recorded before the results, as `ual experiment` does. {by_chance}"
    least = min((entry.n for entry in findings.comparisons.entries if entry.primary), default=FEW_QUESTIONS)
    if least < FEW_QUESTIONS:
        yield (
            f"The primary comparison has {least:,} questions. Bootstrap intervals are too narrow with so few, and small "
            "effects will be inconclusive."
        )


def _of_cut_answers(findings: Findings) -> Iterator[str]:
    """Give the share of cut answers per benchmark: such an answer counts as wrong, and may not be."""
    cut: dict[str, dict[str, float]] = {}
    for model, found in findings.metrics.items():
        for entry in found:
            if entry.metric == CUT:
                cut.setdefault(entry.benchmark, {})[model] = entry.value
    for benchmark, shares in cut.items():
        if not any(shares.values()):
            continue
        listed = ", ".join(f"{model} {share:.0%}" for model, share in shares.items())
        text = f"{benchmark}: answers that reached max_new_tokens: {listed}. They count as wrong where their end is scored. "
        if max(shares.values()) - min(shares.values()) > MOST_CUT_DIFFERENCE:
            text += f"Where two models differ by more than {MOST_CUT_DIFFERENCE:.0%}, their scores give no verdict. "
        if max(shares.values()) > MOST_CUT:
            text += f"Where more than {MOST_CUT:.0%} were cut, they give none either. "
        yield text + f"Raise evaluate.benchmarks.{benchmark}.max_new_tokens, and engine.max_model_len above it."


def _of_floors(findings: Findings) -> Iterator[str]:
    low: dict[tuple[str, str], list[str]] = {}
    for model, found in findings.metrics.items():
        for entry in found:
            metric = metric_of(entry.metric)
            if metric.unit == "share" and metric.direction == "higher" and at_floor(entry):
                low.setdefault((entry.benchmark, metric.label), []).append(model)
    for (benchmark, label), models in low.items():
        yield (
            f"{benchmark}, {label}: {', '.join(models)} {'is' if len(models) == 1 else 'are'} at the floor, where correct "
            "answers are chance. Compare NLL or multiple choice at this model size."
        )


def at_floor(entry: MetricValue) -> bool:
    """Tell whether a share is too near to 0 for arms to differ in it."""
    return entry.value <= max(FLOOR, FLOOR_ERRORS * (entry.standard_error or 0.0))


def _of_judges(findings: Findings) -> Iterator[str]:
    """The preference (1..2) of a judge that reads the candidate first, minus that of one that reads it second."""
    contents = [
        one for content in findings.win_rates.values() for one in (content, *(content.get("others") or {}).values()) if one
    ]
    biases = [get_nested(content, "position_bias") for content in contents]
    measured = [bias for bias in biases if get_nested(bias, "standard_error") is not None]
    large = [x["difference"] for x in measured if abs(x["difference"]) > max(MIN_POSITION_BIAS, 2 * x["standard_error"])]
    if large:
        largest = max(large, key=abs)
        yield (
            f"Position bias: the judge prefers the answer that it reads {'first' if largest > 0 else 'second'}. The order "
            f"moves its preference by {abs(largest):.2f} of at most 1. Orders are balanced, so this adds noise to win rates "
            "and favours neither side; near 1 the win rates carry no other information."
        )


def _of_calibration(findings: Findings) -> Iterator[str]:
    if not findings.calibration:
        return
    without = [model for model in findings.calibration if get_nested(findings.calibration, model, "token", "scaled") is None]
    if without:
        yield f"No temperature was fitted for {', '.join(without)}: their calibration has no baseline."
    yield (
        "Smoothing flattens probabilities, and so does one temperature fitted after training, at no cost. Smoothing improves "
        "calibration only where it beats the temperature-scaled SFT."
    )


def _of_unanswered(findings: Findings) -> Iterator[str]:
    counts: dict[tuple[str, str], set[int]] = {}
    for entry in (entry for found in findings.metrics.values() for entry in found):
        if entry.source == OVERALL:
            counts.setdefault((entry.benchmark, entry.metric), set()).add(entry.n)
    uneven = sorted({benchmark for (benchmark, _), found in counts.items() if len(found) > 1})
    if uneven:
        yield (
            f"The models answered different numbers of questions of {', '.join(uneven)}. Differences are over the questions "
            "that both models answered; the metrics of one model are over all that it answered."
        )


def _of_missing_seeds(findings: Findings) -> Iterator[str]:
    """Name the measures that some training seeds lack: a model's metrics are means over its other seeds."""
    found: dict[str, set[str]] = {}
    for entry in findings.comparisons.entries:
        models = {entry.arm, entry.reference} - {BASE}
        if entry.seeds < min(findings.seeds.get(model, 1) for model in models):
            found.setdefault(f"{entry.benchmark}.{entry.metric}", set()).update(models)
    if found:
        listed = "; ".join(f"{measure} ({', '.join(sorted(models))})" for measure, models in found.items())
        yield f"One of two models, or both, lack values under some training seeds: {listed}. Metrics are means over the others."


def unanswered(findings: Findings) -> str | None:
    """State that a run has too few training seeds for an answer, up to the name of the file that has one (RESULTS)."""
    seeds = max((findings.seeds.get(model, 1) for model in findings.models if model != BASE), default=MIN_SEEDS)
    if seeds >= MIN_SEEDS:
        return None
    return (
        f"Whether uncertainty helps stays open after {plural(seeds, 'training seed')}. `ual experiment CONFIG` measures it on "
        "your data; what was measured so far is in "
    )


def notes(findings: Findings) -> list[tuple[str, str]]:
    """List the label of every measure of a report, with what it tells and does not; measures of other programs have none."""
    there = {entry.metric for found in findings.metrics.values() for entry in found}
    there |= {entry.metric for entry in findings.comparisons.entries}
    there |= {WIN_RATE, LENGTH_CONTROLLED_WIN_RATE} if findings.win_rates else set()
    calibrated = [get_nested(found, "token", "raw") or {} for found in findings.calibration.values()]
    clustered = [get_nested(found, norm) or {} for found in findings.clusters.values() for norm in NORMS]
    for names, parts in ((CALIBRATED, calibrated), (CLUSTERED, clustered)):
        there |= {name for name in names for part in parts if part.get(name) is not None}
    return [(metric.label, metric.tells) for name, metric in METRICS.items() if name in there]


def absent_lines(comparisons: Comparisons) -> list[str]:
    """Word the primary measures that could not be computed, with the pairs of models that lack them, and why."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for one in comparisons.absent:
        pairs.setdefault((one.measure, one.reason), []).append(f"{one.arm} - {one.reference}")
    return [f"{measure} is inconclusive for {', '.join(listed)}: {reason}." for (measure, reason), listed in pairs.items()]


def guard_lines(comparisons: Comparisons) -> list[str]:
    """Word the guards: every arm that is worse with certainty, or that none is, and those not tested; empty without one."""
    found = [entry for entry in comparisons.entries if entry.guard]
    if not found:
        return []
    labels = ", ".join(sorted({METRICS[entry.metric].label for entry in found}))
    lines = [f"Guard, not to be promoted: {sentence(entry)}" for entry in found if entry.verdict == WORSE]
    tested = {entry.arm for entry in found if entry.allows_a_verdict}
    if tested and not lines:
        lines.append(f"Guard, {labels}: no arm is worse with certainty than a model that it was compared with.")
    if missing := ", ".join(sorted({entry.arm for entry in comparisons.entries} - tested)):
        needed = f"{MIN_SEEDS} training seeds, and the calibration of an arm and of its reference"
        lines.append(f"Guard, {labels}: not tested for {missing}, as that needs {needed}.")
    return lines
