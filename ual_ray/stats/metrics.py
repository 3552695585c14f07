"""Metrics of result rows, each with its n and standard error; the name, label and direction of every metric. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.config.names import OVERALL

NLL = "nll"
NLL_ADJUSTED = "nll_adjusted"
NLL_SCALED = "nll_scaled"
BRIER_OF_TOKENS = "token_brier"
ACCURACY_OF_TOKENS = "token_accuracy"
AURC_OF_TOKENS = "token_aurc"
EXACT_MATCH = "exact_match"
EXACT_MATCH_STRICT = "exact_match_strict"
EXACT_MATCH_FLEXIBLE = "exact_match_flexible"
EXACT_MATCH_MATH = "exact_match_math"
PROMPTS_STRICT = "prompt_level_strict_acc"
PROMPTS_LOOSE = "prompt_level_loose_acc"
ACCURACY = "accuracy"
ACCURACY_NORMALISED = "accuracy_normalised"
# The share of answers that reached max_new_tokens: of a kind with the scores, but neither way is better.
CUT = "cut"
WIN_RATE = "win_rate"
LENGTH_CONTROLLED_WIN_RATE = "length_controlled_win_rate"
ECE_WIDTH = "ece_width"
ECE_MASS = "ece_mass"
BRIER_SCORE = "brier"
AUROC = "auroc"
AURC = "aurc"
PRR = "prr"
NC1 = "nc1"
SILHOUETTE = "silhouette"
SCATTER_RATIO = "scatter_ratio"

Direction = Literal["lower", "higher"]
# nats; a share of [0, 1], written in percent; percent as it is; a plain number.
Unit = Literal["nats", "share", "percent", "number"]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, which way is better (None = it is not known), its unit, and what it tells and does not.

    guard: no arm is promoted that is worse in it with certainty, whatever else it is better in. shown: smoothing
    costs it by construction, so it stands against no promotion unless it is a primary measure.
    """

    label: str
    direction: Direction | None
    unit: Unit
    tells: str = ""
    guard: bool = False
    shown: bool = False


_STATED = "not whether the model knows more, nor anything about answers that it writes itself"
_RANKED = "not whether the confidences are right as they are"
_HELD_BACK = f"whether errors have the lowest confidences, so that they can be held back; {_RANKED}"
_RIGHT = "whether final answers are right; not how sure the model is, nor anything below a few percent"
_FOLLOWED = "whether instructions that a program can check are followed; not how well"
_TIGHT = "not whether the model is better, as any smoothing tightens clusters"
METRICS: dict[str, Metric] = {
    NLL: Metric(
        "NLL per token, nats",
        "lower",
        "nats",
        "how much probability the given labels have; not whether smoothing helps, as it costs NLL by construction",
        shown=True,
    ),
    NLL_ADJUSTED: Metric(
        "NLL per token after removing temperature and smoothing floor, nats",
        "lower",
        "nats",
        "what a model knows about the labels; not whether its stated probabilities are right as they are, nor how good the "
        "answers are that it writes itself",
    ),
    NLL_SCALED: Metric(
        "NLL per token after temperature scaling, nats",
        "lower",
        "nats",
        "what a model knows about the labels, less the floor under all probabilities that smoothing leaves; not whether "
        "smoothing helps, as it costs about half of that floor by construction",
        shown=True,
    ),
    BRIER_OF_TOKENS: Metric(
        "Brier score of tokens",
        "lower",
        "number",
        "how near the stated probabilities are to the labels, knowledge and calibration in one; not which of both changed",
    ),
    ACCURACY_OF_TOKENS: Metric(
        "top-1 accuracy of tokens",
        "higher",
        "share",
        "how often the likeliest token is the label; not how sure the model is, nor whether another token is as good",
    ),
    AURC_OF_TOKENS: Metric("AURC of tokens", "lower", "number", _HELD_BACK, guard=True),
    EXACT_MATCH: Metric("exact match", "higher", "share", _RIGHT),
    EXACT_MATCH_STRICT: Metric("exact match, strict", "higher", "share", _RIGHT),
    EXACT_MATCH_FLEXIBLE: Metric("exact match, flexible", "higher", "share", _RIGHT),
    EXACT_MATCH_MATH: Metric("exact match, maths", "higher", "share", _RIGHT),
    PROMPTS_STRICT: Metric("prompts followed, strict", "higher", "share", _FOLLOWED),
    PROMPTS_LOOSE: Metric("prompts followed, loose", "higher", "share", _FOLLOWED),
    **{
        name: Metric(label, "higher", "share", f"how often {what} is right; not how sure the model is")
        for name, label, what in (
            (ACCURACY, "accuracy", "the likeliest choice or token, or the given answer,"),
            (ACCURACY_NORMALISED, "accuracy, by length", "the choice that is likeliest per character"),
        )
    },
    CUT: Metric(
        "answers cut", None, "share", "how many answers did not come to their end; not whether their end would have been right"
    ),
    WIN_RATE: Metric(
        "win rate", "higher", "percent", "which answer a judge prefers, longer ones more often; not whether either is true"
    ),
    LENGTH_CONTROLLED_WIN_RATE: Metric(
        "win rate, length-controlled",
        "higher",
        "percent",
        "which answer a judge prefers at equal lengths; not whether either is true",
    ),
    ECE_WIDTH: Metric(
        "ECE, equal width",
        "lower",
        "share",
        f"whether stated confidences are right on average, bin by bin; {_STATED}",
    ),
    ECE_MASS: Metric("ECE, equal mass", "lower", "share", f"the same with as many tokens or answers in each bin; {_STATED}"),
    BRIER_SCORE: Metric(
        "Brier score",
        "lower",
        "number",
        "how near stated probabilities are to what is right, knowledge and calibration in one; not which of both changed",
    ),
    AUROC: Metric("AUROC", "higher", "number", f"whether right ones have higher confidences than wrong ones; {_RANKED}"),
    AURC: Metric("AURC", "lower", "number", _HELD_BACK),
    PRR: Metric(
        "PRR", "higher", "number", f"what holding back by confidence gains, of what it could, whatever the accuracy; {_RANKED}"
    ),
    NC1: Metric("NC1", "lower", "number", f"how tightly hidden states of a token lie; {_TIGHT}"),
    SILHOUETTE: Metric("silhouette", "higher", "number", f"how well hidden states of tokens are apart; {_TIGHT}"),
    SCATTER_RATIO: Metric("scatter ratio", "lower", "number", f"how tight clusters are in one plane; {_TIGHT}"),
}
# The end of a name that tells the direction of a metric which is not in the table.
DIRECTED: dict[Direction, str] = {"lower": "_lower_is_better", "higher": "_higher_is_better"}


