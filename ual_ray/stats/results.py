"""What evaluation and judging leave in their folders: result rows, metrics, win rates.

Token statistics of a calibration and the area under its risk-coverage curve are summed by question, as comparisons pair them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, polygamma

from ual_ray import columns as col
from ual_ray.config.files import read_json
from ual_ray.parquet import RowFiles
from ual_ray.stats.metrics import (
    ACCURACY_OF_TOKENS,
    AURC_OF_TOKENS,
    BRIER_OF_TOKENS,
    NLL_ADJUSTED,
    NLL_SCALED,
    MetricValue,
    Numbers,
    numbers,
)

# The columns of `columns.TOKEN_STATISTICS` that are summed, by the name of their metric.
SUMMED = {
    NLL_ADJUSTED: col.ADJUSTED_NLL,
    NLL_SCALED: col.SCALED_NLL,
    BRIER_OF_TOKENS: col.BRIER,
    ACCURACY_OF_TOKENS: col.CORRECT,
}
# All that is read of them.
READ = (col.ID, *SUMMED.values(), col.CONFIDENCE)


def token_sums(tokens: pa.Table) -> tuple[pa.Array, dict[str, Numbers]]:
    """Sum rows of `columns.TOKEN_STATISTICS` by question: ids, and by metric [questions, 2] of sum and number of tokens.

    A question that lacks a value has NaN; a metric that no question has is left out.
    """
    encoded = tokens[col.ID].combine_chunks().dictionary_encode()
    place = encoded.indices.to_numpy(zero_copy_only=False)
    questions = len(encoded.dictionary)
    count = np.bincount(place, minlength=questions).astype(np.float64)
    found = {}
    for metric, column in SUMMED.items():
        if column in tokens.column_names and pc.any(tokens[column].is_valid()).as_py():
            sums = np.bincount(place, weights=numbers(tokens, column), minlength=questions)
            found[metric] = np.column_stack([sums, np.where(np.isnan(sums), np.nan, count)])
    if {col.CONFIDENCE, col.CORRECT} <= {*tokens.column_names} and tokens.num_rows:
        found |= _selective(tokens, place, questions)
    return encoded.dictionary, found


def _selective(tokens: pa.Table, place: NDArray[np.integer], questions: int) -> dict[str, Numbers]:
    sure, right = numbers(tokens, col.CONFIDENCE), numbers(tokens, col.CORRECT)
    known = np.isfinite(sure) & np.isfinite(right)
    if not known.any():
        return {}
    values = aurc_by_question(sure[known], right[known], place[known], questions)
    values[place[~known]] = np.nan
    return {AURC_OF_TOKENS: values}


def aurc_by_question(confidence: ArrayLike, correct: ArrayLike, place: NDArray[np.integer], questions: int) -> Numbers:
    """Split a model's AURC over its questions: [questions, 2] of value and tokens, the ratio of whose sums is the AURC.

    confidence, correct: one per token, in [0, 1]; place: the token's question. The AURC is the mean over k = 1..n of the error
    rate among the k most confident tokens, as `calibrate.metrics.area_under_risk_coverage` has it, lower is better. It ranks
    all tokens together, so it has no parts; a question's value is the derivative of n AURC by how often its tokens occur (the
    infinitesimal jackknife: Efron 1982). So resampling questions gives AURC's own standard error to first order, while the AURC
    of a part of the questions is only approximate.
    """
    sure, wrong = np.asarray(confidence, dtype=np.float64), 1 - np.asarray(correct, dtype=np.float64)
    # Groups of equal confidence, the surest first: their order within is random, so the curve has its expectation there.
    _, group, size = np.unique(-sure, return_inverse=True, return_counts=True)
    errors = np.bincount(group, weights=wrong, minlength=len(size))
    before, errors_before = np.cumsum(size) - size, np.cumsum(errors) - errors
    # Within a group, the error rate at k is share + (errors_before - share before) / k.
    share = errors / size
    excess = errors_before - share * before
    harmonic = digamma(before + size + 1) - digamma(before + 1)
    total = float(np.sum(errors + excess * harmonic))
    # What one token more of every group does to the groups after it, when it is right, and what it adds when it is wrong.
    later_right = _after(excess * (polygamma(1, before + size + 1) - polygamma(1, before + 1)) - share * harmonic)
    later_wrong = _after(harmonic)
    own_right = share * before / size * harmonic + excess * polygamma(1, before + size + 1)
    own_wrong = 1 - before / size * harmonic
    value = (own_right + later_right)[group] + wrong * (own_wrong + later_wrong)[group]
    value += (total - value.sum()) / len(value)
    sums = np.bincount(place, weights=value, minlength=questions)
    return np.column_stack([sums, np.bincount(place, minlength=questions)])


def _after(values: Numbers) -> Numbers:
    """Sum the values of all later groups."""
    return np.cumsum(values[::-1])[::-1] - values


def read_results(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the result rows (`columns.RESULTS`) that `evaluate` wrote, ordered by id."""
    files = RowFiles(folder / col.RESULTS_FOLDER)
    return files.to_table(columns=None if columns is None else [*columns]).sort_by(col.ID)


