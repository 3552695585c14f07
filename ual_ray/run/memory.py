"""Memory that a process has taken."""

import resource
import sys

import torch

from ual_ray.formatting import GIB


def peak_memory(device: torch.device) -> float:
    """Highest memory so far in GiB: allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest * (1 if sys.platform == "darwin" else 1024) / GIB
