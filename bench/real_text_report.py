"""Compare the arms that bench/real_text.py trained: tables as Markdown, validation NLL as SVG, all figures as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("open_ended", "deterministic")
PAGE = "docs/results.md"
# What smoothing does, and what uncertainty does beyond it.
PAIRS = (("shuffled_within", "sft"), ("ual", "shuffled_within"))
# Per question: sums over its tokens, and their number.
MEASURES = ("nll", "nll_scaled", "nll_adjusted", "brier", "errors")
NAMES = {"nll_scaled": "NLL scaled", "brier": "Brier"}
ORDER = ("sft", "constant", "shuffled_within", "ual")
# By arm and seed: facts, and the sums of each test question.
Cases = Mapping[tuple[str, int], tuple[dict[str, Any], dict[str, Any]]]


def report(options: argparse.Namespace) -> None:
    """Compare the arms over seeds, per folder; print tables, draw curves, and write all figures as JSON."""
    runs = [report_folder(folder) for folder in options.folders]
    command = f"bench/real_text.py report OUT.json FOLDER ({len(runs)} folders)"
    options.out.write_text(
        json.dumps({"name": options.out.stem, "command": command, "described in": PAGE, "runs": runs}, indent=1) + "\n"
    )
    draw(runs, options.out.with_suffix(".svg"))


def report_folder(folder: Path) -> dict[str, Any]:
    """Read a folder's cases; print means, comparisons and curves."""
    cases: Cases = {
        (facts["arm"], facts["seed"]): (facts, values) for facts, values in map(read_case, sorted(folder.glob("*.npz")))
    }
    arms = sorted({name for name, _ in cases} - {"base"}, key=ORDER.index)
    strata = strata_of(cases[("base", 0)][1])
    about = json.loads((folder / "elicited.json").read_text())
    print(f"\n## {about['corrupted']:.0%} of the training responses corrupted\n\n{json.dumps(about)}")
    means = print_means(cases, strata, arms)
    compared = list(comparisons(cases, strata, arms))
    print_comparisons(compared)
    print("", *where_it_helps(compared), sep="\n")
    facts = [case[0] for case in cases.values()]
    print("", *by_epochs(facts), sep="\n")
    print_curves(facts)
    return {"about": about, "means": means, "cases": facts, "comparisons": compared}


