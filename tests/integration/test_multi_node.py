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
TRACKED = "tracking.uri=http://10.77.0.250:5000"
# Given to jobs by `--env`: the nodes are started without.
OF_THE_STORE = {
    "AWS_ENDPOINT_URL": "http://10.77.0.251:9000",
    "AWS_ACCESS_KEY_ID": "user",
    "AWS_SECRET_ACCESS_KEY": "password",
    "AWS_REGION": "us-east-1",
}
COPY = "import sys, pyarrow.fs; pyarrow.fs.copy_files(sys.argv[1], sys.argv[2])"
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
def nodes() -> Path:
    """Make the folder of what the nodes have for themselves, each in one of its own."""
    # Ray's sockets lie below it, and the path of a socket may have 107 characters.
    return Path(tempfile.mkdtemp(prefix="ual"))


@pytest.fixture(scope="module")
def on_cluster(tiny_model: Path, rows_file: Path, shared: Path, nodes: Path) -> Iterator[Run]:
    """Start a head, two workers, an MLflow server and an object store; run commands on their network; end them."""
    environment = os.environ | {"RAY": str(Path(sys.executable).with_name("ray")), "UAL_NODES_STATE": str(nodes)}

    def call(*arguments: object, timeout: float = 480) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(SCRIPT), *map(str, arguments)]
        variables = environment | (OF_THE_STORE if arguments[0] == "run" else {})
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout)

    # The nodes have a /tmp of their own, in which a clone of the repository or its environment may lie.
    code = (path for path in {SCRIPT.parents[1], Path(sys.prefix)} if path.is_relative_to("/tmp"))  # noqa: S108
    inputs = [part for path in (tiny_model, rows_file.parent, *code) for part in ("--read-only", path)]
    try:
        started = call("start", 2, "--s3", "--shared", shared, *inputs, timeout=240)
        assert started.returncode == 0, started.stdout + started.stderr
        yield lambda *command: call("run", *command)
    finally:
        stopped = call("stop", timeout=60)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr


@pytest.fixture(scope="module")
def settings(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Configure a pipeline of one arm."""
    config = tmp_path_factory.mktemp("config") / "one_arm.yaml"
    config.write_text("arms: {ual: {map: mean_matched}}\nevaluate: {calibration: {enabled: false}}\n")
    return ["-c", config, *small]


@pytest.fixture(scope="module")
def here(ual: Any, settings: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run it on this machine alone."""
    output = tmp_path_factory.mktemp("here") / "local"
    done = ual("run", *settings, f"output={output}")
    assert done.code == 0, done.output
    return output


def nodes_of(on_cluster: Run, name: str) -> set[str]:
    """Find the nodes on which the actors with this in their class's name lived."""
    listed = on_cluster("ray", "list", "actors", "--address", "http://10.77.0.2:8265", "--format", "json", "--limit", "1000")
    actors = json.loads(listed.stdout)
    return {actor["node_id"] for actor in actors if name in actor["class_name"] and actor["node_id"]}


def columns_of(folder: Path, *names: str) -> dict[str, Any]:
    return read_table(folder).sort_by(col.ID).select([col.ID, *names]).to_pydict()


def submit(on_cluster: Run, *arguments: object, code: int = 0) -> str:
    """Submit a job with one actor and one rank on every node, wait until it has ended, and return what it printed."""
    command = [sys.executable, "-m", "ual_ray", "submit", *arguments, *EACH_ON_A_NODE_OF_ITS_OWN, TRACKED]
    done = on_cluster(*command)
    printed = done.stdout + done.stderr
    assert done.returncode == code and ("FAILED" if code else "SUCCEEDED") in printed, printed
    return printed


def check_equal(several: Path, one: Path) -> None:
    """Compare scores, alphas, weights and which questions were answered of two runs."""
    from safetensors.numpy import load_file

    for pattern, names in (
        ("elicit/*/scored", [col.UNCERTAINTY]),
        ("arms/ual/smooth/*/smoothed.parquet", [col.ALPHA]),
        ("arms/ual/evaluate/*/results", [col.BENCHMARK, col.STATUS]),
    ):
        found, expected = (columns_of(next(output.glob(pattern)), *names) for output in (several, one))
        assert found == expected and len(expected[col.ID]) > 1, pattern
    weights, expected = (load_file(next(output.glob("arms/ual/train/*/model/model.safetensors"))) for output in (several, one))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=1e-6, err_msg=name)


def test_a_run_over_several_machines_equals_that_of_one(
    on_cluster: Run, settings: list[object], here: Path, shared: Path
) -> None:
    submit(on_cluster, *settings, f"output={shared / 'run'}")
    assert len(nodes_of(on_cluster, "TrainWorker")) == 2
    assert len(nodes_of(on_cluster, "MapWorker")) == 2
    tracked = on_cluster("curl", "--silent", "http://10.77.0.250:5000/api/2.0/mlflow/registered-models/search")
    assert "ual-ual" in tracked.stdout
    check_equal(shared / "run", here)


def test_an_output_that_the_workers_do_not_see_is_refused_before_anything_is_asked(
    on_cluster: Run, settings: list[object], nodes: Path
) -> None:
    printed = submit(on_cluster, *settings, "output=/tmp/of_the_head", code=1)
    assert "output is not on storage that all machines of the cluster share" in printed, printed
    assert "is not /tmp/of_the_head on 10.77.0.3, 10.77.0.4" in printed
    output = nodes / "head" / "tmp" / "of_the_head"
    assert output.is_dir() and not list(output.rglob("*.parquet"))


def test_machines_that_share_no_folder_need_a_bucket_alone(
    on_cluster: Run, settings: list[object], here: Path, nodes: Path, rows_file: Path, tmp_path: Path
) -> None:
    names = [part for name in OF_THE_STORE for part in ("--env", name)]
    # Another machine has asked everything, under settings of its own: actors of the cluster find its replies by request.
    store = "elicit.store=s3://runs/replies"
    given = [setting for setting in settings if not str(setting).startswith("data.path")]
    elicit = [sys.executable, "-m", "ual_ray", "elicit", rows_file, *given, store, "elicit.retest_share=1", "--out", tmp_path]
    asked = on_cluster(*elicit)
    assert asked.returncode == 0 and " 0 calls" not in asked.stdout, asked.stdout + asked.stderr
    printed = submit(on_cluster, *settings, *names, store, "output=s3://runs/first")
    assert "MB of replies fetched from s3://runs/replies" in printed and "; 0 calls" in printed, printed
    fetched = on_cluster(sys.executable, "-c", COPY, "s3://runs/first", tmp_path / "run")
    assert fetched.returncode == 0, fetched.stderr
    check_equal(tmp_path / "run", here)
    homes = {node: nodes / node / "tmp" / "home" / ".cache" / "ual_ray" for node in ("head", "worker-1", "worker-2")}
    assert {node for node, home in homes.items() if (home / "outputs").exists()} == {"head"}
    copied = {node: {file.name for file in home.rglob("*") if file.is_file()} for node, home in homes.items()}
    # One actor may have answered all questions before the other had started.
    assert any("model.safetensors" in copied[worker] for worker in ("worker-1", "worker-2")), "what its actor reads"
    for worker in ("worker-1", "worker-2"):
        assert "smoothed.parquet" in copied[worker], f"{worker} has what its rank reads"
        assert not list(homes[worker].glob("copies/*/written-*")), "what was sent is removed"
