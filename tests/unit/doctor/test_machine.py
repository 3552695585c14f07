"""Memory, shared memory and disk, judged by values that a machine might have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray import preflight
from ual_ray.config.load import load
from ual_ray.doctor import machine
from ual_ray.doctor.findings import Finding
from ual_ray.formatting import GIB


def only(findings: object) -> Finding:
    (finding,) = findings  # type: ignore[misc]
    assert finding.status == "ok" or finding.fix
    return finding


def test_memory_is_the_smaller_of_machine_and_container() -> None:
    config = load(None, ["engine.kind=fake"])
    assert only(machine.judge_memory(config, 64 * GIB, None)).text == "64.00 GiB free"
    assert only(machine.judge_memory(config, 64 * GIB, 32 * GIB)).text == "32.00 GiB free (the limit of the container)"
    assert only(machine.judge_memory(config, 16 * GIB, 32 * GIB)).text == "16.00 GiB free"


def test_a_stage_that_does_not_fit_is_an_error_with_the_fix_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "parameter_count", lambda name: 7_000_000_000)
    found = only(machine.judge_memory(load(), 64 * GIB, 8 * GIB))
    assert found.status == "error" and "does not fit into memory" in found.text and "8.0 GB free" in found.text
    assert found.fix is not None and "runtime.check_memory=false" in found.fix
    assert only(machine.judge_memory(load(None, ["runtime.check_memory=false"]), 8 * GIB, None)).status == "warning"
    assert only(machine.judge_memory(load(None, ["runtime.address=auto"]), 8 * GIB, None)).status == "ok"


@pytest.mark.parametrize(("limit", "expected"), [("max\n", None), ("1000\n", 600), ("100\n", 0), (None, None)])
def test_the_limit_of_a_container(tmp_path: Path, limit: str | None, expected: int | None) -> None:
    (tmp_path / "used").write_text("400\n")
    if limit is not None:
        (tmp_path / "limit").write_text(limit)
    assert machine.container_memory(tmp_path / "limit", tmp_path / "used") == expected


def test_the_memory_of_this_machine_says_nothing_of_a_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert only(machine.judge_memory(load(), 0, None)).status == "error"
    assert only(machine.judge_memory(load(None, ["runtime.address=auto"]), 0, None)).status == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert only(machine.judge_memory(load(), 0, None)).status == "ok"


@pytest.mark.parametrize(
    ("size", "overrides", "status"),
    [
        (32 * GIB, [], "ok"),
        (16 * GIB, [], "warning"),  # less than Ray's object store of 30 % of 64 GiB
        (64 * 2**20, ["train.num_workers=1", "engine.tensor_parallel_size=1"], "warning"),
        (64 * 2**20, ["train.num_workers=2"], "error"),
        (64 * 2**20, ["train.num_workers=1", "engine.gpus_per_actor=2"], "error"),
        (None, [], "warning"),
    ],
)
def test_shared_memory(size: int | None, overrides: list[str], status: str) -> None:
    assert only(machine.judge_shared_memory(load(None, overrides), size, 64 * GIB)).status == status


def test_disk(tmp_path: Path) -> None:
    config = load(None, ["train.keep_checkpoints=2"])
    needed = machine.needed_disk(config, 10**9)
    # Two arms' float32 models; 2 + 2 checkpoints of weights and two moments.
    assert needed == 2 * 4 * 10**9 + 4 * 3 * 4 * 10**9
    assert machine.needed_disk(load(None, ["train.storage=s3://bucket"]), 10**9) == 2 * 4 * 10**9
    at_uri = ["train.keep_checkpoints=2", "output=s3://bucket/x"]
    assert machine.needed_disk(load(None, at_uri), 10**9) == needed, "on one machine they are in the folder that is worked in"
    assert machine.needed_disk(load(None, [*at_uri, "runtime.address=auto"]), 10**9) == 2 * 4 * 10**9
    at_path = ["train.keep_checkpoints=2", f"output=file://{tmp_path}", "runtime.address=auto"]
    assert machine.needed_disk(load(None, at_path), 10**9) == needed
    judged = [
        only(machine.judge_disk(config, tmp_path, needed, True, 10**9)),
        only(machine.judge_disk(config, tmp_path, needed - 1, True, 10**9)),
        only(machine.judge_disk(config, tmp_path, needed, False, 10**9)),
        only(machine.judge_disk(config, tmp_path, machine.LEAST_DISK, True, None)),
        only(machine.judge_disk(config, tmp_path, machine.LEAST_DISK - 1, True, None)),
    ]
    assert [finding.status for finding in judged] == ["ok", "error", "error", "ok", "warning"]


def test_the_output_need_not_exist_and_may_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = only(machine.check_disk(load(None, [f"output={tmp_path}/a/b"])))
    assert str(tmp_path) in found.text and not (tmp_path / "a").exists()
    (cache := tmp_path / "cache").mkdir()
    monkeypatch.setenv("UAL_CACHE", str(cache))
    found = only(machine.check_disk(load(None, ["output=s3://bucket/x"])))
    assert str(cache) in found.text, "the folder that is copied to the URI needs the room"
    found = only(machine.check_disk(load(None, [f"output=file://{tmp_path}/a"])))
    assert str(tmp_path) in found.text and str(cache) not in found.text
    (tmp_path / "file").write_text("")
    assert only(machine.check_disk(load(None, [f"output={tmp_path}/file/x"]))).status == "error"


def test_this_machine_is_judged_without_an_exception() -> None:
    for check in (machine.check_memory, machine.check_shared_memory):
        assert only(check(load())).status in ("ok", "warning", "error")
