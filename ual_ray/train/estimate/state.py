"""Memory that training takes whatever the model's architecture: weights, gradients, optimizer, checkpoint, processes.

Without torch, so that the check before a run takes milliseconds; `memory` adds what depends on the architecture.
"""

from collections.abc import Iterable

from ual_ray.config import Config, TrainConfig

FLOAT32, BFLOAT16 = 4, 2
ADAM_MOMENTS = 2
# OURS: a CPU worker with Python, torch, Ray and transformers; a GPU's CUDA context, NCCL buffers and cuBLAS workspace.
PROCESS_BYTES = {"cpu": 600_000_000, "cuda": 2_000_000_000}
# OURS: host memory of a GPU worker: Python, torch and its CUDA libraries, Ray, NCCL's buffers.
GPU_WORKER_HOST_BYTES = 4_000_000_000
# OURS: host memory of torch.compile in a worker, with what compiling leaves. Three kinds of layers left 0.2 to 0.4 GB.
COMPILER_BYTES = 400_000_000


def state_bytes(weights: int, trainable: int) -> dict[str, int]:
    """Bytes by part, for weights of so many bytes, of which `trainable` parameters have a gradient and AdamW's two moments."""
    return {"weights": weights, "gradients": FLOAT32 * trainable, "optimizer": ADAM_MOMENTS * FLOAT32 * trainable}


def checkpoint_bytes(trainable: int) -> int:
    """Bytes of a checkpoint with this many trained parameters: float32 weights and AdamW's two moments."""
    return (1 + ADAM_MOMENTS) * FLOAT32 * trainable


def compiler_bytes(train: TrainConfig) -> int:
    """Bytes of host memory that compiling the layers takes in each worker."""
    return COMPILER_BYTES if train.compile else 0


def pinned_bytes(sizes: Iterable[int]) -> int:
    """Bytes of tensors in pinned memory, which torch allocates one by one in powers of two."""
    return sum(1 << (size - 1).bit_length() for size in sizes if size)


def heaviest(config: Config) -> TrainConfig:
    """Return the training settings of the arm that takes the most memory, those of `train` without arms."""
    # Arms differ in nothing else that takes memory.
    trainings = [arm.training(config.train) for arm in config.arms.values()]
    return max(trainings or [config.train], key=lambda train: train.holds_copy)


def least_bytes(parameters: int, train: TrainConfig) -> int:
    """Bytes that all CPU workers together need at least, with the copy for a checkpoint and without activations.

    parameters: of the model. Adapters are not counted: they are small in comparison.
    """
    trainable = 0 if train.lora.rank else parameters
    held = train.lora.base_dtype if train.lora.rank else "float32"
    low = held == "bfloat16" or (held == "auto" and train.dtype != "float32")
    weights = (BFLOAT16 if low else FLOAT32) * parameters
    copy = 0 if train.cpu_offload else checkpoint_bytes(trainable)
    model = sum(state_bytes(weights, trainable).values()) + copy
    if train.holds_copy:
        model += (FLOAT32 if train.dtype == "float32" else BFLOAT16) * parameters
    return train.replicas * model + train.num_workers * (PROCESS_BYTES["cpu"] + compiler_bytes(train))
