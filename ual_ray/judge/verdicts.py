"""From verdicts to figures: win rates overall and by benchmark, position bias, agreement of judges, counts. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from operator import itemgetter
from typing import Any

import numpy as np

from ual_ray import columns as col
from ual_ray.config import EvaluateConfig
from ual_ray.config.names import OVERALL
from ual_ray.errors import UserError
from ual_ray.judge.win_rate import TIE, WinRate, length_controlled_win_rate, position_bias

VERDICTS_FILE = "verdicts.parquet"
# The verdicts of all judges after the one that decides, and how judges agree, in the content of win_rates.json.
OTHERS, AGREEMENT = "others", "agreement"

Row = Mapping[str, Any]


def figures_of_judges(rows: Mapping[str, Sequence[Row]], settings: EvaluateConfig, seed: int = 0) -> dict[str, Any]:
    """Turn the verdicts of every judge, the deciding one first, into the content of win_rates.json.

    That of the first judge (`win_rates`), those of the others by name below OTHERS, and the agreement of every two of them
    below AGREEMENT. Raises UserError as `win_rates` does.
    """
    first, *others = ((model, win_rates(own, settings, seed)) for model, own in rows.items())
    agreed = {f"{one} and {two}": agreement(rows[one], rows[two]) for one, two in combinations(rows, 2)}
    return first[1] | {OTHERS: dict(others), AGREEMENT: agreed}


def by_question(rows: Iterable[Row]) -> list[Row]:
    """Put the two orders of a pair together: the preference is their mean, missing if either verdict is.

    One order alone would bring the position bias in.
    """
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault((row[col.BENCHMARK], row[col.ID]), []).append(row)
    return [own[0] if len(own) == 1 else _together(own) for own in found.values()]


def each_once(rows: Iterable[Row]) -> list[Row]:
    """Leave out pairs that another benchmark has too, such as AlpacaEval most questions of Koala, which add no evidence.

    rows: one of every pair. Equal are the conversation and both answers; one with a verdict stays.
    """
    found: dict[Any, Row] = {}
    for row in sorted(rows, key=itemgetter(col.ID)):
        turns = [[turn["role"], turn["content"]] for turn in row[col.MESSAGES] or ()]
        key = col.digest([turns, row[col.TEXT_CANDIDATE], row[col.TEXT_REFERENCE]]) if turns else row[col.ID]
        if key not in found or found[key][col.PREFERENCE] is None:
            found[key] = row
    return [*found.values()]


def _together(rows: Sequence[Row]) -> Row:
    preferences = [row[col.PREFERENCE] for row in rows]
    missing = [row for row in rows if row[col.PREFERENCE] is None]
    counts = {name: sum(row[name] or 0 for row in rows) for name in (col.PROMPT_TOKENS, col.GENERATED_TOKENS)}
    return {
        **(missing or rows)[0],
        **counts,
        col.CANDIDATE_FIRST: None,
        col.PREFERENCE: None if missing else sum(preferences) / len(preferences),
    }


def agreement(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Any]:
    """Measure how two judges agree over the `n` questions on which both have a verdict: candidate, tie or reference.

    `share` in [0, 1]; `kappa` is Cohen's, 1 = always, 0 = as by chance, None where both always choose alike.
    """
    verdicts: list[dict[Any, int]] = []
    for own in (rows, others):
        known = (row for row in by_question(own) if row[col.PREFERENCE] is not None)
        verdicts.append({(row[col.BENCHMARK], row[col.ID]): int(np.sign(row[col.PREFERENCE] - TIE)) for row in known})
    both = [key for key in verdicts[0] if key in verdicts[1]]
    if not both:
        return {"n": 0, "share": None, "kappa": None}
    one, two = ([own[key] for key in both] for own in verdicts)
    from sklearn.metrics import cohen_kappa_score

    kappa = None if len({*one, *two}) == 1 else float(cohen_kappa_score(one, two))
    return {"n": len(both), "share": float(np.mean(np.equal(one, two))), "kappa": kappa}


def win_rates(rows: Sequence[Row], settings: EvaluateConfig, seed: int = 0) -> dict[str, Any]:
    """Turn one judge's verdicts into figures: win rates overall and by benchmark, position bias, the share that was read.

    `rows` are of `columns.VERDICTS`, one or both orders of every pair; pairs are counted, overall those of several benchmarks
    once. `settings` configures the intervals.
    Raises UserError when there is no verdict at all.
    """
    shown, rows = rows, by_question(rows)
    reasons = Counter((row[col.ERROR] or "unknown").split(":")[0] for row in rows if row[col.STATUS] != col.STATUS_OK)
    sent = [row for row in shown if row[col.TEXT_CANDIDATE] is not None and row[col.TEXT_REFERENCE] is not None]
    read = sum(row[col.PREFERENCE] is not None for row in sent)
    if not any(row[col.PREFERENCE] is not None for row in rows):
        raise UserError("no pair has a verdict", got=dict(reasons), fix="see the column 'error' of the verdicts")
    groups = {OVERALL: each_once(rows)}
    benchmarks = sorted({str(row[col.BENCHMARK]) for row in rows})
    if len(benchmarks) > 1:
        groups |= {name: [row for row in rows if str(row[col.BENCHMARK]) == name] for name in benchmarks if name != OVERALL}
    return {
        "candidate": rows[0][col.CANDIDATE],
        "reference": rows[0][col.REFERENCE],
        "judge": next((row[col.JUDGE] for row in rows if row[col.JUDGE]), None),
        "benchmarks": benchmarks,
        "rows": len(rows),
        "quarantined": sum(reasons.values()),
        "reasons": dict(reasons),
        "parse_rate": read / len(sent),
        "win_rates": {
            name: asdict(_rate(group, settings, seed))
            for name, group in groups.items()
            if any(row[col.PREFERENCE] is not None for row in group)
        },
        "position_bias": asdict(
            position_bias(*([row[name] for row in shown] for name in (col.PREFERENCE, col.CANDIDATE_FIRST, col.ID)))
        ),
        "prompt_hashes": sorted({row[col.PROMPT_HASH] for row in rows if row[col.PROMPT_HASH]}),
        col.PROMPT_TOKENS: sum(row[col.PROMPT_TOKENS] or 0 for row in rows),
        col.GENERATED_TOKENS: sum(row[col.GENERATED_TOKENS] or 0 for row in rows),
    }


def metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Name the figures as MLflow shows them: win_rate.<benchmark>, and its .ci_low, .ci_high and .n, in percent.

    Those of further judges begin with judge_2 and so on, in their order.
    """
    named: dict[str, float | None] = {"parse_rate": result["parse_rate"], "quarantined": result["quarantined"]}
    for source, rate in result["win_rates"].items():
        for name, interval in (("win_rate", "win_rate"), ("length_controlled_win_rate", "length_controlled")):
            ends = {".ci_low": rate[f"{interval}_low"], ".ci_high": rate[f"{interval}_high"], ".n": rate["n_valid"]}
            named |= {f"{name}.{source}{end}": value for end, value in {"": rate[name], **ends}.items()}
        for side in ("candidate", "reference"):
            named[f"mean_length_{side}.{source}"] = rate[f"mean_length_{side}"]
    named |= {f"position_bias.{name}": value for name, value in result["position_bias"].items()}
    for place, other in enumerate(result.get(OTHERS, {}).values(), start=2):
        named |= {f"judge_{place}.{name}": value for name, value in metrics(other).items()}
    judges = [f"judge_{place}" for place in range(1, len(result.get(OTHERS, {})) + 2)]
    for (one, two), found in zip(combinations(judges, 2), result.get(AGREEMENT, {}).values(), strict=True):
        named |= {f"agreement.{one}.{two}.{name}": value for name, value in found.items()}
    return named


def win_rate_line(result: Mapping[str, Any]) -> str:
    """Write the win rates in one line."""
    rate, bias = result["win_rates"][OVERALL], result["position_bias"]
    text = f"wins {_percent(rate, 'win_rate', 'win_rate')} against {result['reference']}, "
    text += f"{_percent(rate, 'length_controlled_win_rate', 'length_controlled')} at equal lengths; "
    missing = ", ".join(f"{count} {reason}" for reason, count in (result.get("reasons") or {}).items())
    text += f"{rate['n_valid']} of {rate['n']} verdicts{f' ({missing})' if missing else ''}; "
    text += f"{rate['mean_length_candidate']:.0f} and {rate['mean_length_reference']:.0f} characters"
    text += "" if bias["difference"] is None else f"; position bias {bias['difference']:+.2f}"
    if bias.get("flipped") is not None:
        text += f", {bias['flipped']:.0%} of the verdicts change with the order"
    for model, other in result.get(OTHERS, {}).items():
        text += f"; by {model} {_percent(other['win_rates'][OVERALL], 'win_rate', 'win_rate')}"
    for judges, found in result.get(AGREEMENT, {}).items():
        text += "" if found["share"] is None else f"; {judges} agree on {found['share']:.0%}"
    return text


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
