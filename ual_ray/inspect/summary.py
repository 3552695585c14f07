"""The result of an inspection of scores: plain values for the page, the terminal and JSON, with the warnings in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ual_ray import columns as col
from ual_ray.formatting import count, number, share
from ual_ray.stats.score_quality import (
    CHANCE,
    MIN_ROWS,
    Correlation,
    Distribution,
    Noise,
    Quality,
    score_warnings,
    truncation_warning,
)

# Thresholds of the warnings. Shares are of rows; correlations are Spearman's.
MAX_MISSING = 0.05
MIN_PARSED = 0.95
MIN_AGREEMENT = 0.2
MAX_LENGTH_CORRELATION = 0.5
MAX_NOISE_RATIO = 0.5
MIN_RETESTED = 20
MIN_AUROC = 0.55
MIN_OF_A_CLASS = 10
MIN_MATCHED = 0.5


@dataclass(frozen=True)
class Score:
    """One column of scores: `missing` rows have no value; `parse_rate` is over the rows that got a reply (estimators only).

    The mappings are by source. `length` is the rank correlation with the response's length in characters. `mass`:
    probability of all choices together in the median row; `cut`: share of the sampled replies that were cut.
    """

    missing: int
    null_rate: float
    parse_rate: float | None
    distribution: Distribution | None
    by_source: dict[str, Distribution | None]
    noise: Noise | None
    length: Correlation
    length_by_source: dict[str, Correlation]
    mass: float | None = None
    cut: float | None = None


@dataclass(frozen=True)
class Labelled:
    """The labels file: its number of `labels`, the `rows` they match, and how many of these are `wrong`."""

    path: str
    labels: int
    rows: int
    wrong: int


@dataclass(frozen=True)
class Inspection:
    """All metrics of a folder of scored rows. `score_of`: the estimator that `uncertainty` was copied from, if any."""

    path: str
    rows: int
    sources: dict[str, int]
    shown_sources: list[str]
    statuses: dict[str, int]
    quarantined: int
    quarantined_share: float
    reasons: dict[str, int]
    truncated: int | None
    elicitors: list[str]
    prompt_hashes: list[str]
    estimators: list[str]
    score_of: str | None
    scores: dict[str, Score]
    agreement: list[Agreement]
    most_uncertain: dict[str, list[Shown]]
    least_uncertain: dict[str, list[Shown]]
    cost: Cost
    labelled: Labelled | None
    quality: dict[str, Quality]
    self_check: SelfCheckResult | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SelfCheckResult:
    """What the self-check found: of `rows`, `swapped` had another row's response; `estimators` tell them how well."""

    rows: int
    swapped: int
    estimators: dict[str, Quality]
    uncertainty: str
    reason: str


@dataclass(frozen=True)
class Agreement:
    """Spearman correlation of two columns of scores over the `n` rows with both values."""

    first: str
    second: str
    spearman: float | None
    n: int


@dataclass(frozen=True)
class Reply:
    """What the elicitor replied to one request of the estimators `about`: texts, shortened, or a line of numbers.

    hidden: number of texts left out.
    """

    about: str
    texts: list[str]
    hidden: int


@dataclass(frozen=True)
class Shown:
    """A displayed row: its `scores` by column, its last `messages` shortened, and the number of earlier ones left out.

    replies: the elicitor's, where they are kept.
    """

    id: str
    given_id: str | None
    score: float
    scores: dict[str, float | None]
    messages: list[dict[str, str]]
    earlier: int
    replies: list[Reply] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """The cost of the scores; tokens and calls are sums over rows, `money` is in the unit of the prices."""

    prompt_tokens: int | None
    generated_tokens: int | None
    calls: int | None
    tokens_per_row: float | None
    money: float | None
    seconds: float | None
    rows_per_second: float | None


def warnings_of(inspection: Inspection) -> list[str]:
    """List, as sentences, the metrics to check before training, the most serious first."""
    # A copy of an estimator would produce every warning twice.
    names = [name for name in inspection.scores if not (name == col.UNCERTAINTY and inspection.score_of)]
    return [
        *_of_rows(inspection),
        *_of_quality(inspection, names),
        *(text for name in names for text in _of_score(name, inspection.scores[name])),
        *_of_length(inspection),
        *_of_agreement(inspection),
    ]


