"""Estimate the memory of a training rank from the model's config.json and the settings alone, without reading weights.

Counted: parameters, sharded as FSDP2 does it, each along its first dimension and rounded up; activations (`forward_pass`).
Known from the implementation: weights, float32 gradients and AdamW's two moments; the loss's chunk of logits and its
gradients (`loss`); FSDP2's gathered parameters; the copy for an asynchronous checkpoint; the file buffer of the export.
Rules of thumb, marked OURS: the memory of a process before training, of a compiler, and of the backward pass of a layer. Not
counted: the rendered rows, which are mapped from files, and freed memory that the C library does not return. Activations are
those of layers that are not compiled (train.compile), which keep more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ual_ray.config import TrainConfig
from ual_ray.train.estimate.forward_pass import ForwardPass
from ual_ray.train.estimate.state import (
    FLOAT32,
    GPU_WORKER_HOST_BYTES,
    PROCESS_BYTES,
    checkpoint_bytes,
    compiler_bytes,
    pinned_bytes,
    state_bytes,
)
from ual_ray.train.export import SHARD_BYTES
from ual_ray.train.loss import chunk_rows
from ual_ray.train.sharding import DTYPES, find_layers

# OURS: backward of a layer holds about this many tensors of the size of the largest that forward saved.
BACKWARD_TENSORS = 3
# One group of weights in use, the next being gathered, and a buffer of the same size.
GATHERED_GROUPS = 3


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, in total and of one rank (`shard`); bytes of its weights, and pinned ones.

    FSDP gathers a group at a time: a decoder layer, or the embedding if it is not tied to the head (`trainable_embedding`, else
    0). `root` is the rest, mainly the head, gathered from forward to the end of backward. `vocabulary` and `width` are those
    of the head.
    """

    total: int
    trainable: int
    shard: int
    trainable_shard: int
    shard_bytes: int
    pinned: int
    trainable_pinned: int
    largest_layer: int
    largest_trainable_layer: int
    trainable_embedding: int
    root: int
    trainable_root: int
    vocabulary: int
    width: int

    @property
    def has_low_precision(self) -> bool:
        """Whether frozen weights are held in bfloat16."""
        return self.shard_bytes < FLOAT32 * self.shard

    @property
    def trainable_head(self) -> bool:
        """Whether the output layer's weights are trained; adapters are never placed there."""
        return self.trainable_root >= self.vocabulary * self.width


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank on its device: `peak`, the maximum, reached at `moment`, and `parts`, by purpose.

    Not all parts exist at the same time, so they add up to more than the peak. `host`: host memory of a GPU worker, with
    what cpu_offload keeps there and a checkpoint's copy; 0 on CPUs, where `parts` includes it.
    """

    parts: dict[str, int]
    peak: int
    moment: str
    host: int


def count_parameters(causal_lm: nn.Module, shards: int) -> Parameters:
    """Count the parameters of a model, on the meta device or not, and those of one rank out of `shards`."""
    embedding, head = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
    layers = [list(layer.parameters()) for layer in find_layers(causal_lm.get_decoder())]
    apart = [] if embedding.weight is head.weight else [embedding.weight]
    grouped = {parameter for group in (*layers, apart) for parameter in group}
    every = list(causal_lm.parameters())
    root = [parameter for parameter in every if parameter not in grouped]
    sizes = [size * parameter.itemsize for size, parameter in zip(_shards(every, shards), every, strict=True)]
    return Parameters(
        total=_count(every),
        trainable=_count(_trainable(every)),
        shard=sum(_shards(every, shards)),
        trainable_shard=sum(_shards(_trainable(every), shards)),
        shard_bytes=sum(sizes),
        pinned=pinned_bytes(sizes),
        trainable_pinned=pinned_bytes(FLOAT32 * size for size in _shards(_trainable(every), shards)),
        largest_layer=max(map(_count, layers)),
        largest_trainable_layer=max(_count(_trainable(layer)) for layer in layers),
        trainable_embedding=_count(_trainable(apart)),
        root=_count(root),
        trainable_root=_count(_trainable(root)),
        vocabulary=head.weight.shape[0],
        width=head.weight.shape[1],
    )


def estimate(
    parameters: Parameters,
    forward: ForwardPass,
    config: TrainConfig,
    tokens: int,
    passes: int,
    before: Parameters | None = None,
) -> Memory:
    """Estimate one rank's memory. tokens: of a micro-batch, with padding. passes: micro-batches of a rank per step.

    before: of the frozen copy of the model (`TrainConfig.holds_copy`).
    """
    on_gpu = config.gpus_per_worker > 0
    width = DTYPES[config.dtype].itemsize
    state = state_bytes(parameters.shard_bytes, parameters.trainable_shard)
    copy = 0 if config.cpu_offload else checkpoint_bytes(parameters.trainable_shard)
    host = copy + GPU_WORKER_HOST_BYTES + compiler_bytes(config) if on_gpu else 0
    if on_gpu and config.cpu_offload:
        # Weights and gradients are pinned, the optimizer's moments are not.
        host += (before.pinned if before else 0) + parameters.pinned + parameters.trainable_pinned + state["optimizer"]
        # Before replicas exchange them, once per step, gradients are on the GPU.
        kept_there = state["gradients"] if config.replicas > 1 and passes > 1 else 0
        state = dict.fromkeys(state, 0) | {"gradients": kept_there}
    groups, unreduced = parameters.total - parameters.root, 0
    if config.reshard_after_forward:
        groups = min(groups, GATHERED_GROUPS * parameters.largest_layer)
    elif passes > 1:
        # Reduced once per step: between its micro-batches each rank keeps all gradients unsharded.
        unreduced = FLOAT32 * parameters.trainable
    kept = forward.kept_with(config.activation_checkpointing)
    parts = {
        **state,
        "frozen copy": before.shard_bytes if before and not (on_gpu and config.cpu_offload) else 0,
        "gathered weights": width * (groups + parameters.root),
        # A layer's as backward computes them, and another's in float32, being sent.
        "whole gradients": (width + FLOAT32) * parameters.largest_trainable_layer + unreduced,
        "activations": kept + BACKWARD_TENSORS * forward.largest,
        "loss": loss_bytes(parameters, tokens, width, on_gpu, towards_base=config.prior == "base"),
        "checkpoint": 0 if on_gpu else copy,
        "process": PROCESS_BYTES["cuda"] if on_gpu else PROCESS_BYTES["cpu"] + compiler_bytes(config),
    }
    reduced = parts["gradients"] if passes > 1 and config.reshard_after_forward else 0
    held = _moments(parts, parameters, forward, config, reduced, unreduced)
    if not on_gpu:
        held["export"] += 2 * min(SHARD_BYTES, FLOAT32 * parameters.total)
    moment = max(held, key=lambda name: held[name])
    return Memory(parts, held[moment], moment, host)


def _moments(
    parts: dict[str, int],
    parameters: Parameters,
    forward: ForwardPass,
    config: TrainConfig,
    reduced: int,
    unreduced: int,
) -> dict[str, int]:
    """Bytes held at the moments of a step that may take most. reduced, unreduced: gradients of earlier micro-batches."""
    width = DTYPES[config.dtype].itemsize
    always = parts["process"] + parts["weights"] + parts["optimizer"] + parts["checkpoint"] + parts["frozen copy"]
    root = width * parameters.root
    running = forward.layer + BACKWARD_TENSORS * forward.largest
    others = parts["activations"] - running
    kept = others + (0 if config.activation_checkpointing else forward.layer)
    head = width * parameters.vocabulary * parameters.width if parameters.trainable_head else 0
    # Layers are gathered again for backward.
    gathered = root if config.reshard_after_forward else parts["gathered weights"]
    # With tied weights, the embedding's gradient is added to the head's.
    exchanged = root + (2 * width + FLOAT32) * parameters.trainable_root
    sent_before = FLOAT32 * max(parameters.trainable_embedding, parameters.largest_trainable_layer)
    in_backward = always + parts["gathered weights"] + head + parts["whole gradients"] + running
    return {
        # The frozen copy's head is gathered too.
        "the loss": always + reduced + unreduced + gathered + kept + parts["loss"] + (root if config.holds_copy else 0),
        # Layer by layer, gradients take the place of activations.
        "backward": in_backward + max(others + reduced, parts["gradients"]),
        "the exchange of the head's gradients": always + parts["gradients"] + unreduced + sent_before + exchanged,
        "export": always,
    }


def loss_bytes(parameters: Parameters, tokens: int, width: int, on_gpu: bool, *, towards_base: bool) -> int:
    """Peak bytes of the loss of `tokens` target tokens; width: bytes of a number in train.dtype.

    A chunk of float32 logits, and in bfloat16 its copy; the hidden states of target tokens and their gradient; for a trained
    head the float32 gradient, and behind the chunks that gradient scaled by the step's number of tokens, in train.dtype, which
    a CPU converts from a float32 one. towards_base: with the states of the model before training, its probabilities, their
    product with the logits, and a byte for each that may be 0; full chunks have half as many tokens then.
    """
    rows = chunk_rows(tokens, parameters.vocabulary * (2 if towards_base else 1), "cuda" if on_gpu else "cpu")
    chunk = FLOAT32 * parameters.vocabulary * rows
    copies = width if width < FLOAT32 else 0
    scaled = width if on_gpu else FLOAT32 + copies
    head = parameters.vocabulary * parameters.width if parameters.trainable_head else 0
    states = tokens * parameters.width * width
    base = states + 2 * chunk + chunk // FLOAT32 if towards_base else 0
    return 2 * states + FLOAT32 * head + max(chunk + chunk * copies // FLOAT32 + base, scaled * head)


def _trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _shards(parameters: Iterable[Tensor], shards: int) -> list[int]:
    """Numbers of elements of the first rank's shards, which are the largest."""
    return [-(-len(parameter) // shards) * parameter[0].numel() for parameter in parameters]
