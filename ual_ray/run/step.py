"""Each stage as a step of a run: its inputs' digest, its progress, its line on the terminal, its place in MLflow.

The pipeline and the single commands both go through here; a step that is done is recognised and not done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ual_ray.config import Config
from ual_ray.config.redact import redact_uri
from ual_ray.run.stage_cache import DONE_FILE, STAGES, Done
from ual_ray.tracking import Run, Tracker
from ual_ray.tracking.watcher import watched

# Where a step works, given the digest of its inputs: below it for the pipeline, a fixed folder for a single command.
Place = Callable[[str], Path]

LINEAGE_SCORED = "ual_ray.scored"
LINEAGE_PROMPTS = "ual_ray.prompt_hash"
LINEAGE_MAP = "ual_ray.map"
LINEAGE_SMOOTHED = "ual_ray.smoothed"
LINEAGE_MODEL = "ual_ray.base_model"
STAGE_TAG = "ual_ray.stage"
ARM_TAG = "ual_ray.arm"
UNKNOWN = "unknown"


def below(folder: Path) -> Place:
    """Work in a part of the folder, named by the digest."""
    return lambda key: folder / key


@dataclass
class Session:
    """What all steps of one command share; the Ray cluster is started by the first step that needs it."""

    config: Config
    console: Console
    tracker: Tracker | None
    force: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset(STAGES)
    parent: Run | None = None
    cluster: ExitStack = field(default_factory=ExitStack)
    _connected: bool = False

    def connect(self) -> None:
        """Start or join the Ray cluster, once."""
        if not self._connected:
            from ual_ray.run.cluster import check_cluster, ray_cluster

            self.cluster.enter_context(ray_cluster(self.config.runtime))
            for wait in check_cluster(self.config, self.stages):
                self.say("cluster", f"waiting for it to grow: {wait}")
            self._connected = True

    def say(self, step: str, text: str) -> None:
        """Print one step's line."""
        self.console.print(f"[bold]{step:<14}[/bold] {redact_uri(text)}", highlight=False)

    def say_failures(self) -> None:
        """Say what could not be logged to MLflow, if anything."""
        if self.tracker is not None and (complaint := self.tracker.complaint()):
            self.say("mlflow", f"[red]{complaint}[/red]")

    def finish(self, step: str, done: Done, text: str) -> Done:
        """Print what a step found, and whether it was found before."""
        how = "done before" if done.reused else f"{done.seconds:.0f} s"
        self.say(step, f"{text} [dim]({how})[/dim]")
        return done

    @contextmanager
    def tracked(self, name: str, folder: Path, tags: Mapping[str, str]) -> Iterator[Run]:
        """Open the step's MLflow run below the pipeline's."""
        assert self.tracker is not None, "a step that logs was given no tracker"
        with (
            self.tracker.run(name, folder, tags, self.parent) as run,
            watched(self.config.tracking, self.tracker.uri, [run]),
        ):
            if self.parent is None:
                run.environment()
            yield run


def _forget(session: Session, stage: str, folder: Path, store: Path, *, retry: bool) -> bool:
    """Forget what engines measured where the stage is forced, which is returned, or that it is done where it is tried again."""
    force = stage in session.force
    if force:
        shutil.rmtree(store, ignore_errors=True)
    if retry:
        (folder / DONE_FILE).unlink(missing_ok=True)
    return force


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _quarantined(figures: Mapping[str, Any]) -> str:
    reasons = f" ({_counts(figures['reasons'])})" if figures["reasons"] else ""
    return f"{figures['quarantined']} quarantined{reasons}"
