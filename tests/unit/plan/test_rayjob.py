"""The RayJob of a plan passes the checks of the files in cluster/, and has as many pods as the configuration takes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_checks import check_job, check_manifest, check_pods

from ual_ray.config.load import dump, load
from ual_ray.errors import UserError
from ual_ray.plan.rayjob import PLACES, rayjob, write_rayjob

TEMPLATE = Path(__file__).parents[3] / "cluster" / "kuberay" / "rayjob.yaml"


def manifest(*overrides: str) -> dict[str, Any]:
    return rayjob(load(None, ["output=/shared/runs/first", *overrides]))


def groups(*overrides: str) -> dict[str, tuple[int, int, int]]:
    spec = manifest(*overrides)["spec"]["rayClusterSpec"]
    return {
        group["groupName"]: (group["minReplicas"], group["replicas"], group["maxReplicas"])
        for group in spec["workerGroupSpecs"]
    }


def test_the_template_is_the_file_of_cluster() -> None:
    assert PLACES[1] == TEMPLATE and TEMPLATE.is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [[], ["engine.gpus_per_actor=1", "engine.max_actors=1000", "train.gpus_per_worker=1", "train.num_workers=16"]],
)
def test_it_passes_the_checks_of_the_cluster_files(overrides: list[str], tmp_path: Path) -> None:
    write_rayjob(load(None, ["output=/shared/runs/first", *overrides]), tmp_path / "job.yaml")
    text = (tmp_path / "job.yaml").read_text()
    found, template = yaml.safe_load(text), yaml.safe_load(TEMPLATE.read_text())
    check_manifest(found)
    check_job(found["spec"])
    check_pods(found["spec"]["rayClusterSpec"])
    assert found["kind"] == "RayJob" and found["spec"].keys() == template["spec"].keys()
    # Nothing but names, the command and numbers of pods differs from the file that is tested.
    for one in (found, template):
        one["metadata"].pop("name")
        one["spec"].pop("entrypoint")
        for group in one["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            for key in ("minReplicas", "replicas", "maxReplicas"):
                group.pop(key)
    assert found == template
    assert "&" not in text.replace("&&", "") and "*" not in text
    assert text.startswith("# Written by `ual plan`")


def test_pods_by_configuration() -> None:
    # Pods of 8 CPUs, 1 GPU or 8 GPUs; two CPUs are kept for Ray Data.
    no_gpus = {"gpu": (0, 0, 0), "gpu8": (0, 0, 0)}
    assert groups("engine.max_actors=30", "engine.cpus_per_actor=1") == {"cpu": (1, 1, 4), **no_gpus}
    assert groups("engine.max_actors=31", "engine.cpus_per_actor=1") == {"cpu": (1, 1, 5), **no_gpus}


@pytest.mark.parametrize(
    ("overrides", "gpu", "gpu8"),
    [
        (["engine.gpus_per_actor=1", "engine.max_actors=1000", "train.gpus_per_worker=1", "train.num_workers=16"], 1000, 2),
        (["engine.gpus_per_actor=1", "engine.max_actors=3", "train.gpus_per_worker=1", "train.num_workers=4"], 4, 0),
        (["engine.gpus_per_actor=4", "engine.max_actors=5"], 0, 3),
        (["engine.gpus_per_actor=0.5", "engine.max_actors=5"], 3, 0),
        (["train.gpus_per_worker=1", "train.num_workers=12"], 0, 2),
        (["train.gpus_per_worker=1", "train.num_workers=2"], 2, 0),
    ],
)
def test_scoring_and_training_have_pods_of_their_own_size(overrides: list[str], gpu: int, gpu8: int) -> None:
    found = groups(*overrides)
    assert (found["gpu"], found["gpu8"]) == ((0, 0, gpu), (0, 0, gpu8))


def test_cpus_bound_what_a_pod_holds() -> None:
    # Of 8 CPUs, one actor of 5; half of a GPU each, but a pod has the CPUs for one alone.
    assert groups("engine.cpus_per_actor=5", "engine.max_actors=6")["cpu"][2] == 6
    assert groups("engine.gpus_per_actor=0.5", "engine.cpus_per_actor=5", "engine.max_actors=3")["gpu"] == (0, 0, 3)


def test_the_name_follows_the_configuration() -> None:
    name = manifest()["metadata"]["name"]
    assert name == manifest()["metadata"]["name"] != manifest("train.epochs=9")["metadata"]["name"]
    assert manifest()["spec"]["entrypoint"] == f"ual run -c /shared/{name}.yaml runtime.address=auto"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b", "a #1", "a: b", "it's", "$HOME", 'a"b', "$(id)", "ünï"])
def test_the_run_writes_to_the_planned_output_whatever_its_name(name: str, tmp_path: Path) -> None:
    """The operator's shell reads the entrypoint, `ray job submit` quotes its words again, and the head's shell reads these."""
    config = load().model_copy(update={"output": f"/shared/{name}"})
    show = f"{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "

    def words(command: str) -> list[str]:
        shown = subprocess.run(["sh", "-c", show + command], capture_output=True, text=True, check=True)
        return list(json.loads(shown.stdout))

    _, _, _, _, *overrides = words(subprocess.list2cmdline(words(rayjob(config)["spec"]["entrypoint"])))
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "config.yaml", overrides).output == config.output


def test_what_the_pods_may_not_have_is_named(tmp_path: Path) -> None:
    paths = ["data.path=/home/me/rows.jsonl", "model=/models/m", "elicit.templates=/shared/prompts.yaml"]
    notes = write_rayjob(load(None, ["output=/shared/runs/first", *paths]), tmp_path / "job.yaml")
    assert notes == ["data.path=/home/me/rows.jsonl", "model=/models/m"]
    assert "#   data.path=/home/me/rows.jsonl" in (tmp_path / "job.yaml").read_text()
    assert write_rayjob(load(None, ["output=/shared/runs/first", "data.path=s3://b/rows", "model=a/b"]), tmp_path / "b") == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["output=runs/x"], "not on the volume"),
        (["output=/tmp/x"], "not on the volume"),
        (["output=/shared/../tmp/x"], "not on the volume"),
        (["tracking.uri=http://me:pw@host"], "secret"),
        (["engine.gpus_per_actor=16"], "does not fit into a pod"),
        (["engine.cpus_per_actor=9"], "(?s)does not fit into a pod.*engine.cpus_per_actor=9"),
        (["train.gpus_per_worker=1", "train.cpus_per_worker=161"], "(?s)does not fit.*cpus_per_worker=161"),
    ],
)
def test_what_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        manifest(*overrides)
