"""Is `ual plan` right? It plans two runs from a short trial; both then run, and every stage is compared.

    python bench/plan_accuracy.py [OUTPUT]

The trial is the demo with half of its rows. The first run is the demo; the second has a third arm and trains twice as long.
All three run for real, with the models and the engine of the demo.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import report

from ual_ray.config.load import load
from ual_ray.data.peek import peek
from ual_ray.elicit.stage import expected_rows
from ual_ray.plan.outline import outline
from ual_ray.plan.rates import read_trial

DEMO = Path(__file__).parents[1] / "jobs" / "configs" / "demo.yaml"
# Smaller batches, as the plan's own advice says: the rate of an engine shows only between batches.
TRIAL = ["data.max_rows=60", "engine.batch_size=8"]
RUNS = {
    "the demo": ["engine.batch_size=8"],
    "three arms, two epochs": ["engine.batch_size=8", "arms.shuffled.map=shuffled", "train.epochs=2"],
}
STAGES = {"training": "train", "evaluation": "evaluate", "calibration": "calibrate"}


def run(overrides: list[str], output: Path) -> None:
    """Run the demo with these settings; raises SystemExit with the end of what it printed where it fails."""
    command = [sys.executable, "-m", "ual_ray", "run", "-c", str(DEMO), *overrides, f"output={output}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{output.name} failed:\n{done.stdout[-4000:]}")


def measured_seconds(output: Path) -> dict[str, float]:
    """Sum the seconds of every stage that a plan times."""
    (elicited,) = output.glob("elicit/*/done.json")
    seconds = {"scoring": float(json.loads(elicited.read_text())["figures"]["scoring_seconds"])}
    for name, stage in STAGES.items():
        files = [*output.glob(f"base/{stage}/*/done.json"), *output.glob(f"arms/*/{stage}/*/done.json")]
        seconds[name] = sum(float(json.loads(file.read_text())["seconds"]) for file in files)
    return seconds


def planned_seconds(overrides: list[str], trial: Path) -> dict[str, float]:
    """Plan the run as `ual plan --trial` does."""
    config = load(DEMO, overrides)
    seen = peek(config.data)
    rows = expected_rows(config, seen)
    assert rows is not None
    measured = read_trial(trial, config.train.num_workers, config.engine.max_actors)
    return outline(config, seen, rows, measured).seconds


def main() -> None:
    """Plan both runs, run them, and report how far every stage was from its plan."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="plan"))
    run(TRIAL, folder / "trial")
    rows, ratios = [], {}
    for number, (name, overrides) in enumerate(RUNS.items()):
        planned = planned_seconds(overrides, folder / "trial")
        run(overrides, folder / f"run_{number}")
        measured = measured_seconds(folder / f"run_{number}")
        assert planned.keys() == measured.keys()
        for stage, seconds in measured.items():
            rows.append({"run": name, "stage": stage, "planned s": planned[stage], "measured s": seconds})
        off = abs(sum(planned.values()) / sum(measured.values()) - 1)
        ratios[f"{name}: error of the planned seconds, as a share of the measured ones"] = (off, "<= 0.2")
    report("plan_accuracy", rows, ratios, trial=TRIAL, runs=RUNS)


if __name__ == "__main__":
    main()
