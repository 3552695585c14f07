"""What evaluation and judging leave in their folders: result rows, metrics, win rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.config.files import read_json
from ual_ray.parquet import RowFiles
from ual_ray.stats.metrics import MetricValue
from ual_ray.stats.token_sums import READ


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
