"""The dry run: counts that can be checked by hand or by real tensors, and advice that names the key to change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from rich.console import Console
from small_llama import INNER, LAYERS, VOCABULARY, WIDTH, settings, write

from ual_ray import columns as col
from ual_ray.config import Config, TrainConfig
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.train.estimate import devices, dry_run, sample
from ual_ray.train.estimate.dry_run import micro_batch
from ual_ray.train.estimate.forward_pass import forward_pass
from ual_ray.train.estimate.memory import count_parameters, estimate
from ual_ray.train.estimate.sample import sample_rows
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
    assert found.embedding == VOCABULARY * WIDTH  # which a head of its own leaves alone
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


def test_operations_are_those_of_the_products(model: str) -> None:
    rows, length = 2, 64
    found = forward_pass(empty_model(model), "bfloat16", rows, length, packed=False)
    products = 2 * rows * length * LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    attention = 2 * 2 * rows * length * length * WIDTH * LAYERS
    assert found.flops == pytest.approx(products + attention, rel=0.02)


def test_checkpointing_keeps_the_layers_inputs_and_one_layer(model: str) -> None:
    found = forward_pass(empty_model(model), "float32", 4, 128, packed=False)
    inputs = LAYERS * 4 * 128 * WIDTH * 4
    assert inputs < found.kept_checkpointed < found.kept / 2 + inputs


# --- memory ----------------------------------------------------------------------------------------------------------


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


# --- rows and steps --------------------------------------------------------------------------------------------------


def test_a_sample_stands_for_all_rows(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [1, 30] * 100)
    every = sample_rows(settings(model), smoothed)
    monkeypatch.setattr(sample, "MAX_SAMPLE", 41)
    some = sample_rows(settings(model), smoothed)
    assert (every.seen, some.seen, some.total, len(some.lengths)) == (200, 41, 200, 200)
    assert some.lengths.sum() == pytest.approx(every.lengths.sum(), rel=0.1)


def test_dropped_rows_are_counted_and_none_left_is_an_error(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [1] * 30 + [200] * 10)
    config = settings(model, "train.max_length=64", "train.overlong=drop")
    found = dry_run.dry_run(config, smoothed)
    assert found.rows.dropped.total() == 10 and len(found.rows.lengths) == 30
    assert any("25% of the rows would be dropped" in text and "train.max_dropped_share" in text for text in found.advice)
    with pytest.raises(UserError, match=r"(?s)no training row is left.*train\.max_length"):
        sample_rows(settings(model, "train.max_length=16", "train.overlong=drop"), smoothed)


def with_sources(smoothed: Path, names: list[str]) -> Path:
    table = pyarrow.parquet.read_table(smoothed)
    pyarrow.parquet.write_table(table.append_column(col.SOURCE, pa.array(names, pa.string())), smoothed)
    return smoothed


def test_a_mixture_is_told_by_source(model: str, tmp_path: Path) -> None:
    smoothed = with_sources(write(tmp_path / "smoothed.parquet", [5] * 30 + [20] * 10), ["chat"] * 30 + ["math"] * 10)
    plain = dry_run.dry_run(settings(model), smoothed)
    found = dry_run.dry_run(settings(model, "train.mixture={chat: 1, math: 1}"), smoothed)
    assert {name: (one["samples"], one["passes"]) for name, one in found.by_source.items()} == {
        "chat": (20, pytest.approx(2 / 3)),
        "math": (20, 2.0),
    }
    assert found.by_source["math"]["tokens"] > found.by_source["chat"]["tokens"]
    assert found.tokens_per_step > plain.tokens_per_step and found.steps == plain.steps
    console = Console(record=True, width=200)
    show(found, console)
    assert "math: 20 samples" in console.export_text() and plain.by_source == {}
    with pytest.raises(UserError, match="no weight for 'math'"):
        dry_run.dry_run(settings(model, "train.mixture={chat: 1}"), smoothed)


def test_a_sample_of_a_mixture_has_rows_of_every_source(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MAX_SAMPLE", 20)
    smoothed = with_sources(write(tmp_path / "smoothed.parquet", [5] * 199 + [20]), ["chat"] * 199 + ["math"])
    rows = sample_rows(settings(model, "train.mixture={chat: 1, math: 1}"), smoothed)
    assert rows.seen == 21 and rows.total == len(rows.lengths) == 200
    assert rows.sources is not None and rows.sources.to_pylist().count("math") == 1
    assert int(rows.lengths.max()) == int(rows.lengths[rows.sources.to_pylist().index("math")]), "scaled up by source"


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("batch", [(16, 8, 2), (32, 4, 2), (6, 4, 4)])
@pytest.mark.slow
def test_the_largest_micro_batch_is_that_of_the_plan(model: str, tmp_path: Path, packing: str, batch: tuple[int, ...]) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", list(range(1, 61)))
    sizes = zip(("global_batch_size", "micro_batch_size", "num_workers"), batch, strict=True)
    overrides = [f"train.{key}={size}" for key, size in sizes]
    config = settings(model, f"train.packing={packing}", "train.max_length=128", *overrides)
    rows = sample_rows(config, smoothed)
    plan = dry_run.StepPlan(rows.lengths, rows.targets, config.train, config.seed, config.train.num_workers)
    found = dry_run.dry_run(config, smoothed)
    batches = [len(part) for step in plan for rank in step.micro_batches for part in rank]
    assert max(batches) == found.micro_batch.rows
    assert max(len(rank) for step in plan for rank in step.micro_batches) == found.micro_batch.passes
    assert found.steps == len(plan)
    assert found.tokens_per_step * found.steps == pytest.approx(sum(plan.tokens(step) for step in plan))
    assert micro_batch(config.train, batch[0], 128).rows <= batch[1]


# --- devices, time, advice -------------------------------------------------------------------------------------------


def test_time_follows_the_peak(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    slow, fast = (dry_run.dry_run(settings(model, f"train.peak_tflops={peak}"), smoothed) for peak in (1, 2))
    assert slow.seconds == pytest.approx(2 * fast.seconds) and slow.seconds > 0


def half_held_out(smoothed: Path) -> Path:
    """Write forty rows again, half of them for validation."""
    table = pyarrow.parquet.read_table(smoothed)
    held_out = pa.array([col.VALIDATION] * 20 + [col.TRAIN] * 20)
    path = smoothed.with_name("rows.parquet")
    pyarrow.parquet.write_table(table.set_column(table.column_names.index(col.SPLIT), col.SPLIT, held_out), path)
    return path


def test_smoothing_towards_the_base_costs_another_forward_pass(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    plain, base = (
        dry_run.dry_run(settings(model, "train.lora.rank=2", *more), smoothed, validation=half_held_out(smoothed))
        for more in ([], ["train.prior=base"])
    )
    # Forward and backward to the inputs, and a little for the adapters; of a validation, forward alone.
    assert base.seconds == pytest.approx(1.5 * plain.seconds, rel=0.05)
    assert base.validation_seconds == pytest.approx(2 * plain.validation_seconds, rel=0.05)
    states = base.micro_batch.rows * base.micro_batch.length * WIDTH * 4
    assert base.memory.parts["loss"] - plain.memory.parts["loss"] > states


def test_validation_has_its_share_of_the_time(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    rows = half_held_out(smoothed)

    def plan(*more: str) -> dry_run.DryRun:
        settings_ = settings(model, "train.global_batch_size=4", "train.validate_every=2", *more)
        return dry_run.dry_run(settings_, smoothed, None, rows)

    found = plan()
    # Before the first of ten steps, and after every second one; half as many rows as an epoch, forward only: a third.
    assert (found.steps, found.validations) == (10, 6)
    assert found.validation_tokens == pytest.approx(found.rows.lengths.sum() / 2, rel=0.01)
    assert found.validation_seconds == pytest.approx(6 * found.seconds / 2 / 3, rel=0.05)
    few = plan("train.validation_tokens=100")
    assert few.validation_tokens == 100 and few.validation_seconds < found.validation_seconds / 2
    console = Console(record=True, width=200)
    show(few, console)
    assert "6 times 100 tokens" in console.export_text()
    assert dry_run.dry_run(settings(model), smoothed).validations == 0


def test_this_machines_cpu_is_measured() -> None:
    found = devices.find_device(load(None, ["train.dtype=float32"]))
    assert found.memory and found.flops > 0 and "measured here" in found.speed_from


def test_gpus_are_known_or_refused() -> None:
    config = load(None, ["train.gpus_per_worker=1"])
    small, large = (devices.find_device(config, name) for name in ("A100-40GB", "A100-80GB"))
    assert small.memory and large.memory and small.memory < large.memory and small.flops == large.flops
    with pytest.raises(UserError, match="(?s)GPU is not known.*H100"):
        devices.find_device(config, "Voodoo 2")
    assert devices.find_device(load(None, ["train.gpus_per_worker=1", "train.dtype=float32"]), "H100").flops < small.flops
    with pytest.raises(UserError, match="(?s)--gpu: training uses no GPU.*gpus_per_worker"):
        devices.find_device(load(None, []), "H100")


@pytest.mark.slow
def test_what_does_not_fit_says_which_key_to_change(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [200] * 64)
    fits = dry_run.dry_run(settings(model, "train.activation_checkpointing=true"), smoothed)
    limit = (fits.memory.peak + fits.memory_other_way.peak) // 2
    device = devices.Device("a small one", limit, 1e9, "a test")
    monkeypatch.setattr(dry_run, "find_device", lambda *given: device)
    found = dry_run.dry_run(settings(model), smoothed)
    assert any("DOES NOT FIT" in text and "train.activation_checkpointing=true" in text for text in found.advice)
    monkeypatch.setattr(dry_run, "find_device", lambda *given: devices.Device("a tiny one", 1000, 1e9, "a test"))
    hopeless = dry_run.dry_run(settings(model), smoothed)
    assert any("No settings make it fit" in text for text in hopeless.advice)


def test_padding_idle_workers_and_positions_are_warned_about(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [1, 100] * 20)
    one_batch = ["train.num_workers=1", "train.micro_batch_size=40", "train.global_batch_size=40"]
    assert any("train.packing=true" in text for text in dry_run.dry_run(settings(model, *one_batch), smoothed).advice)
    idle = dry_run.dry_run(settings(model, "train.num_workers=8", "train.global_batch_size=4"), smoothed)
    assert any("4 of 8 micro-batches are empty" in text for text in idle.advice)
    for tokens, warned in ((100, False), (300, True)):  # in a pack positions begin anew
        rows = write(tmp_path / f"{tokens}.parquet", [tokens] * 20)
        long = dry_run.dry_run(settings(model, "train.packing=true", "train.max_length=600"), rows)
        assert any("256 positions" in text for text in long.advice) == warned


def test_it_plans_with_the_dtype_that_is_faster_here(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    for slow, dtype in ((True, "float32"), (False, "bfloat16")):
        monkeypatch.setattr("ual_ray.models.product_speed.slower_than_float32", lambda *given, slow=slow: slow)
        plan = dry_run.dry_run(settings(model, "train.dtype=auto"), smoothed)
        assert plan.config.train.dtype == dtype
        assert plan.memory == dry_run.dry_run(settings(model, f"train.dtype={dtype}"), smoothed).memory


# --- printing --------------------------------------------------------------------------------------------------------


def test_it_is_printed(model: str, tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    show(dry_run.dry_run(settings(model), write(tmp_path / "smoothed.parquet", [20] * 40)), console)
    text = console.export_text()
    for word in ("parameters", "trained", "shards", "steps of", "padding", "activations", "loss", "checkpoint", "an estimate"):
        assert word in text


def test_a_file_without_a_column_that_training_reads_is_refused(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"id": ["a"], "alpha": [0.1]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"(?s)lacks columns that training needs.*split.*messages"):
        sample_rows(Config(), tmp_path / "rows.parquet")