def _of_rows(inspection: Inspection) -> Iterator[str]:
    missing = inspection.scores[col.UNCERTAINTY].null_rate
    if missing > MAX_MISSING:
        reasons = ", ".join(f"{name} {count(rows)}" for name, rows in inspection.reasons.items())
        yield f"{share(missing)} of rows have no score" + (f" ({reasons})" if reasons else "")
    scored = inspection.rows - inspection.scores[col.UNCERTAINTY].missing
    if 0 < scored < MIN_ROWS:
        yield f"only {scored} {'row has' if scored == 1 else 'rows have'} a score: all metrics are imprecise"
    yield from truncation_warning(inspection.truncated or 0, inspection.rows)
    if len(inspection.elicitors) > 1:
        yield f"{len(inspection.elicitors)} elicitors scored these rows: their scores do not compare"
    if len(inspection.prompt_hashes) > 1:
        yield f"{len(inspection.prompt_hashes)} versions of the prompts scored these rows: their scores do not compare"


def _of_quality(inspection: Inspection, names: list[str]) -> Iterator[str]:
    labelled = inspection.labelled
    if labelled is None:
        return
    if labelled.rows < MIN_MATCHED * labelled.labels:
        yield f"the {count(labelled.labels)} labels fit {count(labelled.rows)} rows only"
    good = labelled.rows - labelled.wrong
    if 0 in (good, labelled.wrong):
        yield f"all labelled responses are {'wrong' if good == 0 else 'good'}: AUROC and PRR are undefined"
    elif min(good, labelled.wrong) < MIN_OF_A_CLASS:
        few = (
            f"{labelled.wrong} labelled responses are wrong" if labelled.wrong < good else f"{good} labelled responses are good"
        )
        yield f"only {few}: AUROC and PRR are imprecise"
    for name in names:
        quality = inspection.quality[name]
        if quality.auroc is None or quality.auroc_low is None or quality.auroc_high is None:
            continue
        if quality.auroc_high < CHANCE:
            yield f"AUROC {number(quality.auroc)} of {name}: worse than chance, it is higher for good responses"
        elif quality.auroc <= MIN_AUROC or quality.auroc_low <= CHANCE:
            unsure = quality.auroc > MIN_AUROC
            yield f"AUROC {number(quality.auroc)} of {name}: " + (
                "too few labels to tell from chance" if unsure else "no better than chance"
            )


def _of_score(name: str, score: Score) -> Iterator[str]:
    if score.parse_rate is not None and score.parse_rate < MIN_PARSED:
        yield f"{name} could be read from {share(score.parse_rate)} of the replies only"
    yield from score_warnings(name, score.distribution, score.mass, score.cut)
    noise = score.noise
    if noise is not None and noise.ratio is not None and noise.n >= MIN_RETESTED and noise.ratio > MAX_NOISE_RATIO:
        yield f"retest noise is {share(noise.ratio)} of the spread of {name}"


def _of_length(inspection: Inspection) -> Iterator[str]:
    length = inspection.scores[col.UNCERTAINTY].length
    if length.n >= MIN_ROWS and length.spearman is not None and abs(length.spearman) > MAX_LENGTH_CORRELATION:
        verb = "follows" if length.spearman > 0 else "falls with"
        yield (f"uncertainty {verb} response length (Spearman {number(length.spearman)}): consider elicit.length_residual=true")


def _of_agreement(inspection: Inspection) -> Iterator[str]:
    """Summarize, in at most two lines, the pairs of estimators with a negative and with a weak correlation."""
    negative, weak = [], []
    for pair in inspection.agreement:
        if {pair.first, pair.second} <= set(inspection.estimators) and pair.n >= MIN_ROWS and pair.spearman is not None:
            text = f"{pair.first} and {pair.second} (Spearman {number(pair.spearman)})"
            if pair.spearman < -MIN_AGREEMENT:
                negative.append(text)
            elif pair.spearman < MIN_AGREEMENT:
                weak.append(text)
    if negative:
        yield f"negatively correlated estimators: {', '.join(negative)}"
    if weak:
        yield f"weakly correlated estimators: {', '.join(weak)}"
