"""`ual promote`: give an arm's registered model the alias `champion`, if the run's comparison says that it is better."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ual_ray.errors import UserError
from ual_ray.settings import MASK, load, redact_uri
from ual_ray.workspace import CONFIG_FILE, DONE_FILE

COMPARISON_FILE = Path("report", "comparison.json")
# What an arm has to be better in, and than the first of which: unsmoothed NLL tells arms apart with the fewest rows.
METRIC, BENCHMARK = "nll", "held_out"
REFERENCES = ("sft", "base")
BETTER, WORSE = "better", "worse"
PROMOTED = "ual_ray.promoted_by"


def promote(run_folder: Path, console: Console, arm: str | None = None, uri: str | None = None) -> str:
    """Promote an arm, by default the only one that may be; return the version's number.

    uri: the MLflow store, by default the run's. Raises UserError when the comparison is missing, or speaks against it.
    """
    comparisons = read_comparisons(run_folder)
    chosen = arm or _only_promotable(comparisons)
    if objection := objection_to(chosen, comparisons):
        raise UserError(
            f"the arm '{chosen}' is not promoted: {objection}",
            legal=f"an arm that is better in {METRIC} on {BENCHMARK} than {' or '.join(REFERENCES)}, and worse in nothing",
            fix="see report/report.md of the run; more rows or seeds may tell arms apart",
        )
    reason = describe(next(x for x in primary(chosen, comparisons) if x["verdict"] == BETTER))
    name, version = _promote_version(run_folder, chosen, uri, reason)
    console.print(f"{name} version {version} is now the champion: {reason}", highlight=False)
    return version


def read_comparisons(run_folder: Path) -> list[dict[str, Any]]:
    """Read what the report found. Raises UserError when there is no report."""
    file = run_folder / COMPARISON_FILE
    if not file.is_file():
        raise UserError("there is no comparison to promote by", value=file, fix="`ual run` the pipeline to its report first")
    return json.loads(file.read_text(encoding="utf-8"))["comparisons"]


def primary(arm: str, comparisons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the arm's comparisons in the primary metric, against the first reference that there is."""
    found = [x for x in comparisons if (x["arm"], x["metric"], x["benchmark"]) == (arm, METRIC, BENCHMARK)]
    for reference in REFERENCES:
        if against := [x for x in found if x["reference"] == reference]:
            return against
    return []


def objection_to(arm: str, comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """Say what stands against promoting an arm; None when nothing does."""
    mine = [x for x in comparisons if x["arm"] == arm]
    if not mine:
        return f"it was not compared; the arms are {', '.join(_arms(comparisons)) or 'none'}"
    if worse := [x for x in mine if x["verdict"] == WORSE]:
        return "; ".join(map(describe, worse))
    first = primary(arm, comparisons)
    if not first:
        return f"its {METRIC} on {BENCHMARK} was not compared with {' or '.join(REFERENCES)}"
    return None if any(x["verdict"] == BETTER for x in first) else "; ".join(map(describe, first))


def describe(comparison: Mapping[str, Any]) -> str:
    """Word a comparison with its interval, its p value after Holm, and its n."""
    low, high = comparison["ci_low"], comparison["ci_high"]
    return (
        f"{comparison['metric']} on {comparison['benchmark']} against {comparison['reference']}: {comparison['verdict']}, "
        f"difference {comparison['difference']:+.4g} ({low:+.4g} to {high:+.4g}), p {comparison['p_holm']:.3g}, "
        f"n {comparison['n']}"
    )


def trained_folder(run_folder: Path, arm: str) -> Path:
    """Find the finished training of an arm; the newest of several. Raises UserError when there is none."""
    done = list(run_folder.glob(f"arms/{arm}/train/*/{DONE_FILE}"))
    if not done:
        raise UserError(f"the arm '{arm}' has no finished training in {run_folder}", fix="run the pipeline to its end")
    return max(done, key=lambda file: file.stat().st_mtime).parent


def _only_promotable(comparisons: Sequence[Mapping[str, Any]]) -> str:
    objections = {arm: objection_to(arm, comparisons) for arm in _arms(comparisons)}
    free = [arm for arm, objection in objections.items() if objection is None]
    if len(free) == 1:
        return free[0]
    if free:
        raise UserError("several arms may be promoted", value=", ".join(free), fix="name one with --arm")
    lines = "\n".join(f"  {arm}: {objection}" for arm, objection in objections.items())
    raise UserError(
        f"no arm may be promoted\n{lines}",
        legal=f"an arm that is better in {METRIC} on {BENCHMARK} than {' or '.join(REFERENCES)}, and worse in nothing",
    )


def _arms(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({x["arm"] for x in comparisons})


def _promote_version(run_folder: Path, arm: str, uri: str | None, reason: str) -> tuple[str, str]:
    from ual_ray.tracking import champion_of, default_uri, read_run

    tracking = load(run_folder / CONFIG_FILE).tracking
    address = uri or tracking.uri or default_uri(run_folder)
    if MASK in address:
        raise UserError("the address of the MLflow store holds a password", value=address, fix="give it with --uri")
    name, folder = f"{tracking.register_as}-{arm}", trained_folder(run_folder, arm)
    version = json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))["figures"].get("registered_version")
    run_id = read_run(folder, redact_uri(address)).get("run_id")
    return name, champion_of(address, name, version, run_id, {PROMOTED: reason})
