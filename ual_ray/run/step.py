"""The step runner: a stage with its cache key, its folder, its MLflow run and its line on the terminal.

The pipeline and the single commands run the same steps; a finished step is recognised by its cache key and not run again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from ual_ray.config import Config
from ual_ray.config.redact import redact_uri
from ual_ray.formatting import count_list
from ual_ray.run import STAGES, StageName
from ual_ray.run.side_by_side import in_waiting_thread
from ual_ray.run.stage_cache import DONE_FILE, Done, forget, point_to, run_stage, stage_digest
from ual_ray.tracking.run import Run
from ual_ray.tracking.run_file import logged_model
from ual_ray.tracking.tracker import Tracker
from ual_ray.tracking.watcher import watched

LINEAGE_SCORED = "ual_ray.scored"
LINEAGE_PROMPTS = "ual_ray.prompt_hash"
LINEAGE_UNCERTAINTY = "ual_ray.uncertainty"
LINEAGE_MAP = "ual_ray.map"
LINEAGE_SMOOTHED = "ual_ray.smoothed"
LINEAGE_MODEL = "ual_ray.base_model"
LINEAGE_CONTINUED = "ual_ray.continued_from"
LINEAGE_MIXTURE = "ual_ray.mixture"
STAGE_TAG = "ual_ray.stage"
ARM_TAG = "ual_ray.arm"
MODEL_TAG = "ual_ray.model"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Place:
    """Where a step works: `root` itself, or a folder in it named by the step's cache key, which `newest` then points to.

    store: folder of what engines answered, by a key of its own; `root`/store by default.
    """

    root: Path
    keyed: bool = True
    store: Path | None = None

    def folder(self, key: str) -> Path:
        """Return the folder of a step with this cache key."""
        return self.root / key if self.keyed else self.root

    def store_folder(self, key: Mapping[str, Any]) -> Path:
        """Return the folder of the answers that depend on `key` alone."""
        return (self.store or self.root / "store") / stage_digest(key)


class Cluster(ExitStack):
    """Leaves the Ray cluster at its end, if the command joined or started one.

    free: the resources that nobody used when the command joined. kept: by which other machines reach the output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connected = False
        self.free: dict[str, float] = {}
        self.kept: Any = None
        self.lock = threading.Lock()


@dataclass
class Session:
    """What all steps of one command share; the Ray cluster is started by the first step that needs it.

    label: behind the titles of steps that are repeated, such as "seed 1".
    """

    config: Config
    console: Console
    tracker: Tracker | None
    force: frozenset[StageName] = frozenset()
    stages: frozenset[StageName] = frozenset(STAGES)
    parent: Run | None = None
    cluster: Cluster = field(default_factory=Cluster)
    label: str = ""

    def connect(self) -> None:
        """Start or join the Ray cluster, once, whichever thread is the first to need it.

        A thread that starts Ray takes its processes along at its end, and Ray keeps SIGTERM where it cannot be given back.
        """
        with self.cluster.lock:
            if not self.cluster.connected:
                in_waiting_thread(self._connect)
                self.cluster.connected = True

    def _connect(self) -> None:
        from ual_ray.run.cluster import check_cluster, free_resources, ray_cluster
        from ual_ray.run.machines import check_shared, keep_here

        if not self.config.runtime.address and (address := self.config.runtime.joined):
            self.say("cluster", f"runtime.address is not set; the environment variable RAY_ADDRESS is used: {address}")
        if dashboard := self.cluster.enter_context(ray_cluster(self.config.runtime, self.console)):
            self.say("cluster", f"Ray dashboard: {dashboard}")
        if self.config.runtime.joined and self.tracker is not None:  # however many machines: a cluster may grow
            self.cluster.kept = keep_here(self.tracker.output)
            if self.cluster.kept is None:
                check_shared(self.tracker.output)
        for wait in check_cluster(self.config, self.stages):
            self.say("cluster", f"waiting for it to grow: {wait}")
        self.cluster.free = free_resources(self.config)

    def labelled(self, label: str) -> Session:
        """Copy the session with one more label."""
        return replace(self, label=", ".join(filter(None, [self.label, label])))

    def titled(self, name: str) -> str:
        """Put the label behind the title of a step."""
        return f"{name} ({self.label})" if self.label else name

    def say(self, step: str, text: str, style: str = "", note: str = "") -> None:
        """Print one step's line in a style, and a dimmed note behind it. Nothing in them is markup: they hold users' texts."""
        line = Text.assemble((f"{step:<14}", "bold"), " ", (redact_uri(text), style), (note and f" {note}", "dim"))
        self.console.print(line, highlight=False)

    def say_failed(self, title: str, error: BaseException) -> None:
        """Print why one of several tasks failed; the log has its traceback."""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        self.say(title, f"failed, no other one is started: {reason}", style="red")

    def say_failures(self) -> None:
        """Print what could not be logged to MLflow, if anything."""
        if self.tracker is not None and (complaint := self.tracker.complaint()):
            self.say("mlflow", complaint, style="red")

    def logged_model(self, model: str, name: str, digest: str) -> dict[str, str]:
        """Identify MLflow's logged model of a model, for `Run.metrics`; `digest` identifies one that was not trained here."""
        assert self.tracker is not None, "a step that logs was given no tracker"
        return logged_model(model, name, digest, redact_uri(self.tracker.uri))

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


