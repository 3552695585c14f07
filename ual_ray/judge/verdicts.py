"""From verdicts to figures: win rates overall and by benchmark, position bias, and how many verdicts there are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ual_ray import columns as col
from ual_ray.config import EvaluateConfig
from ual_ray.errors import UserError
from ual_ray.judge.win_rate import WinRate, length_controlled_win_rate, position_bias

VERDICTS_FILE = "verdicts.parquet"
OVERALL = "overall"

Row = Mapping[str, Any]


def win_rates(rows: Sequence[Row], settings: EvaluateConfig, seed: int = 0) -> dict[str, Any]:
    """Turn verdicts into figures: win rates overall and by benchmark, position bias, the share of verdicts that were read.

    `rows` are of `columns.VERDICTS`, `settings` configures the intervals. Raises UserError when there is no verdict at all.
    """
    reasons = Counter((row[col.ERROR] or "unknown").split(":")[0] for row in rows if row[col.STATUS] != col.STATUS_OK)
    sent = [row for row in rows if row[col.TEXT_CANDIDATE] is not None and row[col.TEXT_REFERENCE] is not None]
    read = sum(row[col.PREFERENCE] is not None for row in sent)
    if not read:
        raise UserError("no pair has a verdict", got=dict(reasons), fix="see the column 'error' of the verdicts")
    groups = {OVERALL: rows}
    benchmarks = sorted({str(row[col.BENCHMARK]) for row in rows})
    if len(benchmarks) > 1:
        groups |= {name: [row for row in rows if str(row[col.BENCHMARK]) == name] for name in benchmarks}
    return {
        "candidate": rows[0][col.CANDIDATE],
        "reference": rows[0][col.REFERENCE],
        "judge": next((row[col.JUDGE] for row in rows if row[col.JUDGE]), None),
        "rows": len(rows),
        "quarantined": sum(reasons.values()),
        "reasons": dict(reasons),
        "parse_rate": read / len(sent),
        "win_rates": {
            name: _rate(group, settings, seed).as_dict()
            for name, group in groups.items()
            if any(row[col.PREFERENCE] is not None for row in group)
        },
        "position_bias": asdict(
            position_bias([row[col.PREFERENCE] for row in rows], [row[col.CANDIDATE_FIRST] for row in rows])
        ),
        "prompt_hashes": sorted({row[col.PROMPT_HASH] for row in rows if row[col.PROMPT_HASH]}),
        col.PROMPT_TOKENS: sum(row[col.PROMPT_TOKENS] or 0 for row in rows),
        col.GENERATED_TOKENS: sum(row[col.GENERATED_TOKENS] or 0 for row in rows),
    }


def metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Name the figures as MLflow shows them: win_rate.<benchmark>, and its .ci_low, .ci_high and .n, in percent."""
    named: dict[str, float | None] = {"parse_rate": result["parse_rate"], "quarantined": result["quarantined"]}
    for source, rate in result["win_rates"].items():
        for name, interval in (("win_rate", "win_rate"), ("length_controlled_win_rate", "length_controlled")):
            ends = {".ci_low": rate[f"{interval}_low"], ".ci_high": rate[f"{interval}_high"], ".n": rate["n_valid"]}
            named |= {f"{name}.{source}{end}": value for end, value in {"": rate[name], **ends}.items()}
        for side in ("candidate", "reference"):
            named[f"mean_length_{side}.{source}"] = rate[f"mean_length_{side}"]
    return named | {f"position_bias.{name}": value for name, value in result["position_bias"].items()}


def win_rate_line(result: Mapping[str, Any]) -> str:
    """Write the win rates in one line."""
    rate, bias = result["win_rates"][OVERALL], result["position_bias"]["difference"]
    text = f"wins {_percent(rate, 'win_rate', 'win_rate')} against {result['reference']}, "
    text += f"{_percent(rate, 'length_controlled_win_rate', 'length_controlled')} at equal lengths; "
    text += f"{rate['n_valid']} of {rate['n']} verdicts; "
    text += f"{rate['mean_length_candidate']:.0f} and {rate['mean_length_reference']:.0f} characters"
    return text if bias is None else f"{text}; position bias {bias:+.2f}"


def _rate(rows: Sequence[Row], settings: EvaluateConfig, seed: int) -> WinRate:
    # In one order, as the choice of the penalty goes by it.
    ordered = sorted(rows, key=lambda row: row[col.ID])
    preference, reference, candidate = (
        [row[name] for row in ordered] for name in (col.PREFERENCE, col.LENGTH_REFERENCE, col.LENGTH_CANDIDATE)
    )
    return length_controlled_win_rate(
        preference, reference, candidate, level=settings.confidence, resamples=settings.resamples, seed=seed
    )


def _percent(rate: Mapping[str, Any], name: str, interval: str) -> str:
    if rate[name] is None:
        return "unknown"
    low, high = rate[f"{interval}_low"], rate[f"{interval}_high"]
    return f"{rate[name]:.1f}%" + ("" if low is None else f" [{low:.1f}, {high:.1f}]")
