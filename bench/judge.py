"""The judge: pairs judged per second, and how near the win rates come to those of AlpacaEval's own package.

    python bench/judge.py --data ../shared/data/alpaca_eval_300.jsonl [--rows 120] [engine.max_actors=1]
    python bench/judge.py --preferences ../shared/data/alpaca_eval_preferences.csv \
        --winrates ../shared/data/alpaca_eval_winrates.csv

--data: rows with instruction, output_reference and output_candidate. --preferences: model, index, len_reference,
len_candidate, preference; --winrates: model, win_rate, lc_win_rate_minimal, leaderboard_lc_win_rate, in percent.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import report
from rich.console import Console

from ual_ray import columns as col
from ual_ray.columns import Message
from ual_ray.config.load import load
from ual_ray.judge.pairs import AnswerSet
from ual_ray.judge.stage import Judging, judge_pairs
from ual_ray.judge.win_rate import length_controlled_win_rate
from ual_ray.parquet import write_rows
from ual_ray.run.cluster import ray_cluster
from ual_ray.run.progress import Meter, meter

RAW_AIM, CONTROLLED_AIM = 1e-6, 0.1


def read_pairs(path: Path, count: int) -> list[dict[str, Any]]:
    """Read the first rows of a file as a candidate's results, with the reference's answer beside them."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[:count]:
        entry = json.loads(line)
        messages = [Message(role="user", content=entry["instruction"])]
        texts = {col.PREDICTION: entry["output_candidate"], col.REFERENCE: entry["output_reference"]}
        where = {col.BENCHMARK: "alpaca_eval", col.SOURCE: entry["dataset"], col.MODEL: "candidate", col.STATUS: col.STATUS_OK}
        rows.append({col.ID: col.content_id(messages), col.MESSAGES: messages} | texts | where)
    return rows


def measure_speed(data: Path, count: int, settings: list[str]) -> None:
    """Judge the pairs with the demo model; report rows per second."""
    config = load(
        None, ["judge.model=demo", "judge.min_parse_share=0", "judge.orders=random", "engine.max_model_len=4096", *settings]
    )
    rows = read_pairs(data, count)
    meters: dict[str, Meter] = {}
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str, total: int) -> Iterator[Meter]:
        started = time.monotonic()
        with meter(Console(), name, total, "rows") as shown:
            yield meters.setdefault(name, shown)
        seconds[name] = time.monotonic() - started

    with tempfile.TemporaryDirectory() as place, ray_cluster(config.runtime):
        folder = Path(place)
        write_rows(rows, col.RESULTS, folder / "results.parquet")
        side = AnswerSet(folder / "results.parquet")
        started = time.monotonic()
        result = judge_pairs(config, Judging(side, AnswerSet(None), folder, {"demo": folder / "store"}, timed, print))
        total = time.monotonic() - started
    # The first rows are done when the first batch is: the rate begins there, without the time that loading takes.
    measured = {
        "": "judge_pairs",
        "pairs": len(rows),
        "all (s)": total,
        "of it trial (s)": seconds["judge: trial"],
        "rows/s, all in": len(rows) / total,
        "rows/s, once loaded": meters["judge"].rate(),
        "prompt tokens/row": result["prompt_tokens"] / len(rows),
        "verdicts read": result["parse_rate"],
        "position bias": result["position_bias"]["difference"],
    }
    report("judge", [measured], {}, judge="demo", engine=config.engine.model_dump(mode="json"))


def read_preferences(path: Path) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Read preferences, and lengths of the reference's and of the model's answers, by model."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows[row["model"]].append(row)
    return {
        model: (
            [float(row["preference"] or "nan") for row in own],
            [float(row["len_reference"]) for row in own],
            [float(row["len_candidate"]) for row in own],
        )
        for model, own in rows.items()
    }


def measure_parity(preferences: Path, winrates: Path) -> None:
    """Hold the win rates against those that AlpacaEval computed from the same preferences, and against its leaderboard's."""
    models = read_preferences(preferences)
    with winrates.open(encoding="utf-8", newline="") as file:
        known = {row["model"]: {key: float(row[key]) for key in row if key != "model"} for row in csv.DictReader(file)}
    measurements = []
    for model, judged in models.items():
        rate = length_controlled_win_rate(*judged)
        theirs = known[model]
        assert rate.length_controlled_win_rate is not None
        measurements.append(
            {
                "model": model,
                "raw": rate.win_rate,
                "raw off": abs(rate.win_rate - theirs["win_rate"]),
                "controlled": rate.length_controlled_win_rate,
                "interval": f"{rate.length_controlled_low:.1f} to {rate.length_controlled_high:.1f}",
                "theirs": theirs["lc_win_rate_minimal"],
                "off": abs(rate.length_controlled_win_rate - theirs["lc_win_rate_minimal"]),
                "leaderboard": theirs["leaderboard_lc_win_rate"],
            }
        )
    report("judge_parity", measurements, _distances(measurements))


def _distances(measurements: list[dict[str, Any]]) -> Mapping[str, tuple[float, str]]:
    from_leaderboard = sum(abs(row["controlled"] - row["leaderboard"]) for row in measurements) / len(measurements)
    return {
        "raw, furthest off (points)": (max(row["raw off"] for row in measurements), f"<= {RAW_AIM}"),
        "controlled, furthest off (points)": (max(row["off"] for row in measurements), f"<= {CONTROLLED_AIM}"),
        "mean distance from the leaderboard, length alone": (from_leaderboard, "-"),
    }


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--preferences", type=Path)
    parser.add_argument("--winrates", type=Path)
    parser.add_argument("settings", nargs="*", help="overrides, such as engine.max_actors=1")
    options = parser.parse_args()
    if options.preferences and options.winrates:
        measure_parity(options.preferences, options.winrates)
    if options.data:
        measure_speed(options.data, options.rows, options.settings)


if __name__ == "__main__":
    main()
