"""What holds for every KubeRay manifest of this package, whether a file of cluster/ or written by `ual plan --rayjob`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import jsonschema
import kuberay_schema

from ual_ray.config.load import load


def pod_specs(spec: Any) -> Iterator[Any]:
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def check_manifest(manifest: Any) -> None:
    """A RayCluster or RayJob has the fields that KubeRay knows, of their types."""
    jsonschema.validate(manifest, kuberay_schema.manifest(manifest["kind"]))


def check_pods(spec: Any) -> None:
    """Every pod sees the shared volume and the optional secrets, and no task is placed on the head."""
    for pod in pod_specs(spec):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts.keys() == {"/shared", "/dev/shm"}
        assert mounts["/shared"]["persistentVolumeClaim"] == {"claimName": "ual-shared"}
        assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
        assert all(source["secretRef"]["optional"] for source in container["envFrom"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        # The operator's autoscaler, a container of the head's pod, has none of its own.
        assert container["securityContext"] == spec["autoscalerOptions"]["securityContext"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def check_job(job: Any) -> None:
    """A RayJob's entrypoint is a legal run of a file on the shared volume; it is tried again, and leaves no cluster behind."""
    program, command, option, file, *overrides = shlex.split(job["entrypoint"])
    assert (program, command, option) == ("ual", "run", "-c")
    assert file.startswith("/shared/")
    assert load(None, overrides).runtime.address == "auto"
    assert job["backoffLimit"] == 2
    (submitter,) = job["submitterPodTemplate"]["spec"]["containers"]
    ray = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert (submitter["image"], submitter["securityContext"]) == (ray["image"], ray["securityContext"])
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
