"""The parts of the memory estimate, checked by hand and against real tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_llama import INNER, LAYERS, VOCABULARY, WIDTH, settings, write

from ual_ray.config import TrainConfig
from ual_ray.train.estimate import dry_run
from ual_ray.train.estimate.forward_pass import forward_pass
from ual_ray.train.estimate.memory import count_parameters, estimate
from ual_ray.train.estimate.state import GPU_WORKER_HOST_BYTES, checkpoint_bytes, least_bytes, pinned_bytes
from ual_ray.train.estimate.text import show
from ual_ray.train.lora import add_adapters
from ual_ray.train.weights import empty_model

LOW = ("bfloat16", "bfloat16")

# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_model_and_shards_are_rounded_up(model: str) -> None:
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER + 2 * WIDTH
    found = count_parameters(empty_model(model), shards=3)
    assert found.total == found.trainable == 2 * VOCABULARY * WIDTH + LAYERS * layer + WIDTH
    assert found.trainable_embedding == VOCABULARY * WIDTH  # which a head of its own leaves alone
    assert found.root == VOCABULARY * WIDTH + WIDTH
    # 1000 rows over 3 ranks: 334; 32 rows: 11; 64 rows: 22.
    shard_of_layer = 4 * 11 * WIDTH + 2 * 22 * WIDTH + 11 * INNER + 2 * 11
    assert found.shard == 2 * 334 * WIDTH + LAYERS * shard_of_layer + 11
    assert found.trainable_head


def test_only_adapters_are_trained_with_lora(model: str) -> None:
    causal_lm = empty_model(model)
    add_adapters(causal_lm, TrainConfig(lora={"rank": 2}).lora)  # type: ignore[arg-type]
    found = count_parameters(causal_lm, shards=1)
    assert found.trainable == LAYERS * 2 * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))
    assert not found.trainable_head and found.trainable_root == 0
    assert checkpoint_bytes(found.trainable) == 12 * found.trainable


# --- the forward pass ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rank", [None, 2])
def test_counted_activations_are_those_that_real_tensors_keep(model: str, packed: bool, rank: int | None) -> None:
    rows, length = 3, 64
    causal_lm = empty_model(model)
    if rank:
        add_adapters(causal_lm, TrainConfig(lora={"rank": rank}).lora)  # type: ignore[arg-type]
    counted = forward_pass(causal_lm, "float32", rows, length, packed=packed)

    causal_lm.to_empty(device="cpu").train()
    for parameter in [*causal_lm.parameters(), *causal_lm.buffers()]:
        torch.nn.init.normal_(parameter.data) if parameter.is_floating_point() else None
    weights = {tensor.untyped_storage().data_ptr() for tensor in causal_lm.state_dict().values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    # Some padding, some restarting positions: transformers makes no mask where it sees that none is needed.
    positions = torch.arange(length).repeat(rows, 1) if not packed else (torch.arange(length) % 20).repeat(rows, 1)
    mask = None if packed else torch.ones(rows, length, dtype=torch.long).index_fill_(1, torch.tensor([length - 1]), 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        body: Any = causal_lm.get_decoder()  # type: ignore[operator]
        body(
            input_ids=torch.zeros(rows, length, dtype=torch.long), position_ids=positions, attention_mask=mask, use_cache=False
        )
    real = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)
    assert counted.kept == pytest.approx(real, rel=0.02)


@pytest.mark.slow
def test_operations_are_those_of_the_products(model: str) -> None:
    rows, length = 2, 64
    found = forward_pass(empty_model(model), "bfloat16", rows, length, packed=False)
    products = 2 * rows * length * LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    attention = 2 * 2 * rows * length * length * WIDTH * LAYERS
    assert found.flops == pytest.approx(products + attention, rel=0.02)


@pytest.mark.slow
def test_a_token_meets_only_its_experts(family_folder: Any) -> None:
    """Two layers of width 32: four heads of 8, keys and values of two; a router of 4 experts, 2 of them met, of width 16."""
    rows, length = 2, 64
    found = forward_pass(empty_model(str(family_folder("qwen3_moe"))), "float32", rows, length, packed=False)
    products = 2 * rows * length * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 4 * 32 + 2 * 3 * 32 * 16)
    assert found.flops == pytest.approx(products + 2 * 2 * 2 * rows * length * length * 32, rel=0.02)


@pytest.mark.slow
def test_checkpointing_keeps_the_layers_inputs_and_one_layer(model: str) -> None:
    found = forward_pass(empty_model(model), "float32", 4, 128, packed=False)
    inputs = LAYERS * 4 * 128 * WIDTH * 4
    assert inputs < found.kept_checkpointed < found.kept / 2 + inputs
    # Of queries, keys, values, attention with a log-sum-exp of each of four heads, its projection, gate, up and down.
    products = LAYERS * 4 * 128 * (6 * WIDTH + 4 + 2 * INNER) * 4
    assert found.kept_selective - found.kept_checkpointed == products
    assert [found.kept_with(kind) for kind in (False, True, "selective")] == [
        *(found.kept, found.kept_checkpointed, found.kept_selective),
    ]


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "part", "ratio"),
    [
        ({"num_workers": 8}, "weights", 0.25),
        ({"num_workers": 8, "replicas": 4}, "weights", 1.0),
        ({"num_workers": 8}, "optimizer", 0.25),
        ({"dtype": "bfloat16"}, "gathered weights", 0.5),
    ],
)
def test_what_settings_do_to_the_parts(model: str, changes: dict[str, Any], part: str, ratio: float) -> None:
    base = TrainConfig(num_workers=2, dtype="float32")
    found = []
    for train in (base, base.model_copy(update=changes)):
        causal_lm = empty_model(model)
        parameters = count_parameters(causal_lm, train.num_workers // train.replicas)
        forward = forward_pass(causal_lm, train.dtype, 2, 64, packed=False)
        found.append(estimate(parameters, forward, train, 128, passes=1).parts[part])
    assert found[1] / found[0] == pytest.approx(ratio, rel=0.01)


def test_gradients_are_whole_between_micro_batches_where_they_may_be(model: str) -> None:
    causal_lm = empty_model(model)
    parameters, forward = count_parameters(causal_lm, 2), forward_pass(causal_lm, "bfloat16", 2, 64, packed=False)
    for reshard, more in ((True, 0), (False, 4 * parameters.trainable)):
        train = TrainConfig(dtype="bfloat16", reshard_after_forward=reshard)
        one, two = (estimate(parameters, forward, train, 128, passes).parts["whole gradients"] for passes in (1, 2))
        assert two - one == more


@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (2, 1), (4, 2)])
def test_the_check_before_a_run_needs_what_the_estimate_has_without_activations(
    model: str, workers: int, replicas: int
) -> None:
    causal_lm = empty_model(model)
    forward = forward_pass(causal_lm, "float32", 1, 8, packed=False)
    train = TrainConfig(dtype="float32", num_workers=workers, replicas=replicas)
    parameters = count_parameters(causal_lm, workers // replicas)
    memory = estimate(parameters, forward, train, 8, passes=1)
    state = sum(memory.parts[part] for part in ("weights", "gradients", "optimizer", "checkpoint", "process"))
    # Shards are rounded up, so all ranks together hold a little more than the model.
    assert least_bytes(parameters.total, train) == pytest.approx(workers * state, rel=1e-3)
    assert least_bytes(parameters.total, train) <= workers * state < workers * memory.peak


@pytest.mark.slow
@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_a_frozen_base_takes_what_it_is_held_in(model: str, tmp_path: Path, base: str) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    found = dry_run.dry_run(settings(model, "train.lora.rank=2", f"train.lora.base_dtype={base}"), smoothed)
    full, parameters = dry_run.dry_run(settings(model), smoothed), found.parameters
    frozen, size = parameters.shard - parameters.trainable_shard, {"float32": 4, "bfloat16": 2}[base]
    assert found.memory.parts["weights"] == size * frozen + 4 * parameters.trainable_shard
    assert full.memory.parts["weights"] == 4 * full.parameters.shard
    console = Console(record=True, width=200)
    show(found, console)
    assert ("held in bfloat16" in console.export_text()) == (base == "bfloat16")
    at_least = least_bytes(parameters.total - parameters.trainable, found.config.train)
    state = sum(found.memory.parts[part] for part in ("weights", "gradients", "optimizer", "checkpoint", "process"))
    assert 0.9 < at_least / (found.config.train.num_workers * state) < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "there"), [([], 1), (["train.gpus_per_worker=1"], 1), (["train.gpus_per_worker=1", "train.cpu_offload=true"], 0)]
)
@pytest.mark.parametrize(("stored", "dtype", "size"), [("float32", "bfloat16", 4), ("bfloat16", "float32", 4), (*LOW, 2)])
def test_a_frozen_copy_takes_what_it_is_stored_in_and_nothing_for_gradients_and_moments(
    model: str, tmp_path: Path, stored: str, dtype: str, size: int, where: list[str], there: int
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "stored"))
    settled = json.loads((folder / "config.json").read_text()) | {"dtype": stored}
    (folder / "config.json").write_text(json.dumps(settled))
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    plain, found = (
        dry_run.dry_run(settings(str(folder), f"train.dtype={dtype}", *where, *own), smoothed, "H100" if where else None)
        for own in ([], ["train.prior=base"])
    )
    copy = size * plain.parameters.shard * there
    assert found.memory.parts == plain.memory.parts | {"frozen copy": copy, "loss": found.memory.parts["loss"]}
    assert found.memory.peak - plain.memory.peak >= copy
    # Pinned memory comes in powers of two, so half of the bytes is half of it.
    assert found.memory.host - plain.memory.host == (0 if there else plain.parameters.pinned * size // 4)
    show(found, console := Console(record=True, width=200))
    assert ("frozen copy" in console.export_text()) == bool(copy)


def test_offloading_moves_the_state_to_the_host_on_gpus_only(model: str) -> None:
    causal_lm = empty_model(model)
    parameters, forward = count_parameters(causal_lm, 2), forward_pass(causal_lm, "bfloat16", 2, 64, packed=False)
    on_gpu = estimate(parameters, forward, TrainConfig(dtype="bfloat16", gpus_per_worker=1, cpu_offload=True), 128, 1)
    assert on_gpu.parts["weights"] == 0
    # Without a copy for the checkpoint: training waits for it.
    assert on_gpu.host == GPU_WORKER_HOST_BYTES + 8 * parameters.shard + 2 * parameters.pinned
    on_cpu = estimate(parameters, forward, TrainConfig(dtype="bfloat16", cpu_offload=True), 128, 1)
    assert on_cpu.parts["weights"] == 4 * parameters.shard and on_cpu.host == 0


@pytest.mark.parametrize(("replicas", "passes", "there"), [(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 1)])
def test_offloaded_gradients_that_replicas_have_not_exchanged_are_on_the_gpu(
    replicas: int, passes: int, there: int, model: str
) -> None:
    causal_lm = empty_model(model)
    parameters, forward = count_parameters(causal_lm, 2), forward_pass(causal_lm, "bfloat16", 2, 64, packed=False)
    train = TrainConfig(dtype="bfloat16", gpus_per_worker=1, cpu_offload=True, num_workers=2 * replicas, replicas=replicas)
    one, found = (estimate(parameters, forward, train, 128, number) for number in (1, passes))
    gradients = 4 * parameters.trainable_shard * there
    assert found.parts["gradients"] == gradients
    assert found.peak - one.peak == gradients


def test_pinned_memory_comes_in_powers_of_two(model: str) -> None:
    assert pinned_bytes([1, 2, 3, 4, 5, 1000, 0]) == 1 + 2 + 4 + 4 + 8 + 1024
    found = count_parameters(empty_model(model), shards=3)
    # Float32 shards: 334 rows of 32 twice; in a layer 11 of 32 four times, 22 of 32 twice and 11 of 64, and 11 twice.
    layer = 4 * 2048 + 3 * 4096 + 2 * 64
    assert found.pinned == found.trainable_pinned == 2 * 65536 + LAYERS * layer + 64


@pytest.mark.slow
def test_host_memory_is_held_against_that_of_a_node(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    config = settings(model, "train.gpus_per_worker=1", "train.cpu_offload=true", "train.num_workers=1")
    needed = dry_run.dry_run(config, smoothed, "H100").memory.host
    for room, fits in ((needed + 1, True), (needed - 1, False)):
        train = config.train.model_copy(update={"host_gib_per_worker": room / 2**30})
        found = dry_run.dry_run(config.model_copy(update={"train": train}), smoothed, "H100")
        assert any("of host memory" in text and "train.cpu_offload=false" in text for text in found.advice) != fits
