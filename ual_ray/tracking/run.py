"""One MLflow run: every logging call becomes an operation that the tracker sends now or later."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from ual_ray.columns import ID_LENGTH, digest
from ual_ray.config.environment import environment
from ual_ray.config.files import read_json, write_json, write_record
from ual_ray.config.redact import redact_values
from ual_ray.formatting import shorten
from ual_ray.tracking.journal import Operation
from ual_ray.tracking.run_file import place_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

# MLflow's limits, in characters. A name may get the prefix of a changed parameter.
LONGEST_PARAM = 6000
CHANGED = "now."
LONGEST_NAME = 250 - len(CHANGED)
# The tag that MLflow documents for the description of a run.
DESCRIPTION = "mlflow.note.content"
# The maximum length of a description in MLflow's databases, in characters.
LONGEST_DESCRIPTION = 5000
# The last step of every metric, next to the run's file, for when the store is unreachable.
STEPS_FILE = "mlflow_steps.json"
ENVIRONMENT_FILE = "environment.json"


Answer = TypeVar("Answer")


class RunStore(Protocol):
    """The tracker's interface to its runs."""

    output: Path

    @property
    def client(self) -> MlflowClient:
        """The client of the tracking store."""

    def known_id(self, local: str) -> str | None:
        """Return MLflow's id of a run; None until the store has created it."""

    def submit(self, operation: Operation) -> Any:
        """Send an operation now, or spool it."""

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """Query the store; None while it is unreachable."""

    def tolerant(self, what: str) -> AbstractContextManager[None]:
        """Count and log an error in the block instead of raising it."""