def metric_of(name: str) -> Metric:
    """Look a metric up; an unknown one is labelled with its name, whose end may tell its direction (`directed`)."""
    ends = (direction for direction, end in DIRECTED.items() if name.endswith(end))
    return METRICS.get(name) or Metric(name.replace("_", " "), next(ends, None), "number")


def directed(name: str, direction: Direction | None) -> str:
    """Let the name of a metric tell its direction, where it is known, and the table has none or the other one."""
    return name if direction in (None, metric_of(name).direction) else name + DIRECTED[direction]


def difference_unit(name: str) -> tuple[str, float]:
    """Label the differences of a metric, and give what to multiply them by: shares and percent differ in points."""
    metric = metric_of(name)
    return {"share": (f"{metric.label}, points", 100.0), "percent": (f"{metric.label}, points", 1.0)}.get(
        metric.unit, (metric.label, 1.0)
    )


@dataclass(frozen=True)
class MetricValue:
    """One measured value: `metric` over the `n` rows of `source` in a benchmark; `standard_error` is None where n < 2."""

    benchmark: str
    metric: str
    source: str
    value: float
    standard_error: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure(results: pa.Table) -> list[MetricValue]:
    """Measure each benchmark of `columns.RESULTS` rows: NLL per token overall and by source, the mean of every score.

    A row without a value is left out, not counted as wrong.
    """
    found = []
    for benchmark, rows in by_benchmark(results):
        found += list(_nll_values(benchmark, rows))
        for metric, values in scores(rows).items():
            found.append(mean(values[np.isfinite(values)], benchmark, metric))
    return found


