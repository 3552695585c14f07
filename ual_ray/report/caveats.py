"""What a reader of the results has to know before believing them, said in sentences that fit the run. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ual_ray.config import BASE
from ual_ray.report.findings import Findings, within
from ual_ray.stats.metrics import Figure, metric_of

FEW_QUESTIONS = 100
# A share within so many standard errors of 0, or below this, is at the floor: arms cannot differ by it.
FLOOR_ERRORS = 2.0
FLOOR = 0.05
# A judge whose preference moves less than this with the order is not worth a caveat.
PLACE_BIAS = 0.1


def caveats_of(findings: Findings | None, quarantined: int) -> list[str]:
    """List the caveats of a run, the gravest first."""
    general = (
        "Training losses of arms with different smoothing are not comparable: a smoothed loss has a floor of its own. All "
        "curves and figures on this page are of the unsmoothed loss."
    )
    if findings is None:
        return [general]
    return [
        *_of_controls(findings),
        *_of_size(findings),
        *_of_floors(findings),
        *_of_judges(findings),
        *_of_calibration(findings),
        *(
            [f"{quarantined:,} rows got no score; their arms' alphas were imputed or left out, as configured."]
            if quarantined
            else []
        ),
        *_of_quarantined_answers(findings),
        general,
    ]


def _of_controls(findings: Findings) -> Iterator[str]:
    arms = [model for model in findings.models if model != BASE]
    if not arms:
        return
    if "shuffled" not in arms:
        yield (
            "There is no arm 'shuffled' (the same alphas in random order). Without it, a gain from uncertainty and a gain from "
            "any smoothing of this strength look alike."
        )
    if "sft" not in arms:
        yield "There is no arm 'sft' (no smoothing), which every other arm has to beat."


def _of_size(findings: Findings) -> Iterator[str]:
    seeds = [findings.seeds.get(model, 1) for model in findings.models if model != BASE]
    if seeds and max(seeds) == 1:
        yield (
            "Every arm was trained once, with one seed. The intervals tell how sure a difference is over questions, not how "
            "it would vary from one training to the next."
        )
    primary = [entry for entry in findings.comparisons.entries if entry.primary]
    least = min((entry.n for entry in primary), default=FEW_QUESTIONS)
    if least < FEW_QUESTIONS:
        yield (
            f"The primary comparison rests on {least:,} questions. Intervals of a bootstrap are too narrow with so few, and "
            "expect small effects to be inconclusive."
        )


def _of_floors(findings: Findings) -> Iterator[str]:
    low: dict[tuple[str, str], list[str]] = {}
    for model, figures in findings.figures.items():
        for figure in figures:
            if metric_of(figure.metric).unit == "share" and metric_of(figure.metric).direction == "higher" and at_floor(figure):
                low.setdefault((figure.benchmark, metric_of(figure.metric).label), []).append(model)
    for (benchmark, label), models in low.items():
        yield (
            f"{benchmark}, {label}: {', '.join(models)} {'is' if len(models) == 1 else 'are'} at the floor: a right answer "
            "is luck. Compare by NLL, or by multiple choice, at this size."
        )


def at_floor(figure: Figure) -> bool:
    """Tell whether a share is too near to 0 for arms to differ by it."""
    return figure.value <= max(FLOOR, FLOOR_ERRORS * (figure.standard_error or 0.0))


def _of_judges(findings: Findings) -> Iterator[str]:
    """The preference (1..2) of a judge that reads the candidate first, less that of one that reads it second."""
    biases = [within(content, "position_bias") for content in findings.win_rates.values()]
    measured = [(bias["difference"], bias["standard_error"]) for bias in biases if within(bias, "standard_error") is not None]
    found = [difference for difference, error in measured if abs(difference) > max(PLACE_BIAS, 2 * error)]
    if found:
        largest = max(found, key=abs)
        yield (
            f"The judge prefers the answer that it reads {'first' if largest > 0 else 'second'}, whoever wrote it: its "
            f"preference moves by {abs(largest):.2f} of at most 1 with the order. The order is drawn, so this adds noise "
            "to win rates and favours nobody; near 1 they tell nothing else."
        )


def _of_calibration(findings: Findings) -> Iterator[str]:
    if not findings.calibration:
        return
    without = [model for model in findings.calibration if within(findings.calibration, model, "token", "scaled") is None]
    if without:
        yield f"No temperature was fitted for {', '.join(without)}: calibration there is without its baseline."
    yield (
        "Smoothing flattens probabilities, and so does one temperature fitted after training, at no cost. Smoothing calibrates "
        "better only where it beats the temperature-scaled SFT, not the plain one."
    )


def _of_quarantined_answers(findings: Findings) -> Iterator[str]:
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for model, figures in findings.figures.items():
        for figure in figures:
            if figure.source == "overall":
                counts.setdefault((figure.benchmark, figure.metric), {})[model] = figure.n
    uneven = {key: found for key, found in counts.items() if len(set(found.values())) > 1}
    if uneven:
        names = ", ".join(sorted({benchmark for benchmark, _ in uneven}))
        yield (
            f"Not every model answered the same number of questions of {names}. Differences are over those that both "
            "answered; the figures of one model are over all that it answered."
        )