class Run:
    """An open run. Its methods never raise store errors, and do not wait for a store known to be unreachable."""

    def __init__(self, tracker: RunStore, local_id: str, name: str, folder: Path, parent: Run | None = None) -> None:
        """Wrap an open run. local_id: its id before the store has created it; folder: the output folder it belongs to.

        parent: the run that also shows its data sets and models.
        """
        self._tracker, self._parent = tracker, parent
        self._steps_file = folder / STEPS_FILE
        self.local_id, self.name = local_id, name

    @property
    def id(self) -> str:
        """MLflow's id; the local id until the store has created the run."""
        return self._tracker.known_id(self.local_id) or self.local_id

    @property
    def output(self) -> Path:
        """The folder of the tracker's spool."""
        return self._tracker.output

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones with dotted names."""
        # First while a list still has sections with keys, and again before a long text is cut.
        flat = redact_values({key: str(value) for key, value in flatten(redact_values({**values})).items()})
        self._submit("params", {key: shorten(value, LONGEST_PARAM) for key, value in _named(flat).items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self._submit("tags", {key: str(value) for key, value in _named(values).items()})

    def describe(self, markdown: str) -> None:
        """Set the description, which the page of the run shows; a long one is cut."""
        self.tags({DESCRIPTION: shorten(markdown, LONGEST_DESCRIPTION)})

    def metrics(
        self,
        values: Mapping[str, Any],
        step: int = 0,
        model: Mapping[str, str] | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Log the values that are numbers; others are ignored.

        model: the logged model that was measured, as `logged_model` in `tracking.run_file` identifies it. dataset: name and
        digest of the data set that it was measured on.
        """
        numbers = {key: value for key, value in flatten(values).items() if _is_number(value)}
        named = {name: float(value) for name, value in _named(numbers).items()}
        measured = {"model": dict(model) if model else None, "dataset": dataset}
        self._submit("metrics", {"values": named, "step": step, "time": int(time.time() * 1000), **measured})
        if step > 0:
            with self._tracker.tolerant(f"writing {self._steps_file}"):
                self._record({key: step for key in named})

    def last_step(self, metric: str) -> int:
        """Return the last step of a metric, or -1 if none; from the local record while the store is unreachable."""
        steps = [self._recorded().get(metric, -1)]
        history = self._tracker.ask(lambda: self._tracker.client.get_metric_history(self.id, metric))
        return max([*steps, *(entry.step for entry in history or [])])

    def dataset(
        self,
        name: str,
        path: Path | str,
        digest: str,
        rows: int,
        context: str,
        hub: Mapping[str, str | None] | None = None,
    ) -> None:
        """Log an input data set with its digest, here and to the runs above; `context` is its purpose, such as training.

        path: of files, a URI as a text; or a name on the hub, where `hub` has its config_name, split and revision.
        """
        place = place_of(path, self.output)
        content = {"name": name, "path": place, "digest": digest, "rows": rows, "context": context, "hub": hub}
        self._submit("dataset", content)
        if self._parent is not None:
            self._parent.dataset(name, path, digest, rows, context, hub)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file."""
        self._submit("artifact", {"folder": folder}, path)

    def plot(self, figure: Figure, name: str) -> None:
        """Log a plot; `name` may contain folders."""
        with self._tracker.tolerant(f"drawing {name}"), tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(name).name
            figure.savefig(path)
            self.artifact(path, _folder(name))

    def dict(self, content: Mapping[str, Any], name: str) -> None:
        """Log values as a JSON file; `name` may contain folders."""
        self._write("artifact", content, name)

    def table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Log a table that the MLflow UI can display and compare; replaces a table of the same name."""
        self._write("table", {"columns": list(columns), "data": [*zip(*columns.values(), strict=True)]}, name)

    def environment(self) -> None:
        """Log the environment: packages, machine, git commits."""
        with self._tracker.tolerant("describing the environment"):
            found = environment()
            self.dict(found, ENVIRONMENT_FILE)
            self.tags(found["commits"])

    def model(
        self,
        folder: Path,
        registered_name: str,
        tags: Mapping[str, str],
        title: str | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        upload: bool = True,
    ) -> str | None:
        """Log a model directory without loading it, and register it with its model card and the alias candidate.

        It is an output of this run and of the runs above. title: its name among the logged models, by default
        `registered_name`; params: what sets it apart there. upload: its files too; otherwise a tag names the directory.

        Returns the version number, or None when the operation is spooled; keep the directory until it is sent, as the spool
        does not copy weights.
        """
        content = {
            "folder": str(folder.absolute()),
            "place": place_of(folder.absolute(), self.output),
            "name": registered_name,
            "tags": {key: str(value) for key, value in tags.items()},
            "registration": uuid4().hex,
            "model": {"id": self.local_id, "name": title or registered_name},
            "params": {key: str(value) for key, value in (params or {}).items()},
            "parents": self._ancestors(),
            "upload": upload,
        }
        return self._submit("model", content)

    def prompt(self, name: str, template: Sequence[Sequence[str]]) -> None:
        """Register a prompt and link it, to the runs above too: chat turns (role, content) with variables as {{name}}.

        name: the package's own.
        """
        turns = [{"role": turn[0], "content": turn[1]} for turn in template]
        self._submit("prompt", {"name": name, "template": turns})
        if self._parent is not None:
            self._parent.prompt(name, template)

    def traces(self, make: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Log the traces that `make` returns, in the form of `engines/traces.py`; ids are unique in the run."""
        with self._tracker.tolerant("sampling traces"):
            if traces := make():
                self._write("traces", {"traces": [*traces]}, "traces.json")

    def _ancestors(self) -> list[str]:
        """Return the local ids of the runs above."""
        return [] if self._parent is None else [self._parent.local_id, *self._parent._ancestors()]

    def _write(self, kind: str, content: Mapping[str, Any], name: str) -> None:
        with self._tracker.tolerant(f"writing {name}"), tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(name).name
            write_json(path, redact_values({**content}))
            self._submit(kind, {"folder": _folder(name)}, path)

    def _submit(self, kind: str, content: Mapping[str, Any], file: Path | None = None) -> Any:
        path = None if file is None else str(file)
        return self._tracker.submit(Operation(kind, self.local_id, redact_values({**content}), path))

    def _recorded(self) -> Mapping[str, int]:
        return read_json(self._steps_file) or {}

    def _record(self, steps: Mapping[str, int]) -> None:
        recorded = self._recorded()
        later = {key: max(step, recorded.get(key, -1)) for key, step in steps.items()}
        write_record(self._steps_file, {**recorded, **later})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _folder(name: str) -> str | None:
    parent = str(Path(name).parent)
    return None if parent == "." else parent


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(legal_names(values), values.values(), strict=True))


def legal_names(keys: Iterable[str]) -> list[str]:
    """Return names that MLflow takes for these keys, all different: no characters or empty folders that it refuses."""
    names: dict[str, None] = {}
    for key in keys:
        name = _legal(key, LONGEST_NAME) or "_" * bool(key)
        names[name if name not in names else f"{_legal(name, LONGEST_NAME - ID_LENGTH - 1)}_{digest(key)}"] = None
    return list(names)


def _legal(key: str, longest: int) -> str:
    parts = [part for part in re.sub(r"[^\w.\- /]", "_", key).split("/") if part.strip(".")]
    cut = re.sub(r"^\.\.", "__", "/".join(parts))[:longest].split("/")
    return "/".join(cut if cut[-1].strip(".") else cut[:-1])  # the cut may leave an empty folder at the end