def by_benchmark(results: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Split rows by benchmark, in order of name."""
    column = results[col.BENCHMARK]
    for benchmark in sorted(pa.compute.unique(column).to_pylist()):
        yield benchmark, results.filter(pa.compute.equal(column, benchmark))


def scores(results: pa.Table) -> dict[str, Numbers]:
    """Read the map column `scores` as one array per metric, in order of name, NaN where a row has no such score."""
    parts = [_chunk_scores(chunk) for chunk in results[col.SCORES].chunks]
    names = sorted({name for part in parts for name in part})
    lengths = [len(chunk) for chunk in results[col.SCORES].chunks]
    columns = {
        name: np.concatenate([part.get(name, np.full(n, np.nan)) for part, n in zip(parts, lengths, strict=True)])
        for name in names
    }
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def _chunk_scores(chunk: pa.MapArray) -> dict[str, Numbers]:
    # A null map may span entries of the child arrays: these are nobody's.
    offsets = chunk.offsets.to_numpy()
    row = np.repeat(np.arange(len(chunk)), np.diff(offsets))
    span = slice(offsets[0], offsets[-1])
    keys, values = chunk.keys[span], chunk.items[span].to_numpy(zero_copy_only=False).astype(np.float64)
    values[~chunk.is_valid().to_numpy(zero_copy_only=False)[row] | ~np.isfinite(values)] = np.nan
    columns = {}
    for name in pa.compute.unique(keys).to_pylist():
        own = pa.compute.equal(keys, name).to_numpy(zero_copy_only=False)
        columns[name] = np.full(len(chunk), np.nan)
        columns[name][row[own]] = values[own]
    return columns


def numbers(results: pa.Table, name: str) -> Numbers:
    """Read a column of numbers; what is null or not finite is NaN."""
    values = results[name].cast(pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def likelihoods(results: pa.Table) -> tuple[Numbers, Numbers]:
    """Read summed NLL (nats) and target tokens of every row; both are NaN for a row that lacks one or has no token."""
    sums, tokens = numbers(results, col.NLL_SUM), numbers(results, col.TARGET_TOKENS)
    missing = np.isnan(sums) | ~(tokens > 0)
    return np.where(missing, np.nan, sums), np.where(missing, np.nan, tokens)


def _nll_values(benchmark: str, rows: pa.Table) -> Iterator[MetricValue]:
    sums, tokens = likelihoods(rows)
    there = np.isfinite(sums)
    if not there.any():
        return
    yield negative_log_likelihood(sums[there], tokens[there], benchmark)
    encoded = rows[col.SOURCE].combine_chunks().dictionary_encode(null_encoding="encode")
    # One that is called as the whole, or as rows without a source, is not one of them.
    whole = (OVERALL, str(None))
    names = [f"{name} (source)" if name in whole else str(name) for name in encoded.dictionary.to_pylist()]
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    if len(names) < 2:
        return
    for code in sorted(range(len(names)), key=names.__getitem__):
        own = there & (codes == code)
        if own.any():
            yield negative_log_likelihood(sums[own], tokens[own], benchmark, names[code])


def negative_log_likelihood(sums: Numbers, tokens: Numbers, benchmark: str, source: str = OVERALL) -> MetricValue:
    """Unsmoothed NLL in nats per token: sum over rows / number of tokens (lower is better).

    The standard error is that of a ratio estimator over rows, since the tokens of a row are not independent.
    """
    n, total = len(sums), tokens.sum()
    ratio = sums.sum() / total
    residuals = sums - ratio * tokens
    error = math.sqrt(n / (n - 1) * (residuals @ residuals)) / total if n > 1 else None
    return MetricValue(benchmark, NLL, source, float(ratio), None if error is None else float(error), n)


def mean(values: Numbers, benchmark: str, metric: str) -> MetricValue:
    """Average a score over rows; the standard error is that of a mean (of a share: sqrt(p (1 - p) / (n - 1)))."""
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return MetricValue(benchmark, metric, OVERALL, float(values.mean()), error, n)


def over_seeds(by_seed: Sequence[Sequence[MetricValue]]) -> list[MetricValue]:
    """Average the metrics of one arm over seeds that answered the same questions.

    The questions' share of the variance does not shrink with more seeds, the seeds' own does:
    error^2 = mean over seeds of error^2 + variance between seeds / seeds. n is the smallest number of rows.
    """
    if len(by_seed) == 1:
        return list(by_seed[0])
    found: dict[tuple[str, str, str], list[MetricValue]] = {}
    for entry in (entry for one in by_seed for entry in one):
        found.setdefault((entry.benchmark, entry.metric, entry.source), []).append(entry)
    return [_average(group) for group in found.values()]


def _average(group: Sequence[MetricValue]) -> MetricValue:
    values = np.array([entry.value for entry in group])
    errors = [entry.standard_error for entry in group if entry.standard_error is not None]
    spread = values.var(ddof=1) / len(group) if len(group) > 1 else 0.0
    error = math.sqrt(float(np.mean(np.square(errors)) + spread)) if errors else None
    return replace(group[0], value=float(values.mean()), standard_error=error, n=min(entry.n for entry in group))
