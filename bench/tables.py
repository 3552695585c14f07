"""Write docs/benchmarks.md and the table of the README from bench/results/*.json, so that no figure is typed.

.venv/bin/python bench/tables.py            write both
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
START, END = "<!-- benchmarks: written by bench/tables.py -->", "<!-- end of benchmarks -->"
INTRODUCTION = """# Benchmarks

Each benchmark runs a peer next to this package in one run, prints a table, and writes it to `bench/results/NAME.json`.
This page is written from these files by `bench/tables.py`. Ratios compare two measurements of one run on one machine; absolute
figures differ between machines (a product in bfloat16 is several times faster than in float32 on one processor and half
as fast on another). The column "better" tells which way a ratio should go (equal: near 1); "aim met" compares the value with
its aim where that is a number. Run the commands from the repository's root with `.venv/bin/python`; data files are those of
the data sets that they are named after (Dolly, GSM8K, AlpacaEval).
"""
TEXTS = yaml.safe_load((ROOT / "bench" / "tables.yaml").read_text(encoding="utf-8"))
# By the start of a benchmark's name; the first that fits counts.
COMPARED: dict[str, str] = TEXTS["compared"]
# Parts of bench/gpu_check.py's file that are tables.
PARTS: dict[str, str] = TEXTS["parts"]
# Which way a ratio should go where its aim is not a bound, by a word in its name; the first that fits counts.
BETTER = {
    "NLL": "lower",
    "difference": "lower",
    "distance": "lower",
    "memory": "lower",
    "time": "lower",
    "failure": "lower",
    "before": "lower",
    "after": "lower",
    "equal": "equal",
    "tokens that are scored": "neither: how much of the prompts is scored",
    "tokens/s": "higher",
    "passed": "higher",
    "actors over": "higher",
    "in flight over": "higher",
    "over the bare engine": "higher",
    "end to end": "higher",
}
# What the README shows: the benchmark, the ratio's name in its file, and what it says.
SHOWN = (
    (
        "elicit_vs_ray_data_llm",
        "end to end at 512 rows",
        "scoring 512 rows, start-up included: `ray.data.llm`'s time over ours",
    ),
    ("elicit_vs_bare_vllm", "two one-thread actors over the bare engine", "rows/s of two actors over one bare `vllm.LLM` call"),
    ("evaluate_vs_lm_eval", "rows/s, end to end", "GSM8K rows/s over lm-evaluation-harness, equal answers and scores"),
    ("loss", "float32: time over full logits", "time of the smoothed loss over cross-entropy on full logits"),
    ("loss", "float32: peak memory over full logits", "peak memory of the same"),
    (
        "train_step_vs_trl_float32",
        "tokens/s, ours, UAL, activation checkpointing, over TRL, gradient checkpointing",
        "training tokens/s over TRL, both with gradient checkpointing",
    ),
    (
        "train_step_vs_trl_float32",
        "peak memory, ours, UAL, activation checkpointing, over TRL, gradient checkpointing",
        "peak memory of the same",
    ),
    (
        "train_step_vs_trl_float32",
        "tokens/s, ours, UAL, activation checkpointing but for products, over TRL",
        "training tokens/s over TRL, neither computing a product twice",
    ),
    (
        "train_step_vs_trl_float32",
        "peak memory, ours, UAL, activation checkpointing but for products, over TRL",
        "peak memory of the same",
    ),
    (
        "train_step_vs_trl_float32",
        "time of the UAL arm over the SFT arm, same batches in turn",
        "time of a UAL step over an SFT step",
    ),
    ("growth", "rows/s at 1,000,000 over 100,000", "elicitation without an engine: rows/s at 1e6 rows over those at 1e5"),
)


def results() -> dict[str, dict[str, Any]]:
    """Read every benchmark's file, by name, but for those with a page of their own."""
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}
    return {name: content for name, content in found.items() if "described in" not in content}


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the page: of each benchmark its command, machine, date, measurements and ratios."""
    return INTRODUCTION + "".join(_section(name, content) for name, content in found.items())


def readme_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the README's table."""
    lines = ["| what is compared | ratio | command |", "|---|---|---|"]
    for name, ratio, what in SHOWN:
        content = found[name]
        lines.append(f"| {what} | {number(content['ratios'][ratio]['value'])} | `{content['command'].split()[0]}` |")
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    """Put the table between the README's marks."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table}\n{END}{after}"


def number(value: Any) -> str:
    """Write a figure with three significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def better(what: str, aim: str) -> str:
    """Tell which way a ratio should go: as its aim says, else as its name does."""
    if aim.startswith((">", "<", "below")):
        return "higher" if aim.startswith(">") else "lower"
    return next(way for word, way in BETTER.items() if word in what)


def is_met(value: float, aim: str) -> bool | None:
    """Tell whether a value meets its aim; None where the aim is neither a bound nor a number."""
    found = re.match(r"(>=|<=|below) ([\d.e-]+)|([\d.]+)$", aim)
    if found is None:
        return None
    if found[3]:
        return value == float(found[3])
    bound = float(found[2])
    return value >= bound if found[1] == ">=" else value <= bound if found[1] == "<=" else value < bound


def compared(name: str) -> str:
    """Say what a benchmark compares and how to read its tables."""
    return next(text for start, text in COMPARED.items() if name.startswith(start))


def _section(name: str, content: Mapping[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in content.get("machine", {}).items() if key != "when")
    lines = [f"\n## {name}\n", f"`{content.get('command', 'no command was recorded')}`  "]
    when = content.get("when") or content.get("machine", {}).get("when", "")
    lines += [f"{when[:10]}; {machine}; [JSON](../bench/results/{name}.json)\n", f"{compared(name)}\n"]
    if ratios := content.get("ratios"):
        lines += [_summary(ratios), "", "| ratio | value | better | aim | aim met |", "|---|---|---|---|---|"]
        lines += [_ratio(what, **ratio) for what, ratio in ratios.items()]
        lines.append("")
    lines += _table(content.get("measurements") or [])
    for part, text in PARTS.items():
        if cases := content.get(part):
            lines += [f"{part}: {text}\n", *_table([{"case": case, **found} for case, found in cases.items()])]
    return "\n".join(lines)


def _summary(ratios: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how many aims are met, and name those that are not."""
    met = {what: is_met(ratio["value"], ratio["aim"]) for what, ratio in ratios.items()}
    missed = [
        f"{what} ({number(ratios[what]['value'])}, aim {ratios[what]['aim']})" for what, is_ in met.items() if is_ is False
    ]
    aims = len(met) - [*met.values()].count(None)
    if not aims:
        return "No aim is a number."
    if not missed:
        return f"Aims met: {aims} of {aims}."
    return f"Aims met: {aims - len(missed)} of {aims}. **Not met: {'; '.join(missed)}.**"


def _ratio(what: str, value: float, aim: str) -> str:
    reached = {True: "yes", False: "**no**", None: "-"}[is_met(value, aim)]
    return f"| {what} | {number(value)} | {better(what, aim)} | {aim} | {reached} |"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write rows as a table of their plain values; nothing where rows differ in what they hold."""
    flat = [{key: value for key, value in row.items() if not isinstance(value, dict | list)} for row in rows]
    if not flat or any(row.keys() != flat[0].keys() for row in flat):
        return []
    head = [f"| {' | '.join(flat[0])} |", "|" + "---|" * len(flat[0])]
    return [*head, *(f"| {' | '.join(number(row[key]) for key in flat[0])} |" for row in flat), ""]


def main() -> None:
    """Write the page and the table."""
    found = results()
    PAGE.write_text(page(found), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), readme_table(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
