"""What Ray Train runs in a worker, which imports the training loop; its controller only passes this on."""

from typing import Any

import ray.train

from ual_ray.run.machines import output_folder
from ual_ray.train.job import Outcome


def run_worker(loop_config: dict[str, Any]) -> Outcome:
    """Run the training loop in a worker of Ray Train."""
    from ray.train.torch import get_device

    from ual_ray.train.loop import train_worker

    storage = ray.train.get_context().get_storage()
    return train_worker(
        loop_config["job"],
        get_device(),
        storage.storage_filesystem,
        storage.experiment_fs_path,
        preempted=lambda: ray.train.get_preemption_info() is not None,
        output=output_folder(),
    )
