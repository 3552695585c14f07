"""What the scores are worth: 20% of the responses are replaced by another row's; does each estimator find them?

    python bench/elicitor_quality.py --data ../shared/data/dolly_3k.json [--rows 200] [--page report.html] [elicit.samples=5]

Runs `ual elicit` and `ual inspect --labels` on the damaged rows and reports AUROC (0.5 = chance) and PRR per estimator.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from common import read_rows, report

from ual_ray import columns as col
from ual_ray.columns import Message, Messages
from ual_ray.config.registry import ESTIMATORS

DAMAGED = 0.2


def damage(rows: list[Messages], seed: int) -> list[tuple[Messages, bool]]:
    """Give a fifth of the rows the response of another of them; return the rows and whether each is still right."""
    chosen = random.Random(seed).sample(range(len(rows)), round(DAMAGED * len(rows)))
    # Each takes the response of the next: nobody keeps its own.
    donors = dict(zip(chosen, [*chosen[1:], chosen[0]], strict=True))
    damaged: list[tuple[Messages, bool]] = []
    for index, messages in enumerate(rows):
        response = rows[donors.get(index, index)][-1]["content"]
        damaged.append(([*messages[:-1], Message(role="assistant", content=response)], index not in donors))
    return damaged


def main() -> None:
    """Damage, score, inspect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="keep the uncertainty report here")
    parser.add_argument("settings", nargs="*", help="overrides of `ual elicit`")
    options = parser.parse_args()
    rows = damage(read_rows(options.data, options.rows), options.seed)
    name = Path(options.data).stem
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data, labels, out = folder / f"{name}.jsonl", folder / "labels.csv", folder / "out"
        data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages, _ in rows))
        labels.write_text("id,correct\n" + "".join(f"{col.content_id(messages)},{int(right)}\n" for messages, right in rows))
        estimators = f"elicit.estimators=[{','.join(ESTIMATORS)}]"
        settings = ["data.test_share=0", "data.validation_share=0", estimators, "engine.max_model_len=2048", *options.settings]
        subprocess.run([sys.executable, "-m", "ual_ray", "elicit", str(data), *settings, "-o", str(out)], check=True)
        page = (options.page or folder / "inspection.html").absolute()
        subprocess.run(
            [sys.executable, "-m", "ual_ray", "inspect", str(out), "--labels", str(labels), "--html", str(page)], check=True
        )
        figures = json.loads(page.with_suffix(".json").read_text())
    measurements = [{"": name, **values} for name, values in figures["quality"].items()]
    report(f"elicitor_quality_{name}", measurements, {}, rows=options.rows, damaged=DAMAGED, settings=options.settings)


if __name__ == "__main__":
    main()