def strata_of(base: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """Split the test questions by kind, and each kind at its median NLL under the model before training."""
    strata = {"all": np.ones(len(base["tokens"]), dtype=bool)} | {kind: base["kind"] == kind for kind in KINDS}
    nll = base["nll"] / base["tokens"]
    for kind in KINDS:
        certain = nll <= np.median(nll[strata[kind]])
        strata |= {f"{kind}, certain half": strata[kind] & certain, f"{kind}, uncertain half": strata[kind] & ~certain}
    return strata


def print_means(cases: Cases, strata: Mapping[str, Any], arms: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Print means over seeds with the standard deviation between them; return the values of all seeds."""
    means = {}
    for stratum, chosen in strata.items():
        print(f"\n{stratum} (mean over seeds, standard deviation between them), per token:\n")
        print(f"| arm | {' | '.join(MEASURES)} |\n|---|{'---|' * len(MEASURES)}")
        for arm in ("base", *arms):
            own = [values for (name, _), (_, values) in cases.items() if name == arm]
            parts = {name: [float(x[name][chosen].sum() / x["tokens"][chosen].sum()) for x in own] for name in MEASURES}
            means[f"{stratum}: {arm}"] = parts
            spread = {name: f" ({np.std(x, ddof=1):.4f})" if len(x) > 1 else "" for name, x in parts.items()}
            print(f"| {arm} | {' | '.join(f'{np.mean(x):.4f}{spread[name]}' for name, x in parts.items())} |")
    return means


def print_comparisons(compared: Sequence[Mapping[str, Any]]) -> None:
    """Print differences with their intervals and verdicts."""
    print("\n| stratum | measure | arms | difference [95% interval] | p (Holm) | verdict |\n|---|---|---|---|---|---|")
    for one in compared:
        arms = f"{one['arm']} - {one['reference']}"
        print(f"| {one['stratum']} | {one['measure']} | {arms} | {difference(one)} | {one['p_holm']:.4f} | {one['verdict']} |")


def where_it_helps(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the page's table of where smoothing, and where uncertainty, helps: a line per kind of question and its halves."""
    shown = [(measure, pair) for measure in NAMES for pair in PAIRS]
    by = {(one["stratum"], one["measure"], (one["arm"], one["reference"])): one for one in compared}
    head = [f"{NAMES[measure]}: {' - '.join(pair)}" for measure, pair in shown]
    lines = [f"| test questions | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for stratum in [f"{kind}{half}" for kind in KINDS for half in ("", ", certain half", ", uncertain half")]:
        cells = [difference(by[stratum, measure, pair]) for measure, pair in shown]
        lines.append(f"| {stratum} | {' | '.join(cells)} |")
    return lines


def by_epochs(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the page's table by epochs: differences of the raw validation NLL with their t intervals over seeds, which pair."""
    from scipy import stats

    curves = {
        (fact["arm"], fact["seed"]): np.array(fact["validation nll by step"])[:, 1] for fact in facts if fact["arm"] in ORDER
    }
    columns = []
    for arm, reference in PAIRS:
        seeds = sorted({seed for name, seed in curves if name == arm} & {seed for name, seed in curves if name == reference})
        found = np.array([curves[arm, seed] - curves[reference, seed] for seed in seeds])[:, 1:]
        margin = stats.t.ppf(0.975, len(seeds) - 1) * found.std(axis=0, ddof=1) / np.sqrt(len(seeds))
        columns.append([f"{x:+.4f} [{x - m:+.4f}, {x + m:+.4f}]" for x, m in zip(found.mean(axis=0), margin, strict=True)])
    head = [f"validation NLL: {' - '.join(pair)}" for pair in PAIRS]
    lines = [f"| epochs | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return lines + [f"| {epoch} | {' | '.join(cells)} |" for epoch, cells in enumerate(zip(*columns, strict=True), start=1)]


def difference(compared: Mapping[str, Any]) -> str:
    """Write a difference with its interval."""
    low, high = compared["interval"]
    return f"{compared['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def print_curves(facts: Sequence[Mapping[str, Any]]) -> None:
    """Print the validation NLL by step, and what was fitted on validation rows."""
    print("\n| arm, seed | validation NLL by step | temperature | temperature, floor |\n|---|---|---|---|")
    for fact in facts:
        curve = ", ".join(f"{step:.0f}: {value:.4f}" for step, value in fact.get("validation nll by step", []))
        adjusted = ", ".join(f"{value:.3f}" for value in fact["adjusted"])
        print(f"| {fact['arm']}, {fact['seed']} | {curve} | {fact['temperature']:.3f} | {adjusted} |")


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the validation NLL by step, mean over seeds and their range; a panel per share of corrupted responses."""
    from matplotlib import rc_context

    from ual_ray.plots.style import STYLE, grid_of, legend, line_style, readable

    with rc_context(STYLE):
        figure, panels = grid_of(len(runs), 1, 2.6)
        handles = {}
        for axes, run in zip(panels, runs, strict=True):
            curves: dict[str, list[Any]] = {}
            for fact in run["cases"]:
                if fact["arm"] in ORDER:
                    curves.setdefault(fact["arm"], []).append(np.array(fact["validation nll by step"]))
            for place, arm in enumerate(name for name in ORDER if name in curves):
                steps, values = curves[arm][0][:, 0], np.array([curve[:, 1] for curve in curves[arm]])
                style = line_style(place)
                (handles[readable(arm)],) = axes.plot(steps, values.mean(0), **style, marker="o", markersize=3.5)
                axes.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15)
            axes.set(xlabel="optimizer step", ylabel="validation NLL, nats per token")
            axes.set_title(f"{run['about']['corrupted']:.0%} of the training responses corrupted", loc="left")
            axes.grid(axis="y")
        legend(figure, handles, 4)
        figure.savefig(path, metadata={"Date": None})


def comparisons(cases: Cases, strata: Mapping[str, Any], arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Compare ual with the others, and smoothed arms with sft, by question and seed; Holm per measure and stratum."""
    from ual_ray.stats.bootstrap import LEVEL, bootstrap, holm, resampled_sums, verdict

    pairs = [("ual", arm) for arm in arms if arm != "ual"] + [(arm, "sft") for arm in arms if arm not in ("sft", "ual")]
    for stratum, chosen in strata.items():
        for measure in MEASURES:
            found = []
            for arm, reference in pairs:
                seeds = sorted(
                    {seed for name, seed in cases if name == arm} & {seed for name, seed in cases if name == reference}
                )
                sides = [cases[name, seed][1] for seed in seeds for name in (arm, reference)]
                columns = np.column_stack([x[part][chosen] for x in sides for part in (measure, "tokens")])
                found.append((len(seeds), bootstrap(columns, resampled_sums(columns), LEVEL)))
            adjusted = holm([estimate.p_value for _, estimate in found]).tolist()
            for (arm, reference), (count, estimate), p_holm in zip(pairs, found, adjusted, strict=True):
                yield {
                    "stratum": stratum,
                    "measure": measure,
                    "arm": arm,
                    "reference": reference,
                    "difference": estimate.difference,
                    "interval": [estimate.ci_low, estimate.ci_high],
                    "p_holm": p_holm,
                    "seeds": count,
                    "n": estimate.n,
                    "verdict": verdict(estimate.difference, p_holm, "lower", count),
                }


def read_case(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_case` wrote."""
    with np.load(file, allow_pickle=False) as content:
        return json.loads(str(content["facts"])), {name: content[name] for name in content.files if name != "facts"}
