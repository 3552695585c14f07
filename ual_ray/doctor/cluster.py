"""Ray and GPUs. What a library might hang or crash in is asked in a process of its own, which is killed after SECONDS.

python -m ual_ray.doctor.cluster ray | gpus < CONFIGURATION      prints JSON
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ual_ray.config import Config
from ual_ray.config.environment import version_of
from ual_ray.doctor.findings import Finding
from ual_ray.errors import UserError
from ual_ray.formatting import gib, plural

SECONDS = 40.0
INTERFACES = Path("/sys/class/net")
START = "start the cluster, correct runtime.address or RAY_ADDRESS, or set runtime.address=null for a cluster of this machine"


def check_ray(config: Config) -> list[Finding]:
    """Check that the cluster of the configuration answers, and has what the stages ask for."""
    address = config.runtime.joined
    return [*judge_ray(version_of("ray"), address, ask("ray", config) if address else {}, os.cpu_count())]


def judge_ray(version: str | None, address: str | None, answer: Mapping[str, Any], cpus: int | None) -> Iterator[Finding]:
    """Yield findings about Ray. answer: of `read_ray`, or what is wrong as its key `error`."""
    if not address:
        yield Finding(
            "ray", "ok", f"Ray {version}; no address: a run starts a cluster on this machine, of {plural(cpus, 'core')}"
        )
    elif "error" in answer:
        yield Finding("ray", "error", f"{address}: {answer['error']}", answer.get("fix", START))
    else:
        amounts = {name: f"{answer['resources'].get(name, 0):g} {name}s" for name in ("CPU", "GPU")}
        have = f"{answer['nodes']} nodes, {', '.join(amounts.values())}, {gib(answer['resources'].get('memory', 0))}"
        yield Finding("ray", "ok", f"Ray {version} at {address}: {have}")
        for text in answer["waits"]:
            fix = "lower these settings; or let the cluster grow, for which a run waits"
            yield Finding("ray", "warning", text, fix)


def check_gpus(config: Config) -> list[Finding]:
    """Check the GPUs of this machine, and NCCL."""
    return [*judge_gpus(config, ask("gpus", config), shutil.which("nvidia-smi") is not None), *check_interface()]


def judge_gpus(config: Config, answer: Mapping[str, Any], driver: bool) -> Iterator[Finding]:
    """Yield findings about GPUs. answer: of `read_gpus`; driver: whether NVIDIA's tools are installed."""
    wanted = max(config.engine.gpus_per_actor, config.train.gpus_per_worker) > 0
    here = config.runtime.joined is None
    keys = "engine.gpus_per_actor or train.gpus_per_worker"
    if "error" in answer:
        yield Finding("gpus", "error", str(answer["error"]), "check the driver with `nvidia-smi`")
        return
    if not answer["gpus"]:
        if driver and answer["cuda"] is None:
            text = f"PyTorch {answer['torch']} has no CUDA, on a machine with NVIDIA's driver"
            yield Finding("gpus", "error" if wanted and here else "warning", text, "pip install 'ual_ray[gpu]'")
        elif wanted and here:
            yield Finding(
                "gpus", "error", f"none here, and {keys} asks for them", "set both to 0, or name a cluster (runtime.address)"
            )
        else:
            yield Finding(
                "gpus", "ok", "none here" + ("; the cluster's are asked for" if wanted else ", and none is asked for")
            )
        return
    listed = ", ".join(f"{gpu['name']} ({gib(gpu['free'])} of {gib(gpu['total'])} free)" for gpu in answer["gpus"])
    if wanted:
        yield Finding("gpus", "ok", f"{listed}; CUDA {answer['cuda']}")
    else:
        yield Finding("gpus", "warning", f"{listed}; none is asked for", f"set {keys}")
    if answer["nccl"]:
        yield Finding("nccl", "ok", f"NCCL {answer['nccl']}")
    elif config.train.gpus_per_worker and config.train.num_workers > 1:
        yield Finding(
            "nccl", "error", "PyTorch has no NCCL, which train.num_workers > 1 on GPUs needs", "pip install 'ual_ray[gpu]'"
        )


def check_interface() -> list[Finding]:
    """Check the network interface that NCCL and Gloo are told to use."""
    names = sorted(path.name for path in INTERFACES.iterdir()) if INTERFACES.is_dir() else []
    variables = {name: os.environ[name] for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if name in os.environ}
    return [*judge_interface(variables, names)]


def judge_interface(variables: Mapping[str, str], names: Collection[str]) -> Iterator[Finding]:
    """Yield an error for a variable that names no interface of this machine; it takes prefixes, `=name`, and `^name`."""
    for variable, value in variables.items():
        if value.startswith("^") or not names:
            continue
        exact, wanted = value.startswith("="), [part for part in value.removeprefix("=").split(",") if part]
        if not any(name == part or (not exact and name.startswith(part)) for part in wanted for name in names):
            text = f"{variable}={value} names no interface of this machine: {', '.join(names)}"
            yield Finding("nccl", "error", text, f"unset {variable}, or name one of them")


def ask(what: str, config: Config, seconds: float = SECONDS) -> dict[str, Any]:
    """Ask in a process of its own; return its answer, or what is wrong as the key `error`."""
    command = [sys.executable, "-m", __name__, what]
    try:
        done = subprocess.run(command, input=config.model_dump_json(), capture_output=True, text=True, timeout=seconds)  # noqa: S603
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {seconds:g} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"error": f"the process that asks ended: {last}"}
    answer = json.loads(lines[-1])
    assert isinstance(answer, dict)
    return answer


def read_ray(config: Config) -> dict[str, Any]:
    """Connect to the cluster and return its `resources`, number of `nodes`, and the `waits` of `check_cluster`."""
    import ray

    from ual_ray.run.cluster import check_cluster, ray_cluster

    try:
        with ray_cluster(config.runtime):
            nodes = sum(node["Alive"] for node in ray.nodes())
            return {"resources": ray.cluster_resources(), "nodes": nodes, "waits": check_cluster(config, {"elicit", "train"})}
    except UserError as error:
        what, *parts = str(error).splitlines()
        named = dict(part.strip().split(": ", 1) for part in parts if ": " in part)
        return {"error": f"{what}: {named.get('got', '')}", "fix": named.get("fix", START)}


def read_gpus(config: Config) -> dict[str, Any]:
    """Return the `gpus` of this machine, and the versions of `torch`, `cuda` and `nccl`; None where there is none."""
    import torch
    import torch.distributed

    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available() and bool(gpus)
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None
    return {"gpus": gpus, "torch": torch.__version__, "cuda": torch.version.cuda, "nccl": nccl}


if __name__ == "__main__":
    given = Config.model_validate_json(sys.stdin.read())
    print(json.dumps({"ray": read_ray, "gpus": read_gpus}[sys.argv[1]](given)))
