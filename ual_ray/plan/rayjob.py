"""A run as a RayJob for KubeRay: cluster/kuberay/rayjob.yaml with the configuration's output and the pods that it takes."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.config.files import write_text
from ual_ray.config.redact import redact
from ual_ray.errors import UserError
from ual_ray.run.cluster import SPARE_LOGICAL_CPUS

# In a wheel the template is here; in a checkout it is the file that it was copied from.
PLACES = (Path(__file__).with_name("rayjob.yaml"), Path(__file__).parents[2] / "cluster" / "kuberay" / "rayjob.yaml")
GPU = "nvidia.com/gpu"
HEADER = """# Written by `ual plan`: {name}, for {output}.
# First the claim and the secret of cluster/kuberay/raycluster.yaml, and the configuration as {config} on the shared volume:
#   ual config -c CONFIG KEY=VALUE... > config.yaml
# Then: kubectl apply -f THIS_FILE; kubectl logs -f job/{name}
# CHANGE the image: with your registry in front.
"""


def rayjob(config: Config) -> dict[str, Any]:
    """Return the manifest. Raises UserError for an output that is not on the volume of all pods, and for secrets."""
    manifest: dict[str, Any] = yaml.safe_load(next(place for place in PLACES if place.is_file()).read_text(encoding="utf-8"))
    spec = manifest["spec"]["rayClusterSpec"]
    (shared,) = {mount["mountPath"] for pod in _pods(spec) for mount in pod["containers"][0]["volumeMounts"]}
    if not Path(config.output).is_relative_to(shared):
        raise UserError(
            "--rayjob: output is not on the volume that all pods have",
            got=config.output,
            expected=f"a folder below {shared}",
            fix=f"output={shared}/runs/...",
        )
    if redact(config) != config:
        raise UserError("--rayjob: the configuration contains a secret", fix="set it in the Secret of raycluster.yaml")
    name = f"ual-{digest(config.model_dump(mode='json'))}"
    file = f"{shared}/{name}.yaml"
    manifest["metadata"]["name"] = name
    words = ["ual", "run", "-c", file, "runtime.address=auto", f"output={config.output}"]
    manifest["spec"]["entrypoint"] = shlex.join(words)
    for group in spec["workerGroupSpecs"]:
        _size(group, config)
    return manifest


def write_rayjob(config: Config, file: Path) -> None:
    """Write the manifest with a comment on how to apply it."""
    manifest = rayjob(config)
    name = manifest["metadata"]["name"]
    given = shlex.split(manifest["spec"]["entrypoint"])[3]
    text = yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=120)
    write_text(file, HEADER.format(name=name, output=config.output, config=given) + text)


class _Plain(yaml.SafeDumper):
    """Writes equal parts out instead of references to the first one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _size(group: dict[str, Any], config: Config) -> None:
    """Set how many pods of a group the run may take. Stages follow one another, so that the larger one counts."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    engine, train = config.engine, config.train
    if GPU in limits:
        _check_fits(int(limits[GPU]), config)
        gpus = max(engine.gpus_per_actor * engine.max_actors, train.gpus_per_worker * train.num_workers)
        pods = math.ceil(gpus / int(limits[GPU]))
    else:
        actors = 0.0 if engine.gpus_per_actor else engine.cpus_per_actor * engine.max_actors
        workers = 0.0 if train.gpus_per_worker else train.cpus_per_worker * train.num_workers
        pods = max(1, math.ceil((max(actors, workers) + SPARE_LOGICAL_CPUS) / float(limits["cpu"])))
    group["maxReplicas"] = pods
    group["minReplicas"] = min(group["minReplicas"], pods)
    group["replicas"] = min(group["replicas"], pods)


def _check_fits(gpus: int, config: Config) -> None:
    if config.engine.gpus_per_actor > gpus:
        raise UserError(
            "--rayjob: an actor does not fit into a pod of the template",
            got=f"engine.gpus_per_actor={config.engine.gpus_per_actor:g}",
            expected=f"at most {gpus} per pod",
            fix="lower it, or write a group of larger pods as in cluster/kuberay/rayjob.yaml",
        )


def _pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
