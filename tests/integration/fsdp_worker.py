"""Run by torchrun in test_fsdp.py: one accumulated backward pass, its gradients and sums written to a file by rank 0."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ual_ray.config import TrainConfig
from ual_ray.train import checkpoint
from ual_ray.train.batches import Sample, plan_steps
from ual_ray.train.model import SmoothedCausalLM, load_causal_lm, shard
from ual_ray.train.step import averages, backward, make_optimizer, train_step


def main(model_path: str, samples_file: str, micro_batch_size: int, out: Path, dtype: str) -> None:
    """Compute gradients, then take a step, save and load a checkpoint, take another, and save what came out."""
    dist.init_process_group("gloo")
    samples = [Sample(**fields) for fields in torch.load(samples_file)]
    config = TrainConfig(dtype=dtype, micro_batch_size=micro_batch_size, learning_rate=1e-2)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = shard(SmoothedCausalLM(load_causal_lm(model_path)), mesh, config)
    (step,) = plan_steps(
        [len(sample.input_ids) for sample in samples],
        epochs=1,
        global_batch_size=len(samples),
        micro_batch_size=micro_batch_size,
        world_size=dist.get_world_size(),
        seed=0,
    )
    device = torch.device("cpu")
    target_tokens = sum(sample.target_tokens for sample in samples)
    sums = backward(model, step.micro_batches[dist.get_rank()], samples, target_tokens, device)
    gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
    metrics = averages(sums)
    model.zero_grad(set_to_none=True)

    optimizer = make_optimizer(model, config)
    first = train_step(model, optimizer, step, samples, 1e-2, 1.0, device)
    state = checkpoint.TrainingState(model, optimizer)
    state.finished_steps = 1
    checkpoint.save(state, out.with_suffix(".checkpoint"))
    second = train_step(model, optimizer, step, samples, 1e-2, 1.0, device)
    checkpoint.load(state, out.with_suffix(".checkpoint"))
    again = train_step(model, optimizer, step, samples, 1e-2, 1.0, device)
    checkpoint.export(model.model, model_path, out.with_suffix(".model"))
    if dist.get_rank() == 0:
        torch.save({"gradients": gradients, "metrics": metrics, "steps": [first, second, again]}, out)
    dist.destroy_process_group()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a sharded tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
