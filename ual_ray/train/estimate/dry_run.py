"""`ual train --dry-run`: estimate memory, steps, tokens and time of a training. Reads no weights and does not start Ray.

Counted: parameters, steps, tokens and padding; for large data from a sample of the rows. Estimated: memory (`memory`), and
time, the operations of all steps (`forward_pass`) divided by the speed of the workers' devices (`devices`).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import torch

from ual_ray import columns as col
from ual_ray.config import Config, LoraConfig, TrainConfig
from ual_ray.errors import UserError
from ual_ray.formatting import GIB, count_list, plural
from ual_ray.models.chat import NO_END
from ual_ray.models.product_speed import GPUS
from ual_ray.models.resolve import check_found, resolve_model
from ual_ray.run.precision import with_train_dtype
from ual_ray.train.batches import StepPlan
from ual_ray.train.estimate.devices import Device, find_device, is_here
from ual_ray.train.estimate.forward_pass import ForwardPass, forward_pass
from ual_ray.train.estimate.memory import Memory, Parameters, count_parameters, estimate
from ual_ray.train.estimate.sample import Rows, check_validation, sample_rows, sample_validation
from ual_ray.train.estimate.state import checkpoint_bytes
from ual_ray.train.sharding import DTYPES
from ual_ray.train.tokenize import remedy
from ual_ray.train.weights import empty_frozen_model, empty_trained_model

# Thresholds of the advice: share of padding, share of truncated rows.
MAX_PADDING, MAX_TRUNCATED = 0.3, 0.1
SUGGESTED_RANK = 16
# Tokens of a row that no estimate is above, where rows are not known yet.
SHORTEST = 16
NO_ROOM = "DOES NOT FIT: "
SKIP_CHECK = "runtime.check_memory=false skips this check"


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of a run: its sequences, and tokens of the longest. `passes`: micro-batches per rank and step."""

    rows: int
    length: int
    passes: int


@dataclass(frozen=True)
class DryRun:
    """The resource estimate of a training: memory and checkpoints in bytes, time in seconds.

    A step's tokens are means over the first epoch's steps, without padding; `advice`: problems, with the key to change.
    `by_source`: as `StepPlan.by_source`, empty without train.mixture. `validated`: the validation rows, None where none were
    given. `validations`: how many there are, each of `validation_tokens`, with `validation_seconds` for all of them; else 0.
    """

    config: Config
    device: Device
    rows: Rows
    validated: Rows | None
    sequences: int
    steps: int
    tokens_per_step: float
    target_tokens_per_step: float
    padding_share: float
    micro_batch: MicroBatch
    parameters: Parameters
    memory: Memory
    memory_other_way: Memory
    checkpoint: int
    seconds: float
    advice: tuple[str, ...]
    by_source: dict[str, dict[str, float]]
    validations: int
    validation_tokens: int
    validation_seconds: float