def read_tokens(folder: Path) -> pa.Table:
    """Read the columns of the token statistics that `calibrate` wrote which comparisons use."""
    file = folder / col.TOKENS_FILE
    tokens = RowFiles(file)
    return tokens.to_table([name for name in READ if name in tokens.schema.names])


def read_metrics(folder: Path) -> tuple[str, list[MetricValue]]:
    """Read what `evaluate` wrote: the model's name and its metrics."""
    content = read_json(folder / col.FIGURES_FILE)
    return content["name"], [MetricValue(**entry) for entry in content["figures"]]


def metrics_of(values: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Give values by the names of their metrics in MLflow: `benchmark.metric.source`, its standard error and its n."""
    named: dict[str, float] = {}
    for entry in values:
        key = f"{entry['benchmark']}.{entry['metric']}.{entry['source']}"
        named |= {key: entry["value"], f"{key}.standard_error": entry["standard_error"], f"{key}.n": entry["n"]}
    return named


# Percent: as good as the reference.
EVEN = 50.0


@dataclass(frozen=True)
class Rate:
    """A rate in percent with its interval; None where it was not measured.

    Over several training seeds also what the interval comes from, in points: the deviation between seeds, and the standard
    error of one seed over the questions.
    """

    value: float | None
    low: float | None
    high: float | None
    seed_deviation: float | None = None
    question_error: float | None = None


@dataclass(frozen=True)
class WinRate:
    """One judge's verdicts on one arm's answers to a benchmark ('overall' = to all): `valid` of `n` pairs have a verdict.

    `length` and `reference_length` are mean characters of the answers. `decides`: the judge is the one whose verdicts count,
    others are shown. `flipped`: share in [0, 1] of all its pairs in which both orders disagree, None if one order was shown.
    `benchmarks`: all that the arm's answers were judged of. `longer`: share of pairs in [0, 1] in which the arm's answer is the
    longer one, None if an older version judged.
    """

    arm: str
    reference: str
    benchmark: str
    raw: Rate
    controlled: Rate
    n: int | None
    valid: int | None
    length: float | None
    reference_length: float | None
    judge: str = ""
    decides: bool = True
    flipped: float | None = None
    benchmarks: tuple[str, ...] = ()
    longer: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How two judges agree on an arm's `n` pairs: share in [0, 1], and Cohen's kappa (1 = always, 0 = as by chance)."""

    arm: str
    reference: str
    judges: str
    n: int
    share: float | None
    kappa: float | None


def agreements_of(contents: Mapping[str, Mapping[str, Any]]) -> list[Agreement]:
    """Read from the content of win_rates.json of every arm and reference how the judges agree, two by two."""
    return [
        Agreement(
            _candidate(content, arm), str(content["reference"]), judges, int(found["n"] or 0), found["share"], found["kappa"]
        )
        for arm, content in contents.items()
        for judges, found in (content.get("agreement") or {}).items()
        if found
    ]


def win_rates_of(contents: Mapping[str, Mapping[str, Any]]) -> list[WinRate]:
    """Read the content of win_rates.json of every arm and reference: an entry per judge and benchmark, deciding judges first.

    A content that does not name its candidate has the name of its key.
    """
    return [
        entry
        for arm, content in contents.items()
        for decides, own in [(True, content), *((False, other) for other in (content.get("others") or {}).values() if other)]
        for entry in _of_one_judge(_candidate(content, arm), own, decides=decides)
    ]


def _candidate(content: Mapping[str, Any], key: str) -> str:
    return str(content.get("candidate") or key)


def _of_one_judge(arm: str, content: Mapping[str, Any], *, decides: bool) -> list[WinRate]:
    return [
        WinRate(
            arm,
            str(content.get("reference") or "the reference"),
            benchmark,
            _rate(rate, "win_rate", "win_rate"),
            _rate(rate, "length_controlled_win_rate", "length_controlled"),
            rate.get("n"),
            rate.get("n_valid"),
            rate.get("mean_length_candidate"),
            rate.get("mean_length_reference"),
            str(content.get("judge") or ""),
            decides,
            (content.get("position_bias") or {}).get("flipped"),
            tuple(content.get("benchmarks") or ()),
            rate.get("longer"),
        )
        for benchmark, rate in (content.get("win_rates") or {}).items()
    ]


def _rate(rate: Mapping[str, Any], name: str, interval: str) -> Rate:
    parts = ("low", "high", "seed_deviation", "question_error")
    return Rate(rate.get(name), *(rate.get(f"{interval}_{part}") for part in parts))
