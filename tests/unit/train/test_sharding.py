"""Finding a model's decoder layers, laying out ranks, and telling how; the sharding itself is tested over real ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import AutoModelForCausalLM

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train import sharding
from ual_ray.train.compat_torch import flop_counter
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.weights import empty_model


def test_the_decoder_layers_of_every_family_are_found(any_family: str, family_folder: Any) -> None:
    model: Any = empty_model(str(family_folder(any_family)))
    layers = sharding.find_layers(model.get_decoder())
    assert len(layers) == 2
    embedding = model.get_input_embeddings().weight
    assert not any(parameter is embedding for parameter in layers.parameters())
    assert any("attn" in name or "attention" in name for name, _ in layers[0].named_parameters())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="decoder layers"):
        sharding.find_layers(nn.Linear(2, 2))


def test_activations_are_checkpointed_where_the_model_can() -> None:
    class Model(nn.Module):
        supports_gradient_checkpointing = False

    with pytest.raises(UserError, match=r"train\.activation_checkpointing=false"):
        sharding.checkpoint_activations(Model())


@pytest.mark.slow
def test_what_is_recomputed_changes_no_gradient_and_is_no_product(any_family: str, family_folder: Any) -> None:
    """In every family: with true, forward is computed twice but for what nothing needs; with selective, no product is."""
    found = {}
    for kind in (False, "selective", True):
        causal_lm: Any = AutoModelForCausalLM.from_pretrained(family_folder(any_family), dtype=torch.float32)
        if kind:
            sharding.checkpoint_activations(causal_lm, kind)  # type: ignore[arg-type]
        body = causal_lm.get_decoder().train()
        torch.manual_seed(0)  # some drop activations
        with flop_counter() as counter:
            states = body(input_ids=torch.arange(4, 24).view(2, 10), use_cache=False).last_hidden_state
            states.square().mean().backward()
        found[kind] = counter.get_total_flops(), [tensor.grad for tensor in body.parameters() if tensor.grad is not None]
    (plain, gradients), (selective, same), (full, others) = found.values()
    assert gradients and plain == selective < full
    for each in (same, others):
        torch.testing.assert_close(each, gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("replicas", "here", "warned"), [(2, 8, False), (4, 8, False), (2, 4, False), (2, 6, True), (2, 10, True), (1, 6, False)]
)
def test_a_replica_that_nodes_share_unevenly_is_told(
    replicas: int, here: int, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shapes: list[Any] = []
    monkeypatch.setattr(sharding.dist, "get_world_size", lambda: 16)
    monkeypatch.setattr(sharding, "init_device_mesh", lambda device, shape, mesh_dim_names: shapes.append(shape))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    sharding.make_mesh(TrainConfig(num_workers=16, replicas=replicas), torch.device("cpu"))
    assert shapes == [(16,) if replicas == 1 else (replicas, 16 // replicas)]
    assert ("split between nodes" in caplog.text) == warned


@pytest.mark.parametrize(("device", "offloads"), [("cuda", True), ("cpu", False)])
def test_what_is_offloaded_stays_pinned_in_host_memory(
    device: str, offloads: bool, family_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[Any] = []
    monkeypatch.setattr(sharding, "fully_shard", lambda module, offload_policy, **_: policies.append(offload_policy))
    monkeypatch.setattr(sharding, "register_fsdp_forward_method", lambda *_: None)
    mesh: Any = SimpleNamespace(device_type=device)
    model = SmoothedCausalLM(empty_model(str(family_folder("llama_untied"))))
    sharding.shard(model, mesh, TrainConfig(cpu_offload=True, dtype="float32"))
    assert len(policies) == 2 + 1 + 1, "two layers, the embedding, and the rest"
    assert all(isinstance(policy, CPUOffloadPolicy) == offloads for policy in policies)
    assert not offloads or all(policy.pin_memory for policy in policies)