@dataclass(frozen=True)
class Step:
    """One step: `title` is its name on the terminal and in MLflow, such as "train ual".

    inputs: all that its result depends on. store: folders of answers of engines to forget when the step is forced. retry: run a
    finished step again, on what it has. forced_by: stages whose --force includes this step. written: names of all that it
    writes, of a step whose folder may have no key: others may write there too.
    """

    stage: StageName | Literal["questions", "scenario", "tokens"]
    title: str
    inputs: Mapping[str, Any]
    place: Place
    tags: Mapping[str, str] = field(default_factory=dict)
    store: Path | Sequence[Path] | None = None
    retry: bool = False
    forced_by: frozenset[StageName] = frozenset()
    written: Collection[str] = ()


Work = Callable[[Path], dict[str, Any]]
LoggedWork = Callable[[Run, Path], dict[str, Any]]
Line = Callable[[dict[str, Any]], str]


def run_step(session: Session, step: Step, work: Work, line: Line) -> Done:
    """Run a step in its folder unless it is finished there, and print its line; `work` returns its metrics."""
    step = replace(step, title=session.titled(step.title))
    folder = step.place.folder(stage_digest(step.inputs))
    force = bool(session.force & ({step.stage} | step.forced_by))
    if force:
        for store in [step.store] if isinstance(step.store, Path) else step.store or ():
            forget(store)
    if step.retry:
        (folder / DONE_FILE).unlink(missing_ok=True)
    written = None if step.place.keyed else step.written
    done = run_stage(folder, step.inputs, lambda: work(folder), force=force, written=written)
    if step.place.keyed:
        point_to(step.place.root, folder)
    how = "cached" if done.reused else f"{done.seconds:.0f} s"
    session.say(step.title, line(done.metrics), note=f"({how})")
    return done


def run_logged_step(session: Session, step: Step, work: LoggedWork, line: Line) -> Done:
    """Run a step that needs the Ray cluster and has an MLflow run of its own."""

    def logged(folder: Path) -> dict[str, Any]:
        session.connect()
        with session.tracked(session.titled(step.title), folder, {STAGE_TAG: step.stage, **step.tags}) as run:
            return work(run, folder)

    return run_step(session, step, logged, line)


def quarantined(metrics: Mapping[str, Any]) -> str:
    """Write how many rows were quarantined, and why."""
    reasons = f" ({count_list(metrics['reasons'])})" if metrics["reasons"] else ""
    return f"{metrics['quarantined']} quarantined{reasons}"
