"""Smoothing as a step of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.config import SmoothConfig
from ual_ray.parquet import content_digest
from ual_ray.run.stage_cache import Done, run_stage, stage_digest
from ual_ray.run.step import Place, Session
from ual_ray.smooth.stage import histogram, smooth


def smooth_step(session: Session, name: str, spec: SmoothConfig, scored: Path, place: Place) -> Done:
    """Give every training row its alpha; `folder`/smoothed.parquet. Prints the distribution before anything is trained."""
    inputs = {"scored": content_digest(scored, col.SMOOTHING_READS), "spec": spec.model_dump(), "seed": session.config.seed}
    folder = place(stage_digest(inputs))

    def work() -> dict[str, Any]:
        return smooth(scored, spec, session.config.seed, folder, str(inputs["scored"]))

    done = run_stage(folder, inputs, work, force="smooth" in session.force)
    figures = done.figures
    text = f"{figures['map']}: alpha mean {figures['mean']:.3f}, {figures['min']:.3f} to {figures['max']:.3f}"
    text += f"; {figures['missing']} scores missing ({spec.missing}), {figures['excluded']:.0f} rows excluded"
    session.finish(f"smooth {name}", done, text)
    bars = histogram(folder / col.SMOOTHED_FILE)
    if len(bars) > 1:
        longest = max(count for _, _, count in bars)
        for low, high, count in bars:
            session.console.print(
                f"{'':<15}{low:.3f} - {high:.3f} {'█' * round(30 * count / longest)} {count}", highlight=False
            )
    return done
