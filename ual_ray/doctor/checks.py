"""The checks of `ual doctor`, in the order of its output."""

from ual_ray.doctor import cluster, machine, network
from ual_ray.doctor.findings import Check

# Longer than any check's own timeout.
SECONDS = 60.0
CHECKS: dict[str, Check] = {
    "versions": machine.check_versions,
    "ray": cluster.check_ray,
    "gpus": cluster.check_gpus,
    "memory": machine.check_memory,
    "shm": machine.check_shared_memory,
    "disk": machine.check_disk,
    "mlflow": network.check_mlflow,
    "data": network.check_rows,
    "output": network.check_output,
    "models": network.check_models,
    "hub": network.check_hub,
    "endpoint": network.check_endpoint,
}
