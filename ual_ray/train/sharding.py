"""FSDP2 over a mesh of ranks, one parameter group per decoder layer (HSDP: several sharded replicas)."""

import logging
import os
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train.compat_torch import is_product

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_mesh(config: TrainConfig, device: torch.device) -> DeviceMesh:
    """Make the device mesh of all ranks: 1-D, or for HSDP 2-D with `config.replicas` rows that each shard the whole model."""
    ranks = dist.get_world_size()
    if config.replicas == 1:
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    shards = ranks // config.replicas
    # Set by Ray, whose ranks are in the order of the nodes.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if shards % here and here % shards:
        logger.warning(
            "a replica of %d ranks is split between nodes, as this one has %d: its weights are gathered over the network "
            "(train.replicas, train.num_workers)",
            shards,
            here,
        )
    return init_device_mesh(device.type, (config.replicas, shards), mesh_dim_names=("replicate", "shard"))


def find_layers(body: nn.Module) -> nn.ModuleList:
    """Find a decoder's layers: the module list with the most parameters.

    Raises UserError when there is no module list.
    """
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in modules.parameters()) for modules in lists]
    if not lists:
        raise UserError(
            f"{type(body).__name__} cannot be sharded: the model has no list of decoder layers",
            fix="set model to a decoder of transformers with a list of layers",
        )
    return lists[sizes.index(max(sizes))]


def checkpoint_activations(causal_lm: nn.Module, kind: Literal[True, "selective"] = True) -> None:
    """Enable gradient checkpointing for every decoder layer. Raises UserError when the model does not support it.

    selective: results of products are kept (Korthikanti et al. 2022, arXiv:2205.05198, keep all but attention's core), and
    what lies between them is recomputed.
    """
    if not causal_lm.supports_gradient_checkpointing:
        raise UserError(
            f"{type(causal_lm).__name__} does not support gradient checkpointing",
            got=f"train.activation_checkpointing={str(kind).lower()}",
            fix="set train.activation_checkpointing=false and lower train.micro_batch_size",
        )
    own = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if kind == "selective" else {}
    causal_lm.gradient_checkpointing_enable({"use_reentrant": False, **own})


def _policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_product(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def shard(model: nn.Module, mesh: DeviceMesh, config: TrainConfig) -> None:
    """Shard every decoder layer, then the rest, over the mesh. Arithmetic is `config.dtype`.

    model: a SmoothedCausalLM, whose weights keep their dtype, float32 if they are trained. Gradients of all ranks are added,
    never averaged.
    """
    precision = MixedPrecisionPolicy(param_dtype=DTYPES[config.dtype], reduce_dtype=torch.float32)
    # Ranks that compute on the CPU have everything there already.
    offload = CPUOffloadPolicy() if config.cpu_offload and mesh.device_type != "cpu" else OffloadPolicy()
    shared: dict[str, Any] = {"mesh": mesh, "offload_policy": offload}
    again: dict[str, Any] = {"mp_policy": precision, "reshard_after_forward": config.reshard_after_forward}
    for layer in find_layers(model.body):
        fully_shard(layer, **shared, **again)
    embedding, head = model.model.get_input_embeddings(), model.model.get_output_embeddings()
    if embedding.weight is not head.weight:
        fully_shard(embedding, **shared, **again)
    # The root's inputs are token ids and alpha: casting to bfloat16 would round alpha.
    fully_shard(model, **shared, mp_policy=replace(precision, cast_forward_inputs=False))
    register_fsdp_forward_method(model, "logits")
    register_fsdp_forward_method(model, "states")
    # Unsharded gradients are as large as unsharded weights: if weights are freed between uses, gradients do not fit either.
    model.holds_gradients = not config.reshard_after_forward
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is already divided by the step's global number of target tokens, so FSDP must sum, not average.
            module.set_gradient_divide_factor(1.0)
            # Gloo supports only the plain sum.
            module.set_force_sum_reduction_for_comms(True)


def reshard(model: nn.Module) -> None:
    """Free all gathered weights, so that `parameters` and `state_dict` return the sharded float32 ones again.

    FSDP leaves some gathered after a forward pass without a backward pass.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
