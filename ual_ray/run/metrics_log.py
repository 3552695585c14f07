"""The metrics of a training's steps: a file with one JSON line per step, each with a checksum as records have."""

import json
import os
from pathlib import Path

from ual_ray.config.files import fits, summed, write_lines
from ual_ray.errors import UserError
from ual_ray.run.folder import HERE, Folder, append

Metrics = dict[str, float]


class MetricsLog:
    """Writes the file, which the driver reads for progress, MLflow and plots."""

    def __init__(self, path: Path, finished_steps: int, *, writes: bool, output: Folder = HERE) -> None:
        """Keep the lines up to the resumed step; drop those that a failed attempt wrote after its last checkpoint.

        `writes`: whether this rank writes the file. output: reaches it.
        """
        self._path, self._writes, self._output = path, writes, output
        if writes:
            known = output.call(read_metrics, path) if finished_steps > 0 else []
            output.call(write_lines, path, [summed(line) for line in known if line["step"] <= finished_steps])

    def write(self, step: int, metrics: Metrics) -> None:
        """Append the metrics of a step."""
        if self._writes:
            self._output.call(append, self._path, json.dumps(summed({"step": step, **metrics})) + "\n")

    def at(self, step: int) -> Metrics:
        """Read the metrics of a step; empty if none were written."""
        return next((line for line in self._output.call(read_metrics, self._path) if line["step"] == step), {})


class MetricsReader:
    """Reads the new lines of a metrics file, also after a resumed run has rewritten it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._offset, self._next_step = 0, 0, 0

    def read(self) -> list[Metrics]:
        """Return the complete lines of steps not returned before, in order of step. Raises UserError for a damaged one."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            if number != self._file:
                self._file, self._offset = number, 0
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        lines = [line for line in map(self._parsed, whole.splitlines()) if line["step"] >= self._next_step]
        self._next_step = int(lines[-1]["step"]) + 1 if lines else self._next_step
        return lines

    def _parsed(self, line: bytes) -> Metrics:
        try:
            content: Metrics = json.loads(line)
            damage = "" if fits(content) and "step" in content else "its checksum does not match, or it has none and no step"
        except (ValueError, AttributeError) as error:
            damage = str(error)
        if damage:
            raise UserError(
                "a line of metrics is not what was written: a disk or somebody changed it",
                got=f"{self._path}: {damage}: {line[:80].decode(errors='replace')}",
                fix="restore the file from a copy, or remove the line: the curves then lack its step",
            )
        return content


def read_metrics(path: Path, last_step: float | None = None) -> list[Metrics]:
    """Read all complete lines; a partly written line is left for the next call.

    last_step: of a finished training. Raises UserError where another one ends the file.
    """
    lines = MetricsReader(path).read()
    found = f"step {lines[-1]['step']:.0f}" if lines else "no step"
    if last_step is not None and path.exists() and found != f"step {last_step:.0f}":
        raise UserError(
            "the metrics of a training do not end with its last step: a disk or somebody cut the file",
            got=f"{path}: {found}",
            expected=f"step {last_step:.0f}",
            fix="restore the file from a copy, or remove it: the curves are then left out",
        )
    return lines
