"""Files that stages record for one another: a changed bit or a missing end is an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import each_damage

from ual_ray import columns as col
from ual_ray.config.files import CHECKSUM, read_json, write_record
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.report.findings import Findings
from ual_ray.report.promote import read_findings
from ual_ray.run.metrics_log import MetricsLog
from ual_ray.run.metrics_log import read_metrics as read_curve
from ual_ray.run.output import Workspace
from ual_ray.run.stage_cache import newest, point_to, run_stage
from ual_ray.stats.comparison import Comparisons
from ual_ray.stats.results import read_metrics
from ual_ray.tracking.run_file import read_run, write_run

CONTENT = {"figures": {"accuracy": 0.7125, "rows": 1234, "none": None, "text": "é \ud83d", "nan": float("nan")}, "seconds": 1.5}
ENTRY = {"benchmark": "b", "metric": "accuracy", "source": "s", "value": 0.7125, "standard_error": 0.01, "n": 200}
Reader = Callable[[], Any]


def stage(folder: Path) -> Reader:
    def read() -> Any:
        done = run_stage(folder, {"model": "a", "rows": 7}, lambda: {"accuracy": 0.7125})
        return done.metrics, done.reused

    read()
    return lambda: read()[0]


def owner(folder: Path) -> Reader:
    workspace, config = Workspace(folder), load(None, [])
    workspace.claim(config)
    return lambda: workspace.check_owner(config)


def evaluated(folder: Path) -> Reader:
    write_record(folder / col.FIGURES_FILE, {"name": "ual", "figures": [ENTRY]})
    return lambda: read_metrics(folder)


def report(folder: Path) -> Reader:
    (folder / "report").mkdir()
    write_record(folder / "report" / "findings.json", Findings({}, Comparisons((), 0.95, 100, 0)).as_dict())
    return lambda: read_findings(folder)


def tracked(folder: Path) -> Reader:
    write_run(folder, "uri", "a1b2", "c3d4")
    return lambda: read_run(folder, "uri")


RECORDS: dict[str, tuple[Callable[[Path], Reader], str]] = {
    "done": (stage, "done.json"),
    "started": (stage, "started.json"),
    "owner": (owner, "owner.json"),
    "metrics": (evaluated, col.FIGURES_FILE),
    "findings": (report, "report/findings.json"),
    "run": (tracked, "mlflow_run.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, file = RECORDS[name]
    read, refused = make(tmp_path), 0
    before = read()
    for _ in each_damage(tmp_path / file, flips=300):
        try:
            assert read() == before
        except UserError as error:
            assert str(tmp_path / file) in str(error) and "restore it from a copy" in str(error)
            refused += 1
    assert refused > 280, "all but a digit of seconds beyond their precision"


@pytest.mark.parametrize("content", [CONTENT, {}, {"a": {"b": [1, 2, {"c": "d"}]}}, {"1": Path("x")}], ids=str)
def test_a_record_is_read_as_it_was_written(content: dict[str, Any], tmp_path: Path) -> None:
    write_record(file := tmp_path / "x.json", content)
    assert json.dumps(read_json(file)) == json.dumps(content, default=str)
    assert CHECKSUM in json.loads(file.read_text())


def test_a_record_that_somebody_changed_is_read_without_the_checksum(tmp_path: Path) -> None:
    write_record(file := tmp_path / "x.json", {"rows": 7})
    changed = json.loads(file.read_text()) | {"rows": 8}
    file.write_text(json.dumps(changed))
    with pytest.raises(UserError, match='(?s)not what was written.*x.json.*remove its line "checksum"'):
        read_json(file)
    file.write_text(json.dumps({"rows": changed["rows"]}))
    assert read_json(file) == {"rows": 8}


STEPS = 20


def curve(file: Path) -> list[dict[str, float]]:
    log = MetricsLog(file, 0, writes=True)
    for step in range(STEPS):
        log.write(step, {"nll": 1 / (step + 1), "tokens": 100.0, "grad_norm": float("nan") if step == 7 else 2.5})
    return read_curve(file)


@pytest.mark.slow
def test_a_damaged_curve_is_refused_by_name(tmp_path: Path) -> None:
    before, refused = str(curve(file := tmp_path / "metrics.jsonl")), 0
    for _ in each_damage(file, flips=600):
        try:
            assert str(read_curve(file, STEPS - 1)) == before
        except UserError as error:
            assert str(file) in str(error) and "restore the file" in str(error)
            refused += 1
    assert refused > 600, "all but digits beyond a number's precision"


def test_a_curve_of_an_earlier_version_is_read_and_gets_checksums_when_it_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "nll": 0.5}) + "\n" for step in range(3)))
    assert read_curve(file) == [{"step": step, "nll": 0.5} for step in range(3)]
    MetricsLog(file, 1, writes=True).write(2, {"nll": 0.25})
    assert read_curve(file) == [{"step": 0, "nll": 0.5}, {"step": 1, "nll": 0.5}, {"step": 2, "nll": 0.25}]
    assert all(CHECKSUM in json.loads(line) for line in file.read_text().splitlines())


def test_a_damaged_pointer_is_no_error_of_its_own(tmp_path: Path) -> None:
    point_to(tmp_path, tmp_path / "0123456789abcdef")
    assert newest(tmp_path).name == "0123456789abcdef"
    for _ in each_damage(tmp_path / "newest", flips=100):
        newest(tmp_path)
