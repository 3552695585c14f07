"""The workers of the Ray that tests share are forks of one process, and each is what it would be without that."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray


class Worker:
    """An actor that tells about its process."""

    def about(self) -> dict[str, Any]:
        print("printed by", os.getpid(), flush=True)
        return {
            "pid": os.getpid(),
            "parent": " ".join(psutil.Process(os.getppid()).cmdline()),
            "title": " ".join(psutil.Process().cmdline()),
            "arguments": sys.argv,
            "job": os.environ.get("RAY_JOB_ID"),
            "imported": "ual_ray.train.worker" in sys.modules,
            "random": np.random.random(),
            "id": ray.NodeID.from_random().hex(),
        }


@pytest.fixture(scope="module")
def workers(local_ray: None) -> list[dict[str, Any]]:
    """Ask two that are there at the same time."""
    actors = [ray.remote(num_cpus=0)(Worker).remote() for _ in range(2)]
    found: list[dict[str, Any]] = ray.get([actor.about.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    return found


def test_one_process_with_their_imports_forks_them(workers: list[dict[str, Any]]) -> None:
    (parent,) = {worker["parent"] for worker in workers}
    assert "worker_forks.py" in parent
    assert all(worker["imported"] for worker in workers)


def test_each_has_its_own_name_arguments_log_and_chance(workers: list[dict[str, Any]]) -> None:
    assert len({worker["random"] for worker in workers}) == len({worker["id"] for worker in workers}) == 2
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for worker in workers:
        assert worker["title"].startswith("ray::Worker.about")
        assert Path(worker["arguments"][0]).name == "default_worker.py" and worker["job"]
        (log,) = logs.glob(f"worker-*-{worker['pid']}.out")
        assert f"printed by {worker['pid']}" in log.read_text()


def test_they_end_when_they_are_killed(workers: list[dict[str, Any]]) -> None:
    from processes import wait_until  # which workers, that import this file, do not find

    wait_until(lambda: not any(psutil.pid_exists(worker["pid"]) for worker in workers), "they are gone", 20)
