"""A run as a RayJob for KubeRay: cluster/kuberay/rayjob.yaml with the configuration's output and the pods that it takes."""

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.config.files import write_text
from ual_ray.config.keys import naming
from ual_ray.config.redact import redact
from ual_ray.errors import UserError
from ual_ray.run.cluster import SPARE_LOGICAL_CPUS

# In a wheel the template is here; in a checkout it is the file that it was copied from.
PLACES = (Path(__file__).with_name("rayjob.yaml"), Path(__file__).parents[2] / "cluster" / "kuberay" / "rayjob.yaml")
GPU = "nvidia.com/gpu"
# The volume that all pods see.
SHARED = "shared"
HEADER = """# Written by `ual plan`: {name}, for {output}.
# First the claim and the secret of cluster/kuberay/raycluster.yaml, and the configuration as {config} on the shared volume:
#   ual config -c CONFIG KEY=VALUE... > config.yaml
# Then: kubectl apply -f THIS_FILE; kubectl logs -f job/{name}
# CHANGE the image: with your registry in front.
{note}"""
NOTE = "# The pods need these paths as well, such as below {shared}:\n{paths}"


def rayjob(config: Config) -> dict[str, Any]:
    """Return the manifest. Raises UserError for an output that is not on the volume of all pods, and for secrets."""
    manifest: dict[str, Any] = yaml.safe_load(next(place for place in PLACES if place.is_file()).read_text(encoding="utf-8"))
    spec = manifest["spec"]["rayClusterSpec"]
    pods = (group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]))
    mounts = (mount for pod in pods for mount in pod["containers"][0]["volumeMounts"])
    (shared,) = {mount["mountPath"] for mount in mounts if mount["name"] == SHARED}
    if not _is_below(config.output, shared):
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
    # No values of the configuration: two shells would read them, and YAML.
    manifest["spec"]["entrypoint"] = shlex.join(["ual", "run", "-c", file, "runtime.address=auto"])
    _size(spec["workerGroupSpecs"], config)
    return manifest


def write_rayjob(config: Config, file: Path) -> list[str]:
    """Write the manifest with a comment on how to apply it; return the paths, KEY=PATH, that are not on the pods' volume."""
    manifest = rayjob(config)
    name = manifest["metadata"]["name"]
    given = shlex.split(manifest["spec"]["entrypoint"])[3]
    shared = str(Path(given).parent)
    named = naming(config, "model", "directory", "file", "data", "storage")
    paths = [f"{key}={path}" for key, path in named.items() if Path(path).is_absolute() and not _is_below(path, shared)]
    note = NOTE.format(shared=shared, paths="".join(f"#   {path}\n" for path in paths)) if paths else ""
    text = yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=120)
    write_text(file, HEADER.format(name=name, output=config.output, config=given, note=note) + text)
    return paths


def _is_below(path: str, folder: str) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(folder)


class _Plain(yaml.SafeDumper):
    """Writes equal parts out instead of references to the first one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _size(groups: list[dict[str, Any]], config: Config) -> None:
    """Set how many pods of each group the run may take. Stages follow one another, so that the larger one counts."""
    engine, train = config.engine, config.train
    pods = [0 if _gpus(group) else 1 for group in groups]
    actor = {"engine.gpus_per_actor": engine.gpus_per_actor, "engine.cpus_per_actor": engine.cpus_per_actor}
    worker = {"train.gpus_per_worker": train.gpus_per_worker, "train.cpus_per_worker": train.cpus_per_worker}
    for unit, units, together in ((actor, engine.max_actors, 1), (worker, train.num_workers, train.num_workers)):
        gpus, cpus = unit.values()
        at = _group_for(groups, unit, together)
        needed = units / _held(groups[at], gpus, cpus)
        if not gpus:
            needed = max(needed, (units * cpus + SPARE_LOGICAL_CPUS) / _cpus(groups[at]))
        pods[at] = max(pods[at], math.ceil(needed))
    for at, group in enumerate(groups):
        group["maxReplicas"] = pods[at]
        group["minReplicas"] = min(group["minReplicas"], pods[at])
        group["replicas"] = min(group["replicas"], pods[at])


def _group_for(groups: list[dict[str, Any]], unit: Mapping[str, float], together: int) -> int:
    """Choose the group with the largest pods that units which belong together fill, or else the smallest that hold a unit.

    unit: its GPUs and its CPUs, by key. Raises UserError when no pod holds one.
    """
    gpus, cpus = unit.values()
    same = {at: group for at, group in enumerate(groups) if bool(_gpus(group)) == bool(gpus)}
    holding = {at: _gpus(group) for at, group in same.items() if _held(group, gpus, cpus)}
    if not holding:
        pods = " or ".join(f"{_gpus(group)} GPUs with {_cpus(group):g} CPUs" for group in same.values())
        raise UserError(
            "--rayjob: an actor or worker does not fit into a pod of the template",
            got=", ".join(f"{key}={amount:g}" for key, amount in unit.items()),
            expected=f"at most {pods} per pod",
            fix="lower them, or write a group of larger pods as in cluster/kuberay/rayjob.yaml",
        )
    filled = {at: found for at, found in holding.items() if found <= gpus * together}
    return max(filled, key=filled.__getitem__) if filled else min(holding, key=holding.__getitem__)


def _held(group: dict[str, Any], gpus: float, cpus: float) -> int:
    """Count the units that a pod of a group holds."""
    found = [math.floor(have / need) for have, need in ((_gpus(group), gpus), (_cpus(group), cpus)) if need]
    return min(found)


def _cpus(group: dict[str, Any]) -> float:
    return float(_limits(group)["cpu"])


def _gpus(group: dict[str, Any]) -> int:
    return int(_limits(group).get(GPU, 0))


def _limits(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]["resources"]["limits"]