def dry_run(config: Config, smoothed: Path, gpu: str | None = None, validation: Path | None = None) -> DryRun:
    """Plan the training of `config.model` on smoothed rows, validated on the rows of `validation`. gpu: as for `find_device`.

    Raises UserError for rows or a model that training would reject, and for an unknown GPU.
    """
    if validation:
        check_validation(validation)
    config = with_train_dtype(config, None)
    train, model = config.train, Model(config)
    rows = sample_rows(config, smoothed)
    plan = StepPlan(rows.lengths, rows.targets, train, config.seed, train.num_workers, rows.sources)
    tokens, targets = plan.tokens_per_step
    longest = plan.longest_sequence
    sequences = min(train.global_batch_size, len(plan.epochs[0]))
    micro = micro_batch(train, sequences, longest)
    device = find_device(config, gpu)
    memory = model.memory(train, micro)
    flops = model.flops(train, micro, tokens / (1 - plan.padding_share), targets)
    validated = sample_validation(config, validation) if validation else None
    measured, predicted = _validation_tokens(train, validated)
    validations = 1 + (ceil(len(plan) / train.validate_every) if train.validate_every else len(plan.epochs)) if measured else 0
    passes = 1 + (train.prior == "base")
    looked_at = passes * model.forward_flops(train, micro, measured, predicted)
    return DryRun(
        config=config,
        device=device,
        rows=rows,
        validated=validated,
        sequences=len(plan.epochs[0]),
        steps=len(plan),
        tokens_per_step=tokens,
        target_tokens_per_step=targets,
        padding_share=plan.padding_share,
        micro_batch=micro,
        parameters=model.parameters(train),
        memory=memory,
        memory_other_way=model.memory(_with(train, activation_checkpointing=not train.activation_checkpointing), micro),
        checkpoint=checkpoint_bytes(model.parameters(train).trainable),
        seconds=len(plan) * flops / (device.flops * train.num_workers),
        advice=(
            *_about_rows(train, rows, validated),
            *_about_plan(train, plan, micro, int(rows.lengths.max()), model.positions()),
            *_about_memory(train, device, memory, lambda other: model.memory(other, micro_batch(other, sequences, longest))),
        ),
        by_source=plan.by_source(),
        validations=validations,
        validation_tokens=measured,
        validation_seconds=validations * looked_at / (device.flops * train.num_workers),
    )


def _validation_tokens(train: TrainConfig, rows: Rows | None) -> tuple[int, float]:
    """Return the tokens of one validation, and how many of them are predicted."""
    tokens = int(rows.lengths.sum()) if rows else 0
    measured = min(tokens, train.validation_tokens or tokens)
    return measured, measured * float(rows.targets.sum()) / tokens if rows and tokens else 0.0


def check_gpus(config: Config, *, arms: bool = True, evaluated: bool = True) -> None:
    """Raise UserError where training on GPUs, or evaluating its model there, does not fit into memory, whatever the rows.

    Judged by full packs, or else by rows of SHORTEST tokens; by the GPU of this machine where it is the cluster, or else by the
    largest that is known. arms: all arms will be trained, each by its own settings. evaluated: the model will be evaluated.
    """
    train, model = with_train_dtype(config, None).train, Model(config)
    # The speed does not matter here, so it need not be known.
    judged = config.model_copy(update={"train": train.model_copy(update={"peak_tflops": 1.0})})
    own = torch.cuda.is_available() and is_here(config)
    device = find_device(judged, None if own else max(GPUS, key=lambda name: GPUS[name].gib))

    def memory(other: TrainConfig) -> Memory:
        length = other.max_length if other.packing else SHORTEST
        return model.memory(other, micro_batch(other, other.global_batch_size, length))

    trainings = {f" of the arm {name}": arm.training(train) for name, arm in config.arms.items()} if arms else {"": train}
    details = "" if arms else "`ual train SMOOTHED --dry-run` gives details; "
    for of_arm, settings in trainings.items():
        for problem in _about_memory(settings, device, memory(settings), memory):
            what = f"train does not fit into memory{of_arm if settings != train else ''}"
            raise UserError(what, got=problem.removeprefix(NO_ROOM), fix=details + SKIP_CHECK)
    gpus, dtype = config.engine.gpus_per_actor if evaluated else 0.0, DTYPES.get(config.evaluate.dtype)
    if gpus and dtype and device.memory and (weights := model.parameters(train).total * dtype.itemsize / gpus) > device.memory:
        raise UserError(
            "evaluate does not fit into memory",
            got=f"{weights / GIB:.1f} GiB of weights per GPU, {device.memory / GIB:.1f} GiB can be used on {device.name}",
            fix=f"set evaluate.dtype=bfloat16, or raise engine.gpus_per_actor; {SKIP_CHECK}",
        )


def micro_batch(train: TrainConfig, sequences: int, length: int) -> MicroBatch:
    """Return how a step of `sequences` sequences is split into micro-batches, as in `batches.StepPlan`."""
    passes = ceil(sequences / (train.micro_batch_size * train.num_workers))
    return MicroBatch(ceil(sequences / (passes * train.num_workers)), length, passes)


