"""Memory that training takes whatever the model's architecture: weights, gradients, optimizer, checkpoint, processes.

Without torch, so that the check before a run takes milliseconds; `memory` adds what depends on the architecture.
"""

from __future__ import annotations

from ual_ray.config import TrainConfig

FLOAT32 = 4
ADAM_MOMENTS = 2
# OURS: a CPU worker with Python, torch, Ray and transformers; a GPU's CUDA context, NCCL buffers and cuBLAS workspace.
PROCESS_BYTES = {"cpu": 600_000_000, "cuda": 2_000_000_000}


def state_bytes(parameters: int, trainable: int) -> dict[str, int]:
    """Bytes by part, for this many float32 parameters of which `trainable` have a gradient and AdamW's two moments."""
    return {"weights": FLOAT32 * parameters, "gradients": FLOAT32 * trainable, "optimizer": ADAM_MOMENTS * FLOAT32 * trainable}


def checkpoint_bytes(trainable: int) -> int:
    """Bytes of a checkpoint with this many trained parameters: float32 weights and AdamW's two moments."""
    return (1 + ADAM_MOMENTS) * FLOAT32 * trainable


def least_bytes(parameters: int, train: TrainConfig) -> int:
    """Bytes that all CPU workers together need at least, with the copy for a checkpoint and without activations.

    parameters: of the model. Adapters are not counted: they are small in comparison.
    """
    trainable = 0 if train.lora.rank else parameters
    model = sum(state_bytes(parameters, trainable).values()) + checkpoint_bytes(trainable)
    return train.replicas * model + train.num_workers * PROCESS_BYTES["cpu"]
