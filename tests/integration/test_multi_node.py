"""A job on a cluster of several machines, each with its own address and files, gives what one machine gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ual_ray import columns as col
from ual_ray.parquet import read_table

SCRIPT = Path(__file__).parents[2] / "cluster" / "namespaces.sh"
NAMESPACES = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
# Of the three CPUs of a node, so that two of anything are on two nodes.
EACH_ON_A_NODE_OF_ITS_OWN = ["engine.cpus_per_actor=2", "engine.min_actors=2", "engine.max_actors=2", "train.cpus_per_worker=2"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def can_make_namespaces() -> bool:
    try:
        return subprocess.run(NAMESPACES, capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(
    not can_make_namespaces(),
    reason="needs root and Linux namespaces (in a container: --cap-add SYS_ADMIN NET_ADMIN), and iproute2",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the one folder that all machines can write to."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def on_cluster(tiny_model: Path, rows_file: Path, shared: Path) -> Iterator[Run]:
    """Start a head, two workers and an MLflow server; run commands on their network; end them."""
    environment = os.environ | {
        "RAY": str(Path(sys.executable).with_name("ray")),
        # Ray's sockets lie below it, and the path of a socket may have 107 characters.
        "UAL_NODES_STATE": tempfile.mkdtemp(prefix="ual"),
    }

    def call(*arguments: object, timeout: float = 480) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(SCRIPT), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)

    # The nodes have a /tmp of their own, in which a clone of the repository or its environment may lie.
    code = (path for path in {SCRIPT.parents[1], Path(sys.prefix)} if path.is_relative_to("/tmp"))  # noqa: S108
    inputs = [part for path in (tiny_model, rows_file.parent, *code) for part in ("--read-only", path)]
    try:
        started = call("start", 2, "--shared", shared, *inputs, timeout=240)
        assert started.returncode == 0, started.stdout + started.stderr
        yield lambda *command: call("run", *command)
    finally:
        stopped = call("stop", timeout=60)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr


def nodes_of(on_cluster: Run, name: str) -> set[str]:
    """Find the nodes on which the actors with this in their class's name lived."""
    listed = on_cluster("ray", "list", "actors", "--address", "http://10.77.0.2:8265", "--format", "json", "--limit", "1000")
    actors = json.loads(listed.stdout)
    return {actor["node_id"] for actor in actors if name in actor["class_name"] and actor["node_id"]}


def columns_of(folder: Path, *names: str) -> dict[str, Any]:
    return read_table(folder).sort_by(col.ID).select([col.ID, *names]).to_pydict()


def test_a_run_over_several_machines_equals_that_of_one(
    on_cluster: Run, ual: Any, small: list[str], shared: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    config = tmp_path / "one_arm.yaml"
    config.write_text("arms: {ual: {map: mean_matched}}\nevaluate: {calibration: {enabled: false}}\n")
    arguments = ["-c", config, *small]
    server = "tracking.uri=http://10.77.0.250:5000"
    submitted = on_cluster(
        *(sys.executable, "-m", "ual_ray", "submit", *arguments, *EACH_ON_A_NODE_OF_ITS_OWN, server, f"output={shared / 'run'}")
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "SUCCEEDED" in submitted.stdout + submitted.stderr
    assert len(nodes_of(on_cluster, "TrainWorker")) == 2
    assert len(nodes_of(on_cluster, "MapWorker")) == 2
    tracked = on_cluster("curl", "--silent", "http://10.77.0.250:5000/api/2.0/mlflow/registered-models/search")
    assert "ual-ual" in tracked.stdout

    local = ual("run", *arguments, f"output={tmp_path / 'local'}")
    assert local.code == 0, local.output
    one, several = tmp_path / "local", shared / "run"
    for pattern, names in (("elicit/*/scored", [col.UNCERTAINTY]), ("arms/ual/smooth/*/smoothed.parquet", [col.ALPHA])):
        assert columns_of(next(several.glob(pattern)), *names) == columns_of(next(one.glob(pattern)), *names)
    weights, expected = (load_file(next(folder.glob("arms/ual/train/*/model/model.safetensors"))) for folder in (several, one))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=1e-6, err_msg=name)