class Model:
    """A model's shapes under different settings; results are cached."""

    def __init__(self, config: Config) -> None:
        """Take the model's name; only its config.json is read. Raises UserError when there is none."""
        check_found(config.model, "model")
        self._path, self._trust = resolve_model(config.model), config.trust_remote_code
        self._make = cache(self._empty)
        self._frozen = cache(lambda dtype: empty_frozen_model(self._path, dtype, self._trust))
        self._forward = cache(self._forward_pass)

    def positions(self) -> int | None:
        """The model's maximum sequence length in tokens; None if its config does not state it."""
        causal_lm: Any = self._make(LoraConfig(), "float32")
        return getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None)

    def parameters(self, train: TrainConfig) -> Parameters:
        """Count the parameters in total and per rank."""
        return count_parameters(self._make(train.lora, train.dtype), train.num_workers // train.replicas)

    def memory(self, train: TrainConfig, micro: MicroBatch) -> Memory:
        """Estimate one rank's memory."""
        forward = self._forward(train.lora, train.dtype, micro.rows, micro.length, train.packing)
        shards = train.num_workers // train.replicas
        before = count_parameters(self._frozen(train.dtype), shards) if train.holds_copy else None
        return estimate(self.parameters(train), forward, train, micro.rows * micro.length, micro.passes, before)

    def flops(self, train: TrainConfig, micro: MicroBatch, tokens: float, targets: float) -> float:
        """Operations of a step over all ranks: for `tokens` (with padding) in the decoder, for `targets` in the head."""
        parameters = self.parameters(train)
        # Forward, backward to the inputs, backward to the trained weights; and forward again with checkpointing, and of the
        # model before training where labels are smoothed towards it.
        again = train.prior == "base"
        body = 2 + parameters.trainable / parameters.total + (train.activation_checkpointing is True) + again
        head = 2 + parameters.trainable_head + again
        return self.forward_flops(train, micro, body * tokens, head * targets)

    def forward_flops(self, train: TrainConfig, micro: MicroBatch, tokens: float, targets: float) -> float:
        """Operations of a forward pass alone; the arguments are those of `flops`."""
        forward = self._forward(train.lora, train.dtype, micro.rows, micro.length, train.packing).flops
        parameters = self.parameters(train)
        return forward / (micro.rows * micro.length) * tokens + 2 * parameters.vocabulary * parameters.width * targets

    def _empty(self, lora: LoraConfig, dtype: str) -> Any:
        try:
            return empty_trained_model(self._path, lora, dtype, self._trust)
        except (OSError, ValueError) as error:
            raise UserError(
                "model: its config.json cannot be read",
                got=f"{self._path}: {error}",
                fix="set model to a causal language model that transformers can load",
            ) from error

    def _forward_pass(self, lora: LoraConfig, dtype: str, rows: int, length: int, packed: bool) -> ForwardPass:
        return forward_pass(self._make(lora, dtype), dtype, rows, length, packed=packed)


def _about_rows(train: TrainConfig, rows: Rows, validated: Rows | None) -> Iterator[str]:
    parts = {"row": rows} | ({"validation row": validated} if validated and validated.seen else {})
    all_rows, reasons = sum(part.total for part in parts.values()), Counter[str]()
    for part in parts.values():
        reasons.update(part.dropped)
    dropped = sum(part.dropped.total() / part.seen * part.total for part in parts.values()) / all_rows
    if dropped > train.max_dropped_share:
        yield (
            f"{dropped:.0%} of the rows would be dropped ({count_list(reasons)}), and training would stop: more than "
            f"train.max_dropped_share = {train.max_dropped_share:g}. Raise that, or {remedy(reasons, col.TRAIN)}."
        )
    for name, part in parts.items():
        if part.endless:
            yield f"{NO_END} ({part.endless} of {plural(part.seen, name)})."
        if part.truncated > MAX_TRUNCATED * part.seen:
            share = f"{part.truncated / part.seen:.0%} of the {name}s"
            yield f"{share} are truncated at train.max_length = {train.max_length}. Raise it."


def _about_plan(train: TrainConfig, plan: StepPlan, micro: MicroBatch, longest: int, positions: int | None) -> Iterator[str]:
    if plan.padding_share > MAX_PADDING and not train.packing:
        yield f"{plan.padding_share:.0%} of the tokens computed are padding. Set train.packing=true."
    sequences = min(train.global_batch_size, len(plan.epochs[0]))
    if idle := max(0, micro.passes * train.num_workers - sequences):
        yield (
            f"a step has {plural(sequences, 'sequence')}, so {idle} of {micro.passes * train.num_workers} micro-batches are "
            "empty. Raise train.global_batch_size, or use fewer workers."
        )
    # In a pack positions start again with every row.
    if positions is not None and longest > positions:
        yield f"rows of {longest} tokens are longer than the model's {positions} positions. Lower train.max_length."


def _about_memory(train: TrainConfig, device: Device, memory: Memory, judge: Any) -> Iterator[str]:
    """Return advice if the training does not fit: the single changes that make it fit, or else a combination."""
    have = _shortage(device, memory)
    if have is None:
        return
    alone, together = [], dict[str, Any]()
    found: tuple[str, str] | None = None
    for change in _changes(train):
        if _shortage(device, other := judge(_with(train, **change))) is None:
            alone.append(f"{_keys(change)} ({_need(device, other)})")
    for change in [] if alone else _changes(train):
        together |= change
        if _shortage(device, other := judge(_with(train, **together))) is None:
            found = _keys(together), _need(device, other)
            break
    if alone:
        yield f"{NO_ROOM}{have}. Any one of these is enough: {', '.join(alone)}."
    elif found:
        yield f"{NO_ROOM}{have}. Together these are enough: {found[0]} ({found[1]})."
    else:
        yield f"{NO_ROOM}{have}. No settings make it fit: use more workers with more memory, or a smaller model."


def _shortage(device: Device, memory: Memory) -> str | None:
    """Describe which memory a worker lacks, the device's or the host's; None if it lacks none."""
    if device.memory is not None and memory.peak > device.memory:
        return f"it needs {memory.peak / GIB:.1f} GiB per worker, {device.memory / GIB:.1f} GiB can be used on {device.name}"
    if device.host is not None and memory.host > device.host:
        return f"it needs {memory.host / GIB:.1f} GiB of host memory per worker, there are {device.host / GIB:.1f} GiB"
    return None


def _need(device: Device, memory: Memory) -> str:
    host = f", {memory.host / GIB:.1f} GiB of host memory" if device.host is not None else ""
    return f"{memory.peak / GIB:.1f} GiB{host}"


def _changes(train: TrainConfig) -> Iterator[dict[str, Any]]:
    """Settings that need less memory, those with the least cost first."""
    on_gpu = train.gpus_per_worker > 0
    if train.dtype == "float32" and on_gpu:
        yield {"dtype": "bfloat16"}
    if not train.reshard_after_forward:
        yield {"reshard_after_forward": True}
    if not (train.activation_checkpointing or train.compile):
        yield {"activation_checkpointing": "selective"}
    if train.activation_checkpointing is not True:
        yield {"activation_checkpointing": True}
    if train.micro_batch_size > 1:
        yield {"micro_batch_size": 1, "global_batch_size": min(train.global_batch_size, train.num_workers)}
    if train.replicas > 1:
        yield {"replicas": 1}
    if on_gpu:
        yield from ({"num_workers": train.num_workers * times} for times in (2, 4))
        yield {"cpu_offload": not train.cpu_offload}
    if not train.lora.rank:
        yield {"lora": {"rank": SUGGESTED_RANK}}


def _with(train: TrainConfig, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(train.model_dump() | changes)


def _keys(changes: dict[str, Any]) -> str:
    flat = {f"lora.{k}": v for k, v in changes.get("lora", {}).items()} | {k: v for k, v in changes.items() if k != "lora"}
    return " ".join(f"train.{key}={str(value).lower()}" for key, value in flat.items())
