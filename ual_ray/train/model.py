"""The training model: a transformers causal LM whose forward returns the smoothed loss, sharded by FSDP2.

With `torch.compile` of the decoder layers, whose shapes may differ from batch to batch.
"""

import inspect
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.models.compat_transformers import pack_masks
from ual_ray.models.output_head import TOLERANCE, OutputHead
from ual_ray.train.attention import Lengths, sample_lengths, use_varlen
from ual_ray.train.batches import Batch, Sample, collate
from ual_ray.train.compat_torch import mark_shapes_dynamic, return_freed_memory
from ual_ray.train.lora import without_adapters
from ual_ray.train.loss import smoothed_linear_cross_entropy_with_metrics
from ual_ray.train.sharding import checkpoint_activations, find_layers, reshard, shard
from ual_ray.train.token_losses import TokenLoss, token_loss
from ual_ray.train.weights import empty_frozen_model, empty_trained_model, load_weights

# Graphs beyond which torch runs a layer uncompiled. There is one for each of: one row or several, with a mask or without,
# with a gradient of the input or without; times the kinds of layers of the model. torch's own limit is 8.
MOST_GRAPHS = 64
SUMS = ("nll", "smoothing", "top1", "alpha", "target_tokens")


def check_compiler(device: str, key: str = "train.compile=true", without: str = "set train.compile=false") -> None:
    """Raise UserError where nothing can be compiled for this machine's CPU, or GPUs: no compiler, or no headers of Python.

    For GPUs, Triton builds what starts its kernels with a C compiler. key: what asks for it. without: how to do without.
    """
    language, variable, usual = ("C++", "CXX", ("g++",)) if device == "cpu" else ("C", "CC", ("gcc", "clang"))
    compilers = (os.environ[variable],) if variable in os.environ else usual
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [] if any(map(shutil.which, compilers)) else [f"no {language} compiler: {' or '.join(compilers)} is not in PATH"]
    missing += [] if header.exists() else [f"no headers of Python: {header} does not exist"]
    if missing:
        raise UserError(
            f"{key} cannot compile on this machine",
            got="; ".join(missing),
            fix="install them (on Debian and Ubuntu: apt-get install g++ python3-dev), name a compiler in "
            f"{variable}, or {without}",
        )


def compile_layers(body: nn.Module) -> None:
    """Compile what each decoder layer computes in training, in place: its weights keep their names.

    Activation checkpointing and FSDP stay around what is compiled. Passes without gradients are not compiled.
    """
    for layer in find_layers(body):
        layer.forward = _compiled(layer.forward)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    in_training = torch.compile(forward, recompile_limit=MOST_GRAPHS)

    def either(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Not torch.compile(dynamic=True): below FSDP it also takes settings of layers, such as the size of a head, for
        # variables, and mistakes them for the lengths that they equal.
        mark_shapes_dynamic((args, kwargs))
        return in_training(*args, **kwargs)

    return either


class ForwardSums(NamedTuple):
    """Sums over the target tokens of a micro-batch, in nats or tokens.

    loss: scalar, with gradients: smoothed loss plus z-loss. by_bin: [bins + 1, len(SUMS)] float64, detached: row 0 is for
    tokens of samples without an uncertainty bin, row b + 1 for those of bin b; columns as named in SUMS.
    """

    loss: Tensor
    by_bin: Tensor


class SmoothedCausalLM(nn.Module):
    """Body, head and loss in one module, so that FSDP gathers the head once per micro-batch and no logits are kept."""

    def __init__(
        self,
        model: nn.Module,
        z_loss: float = 0.0,
        uncertainty_bins: int = 0,
        token_loss: TokenLoss | None = None,
        prior: Tensor | None = None,
        varlen: bool = False,
        *,
        towards_base: bool = False,
        copy: "SmoothedCausalLM | None" = None,
    ) -> None:
        """Wrap a transformers causal LM.

        uncertainty_bins: number of bins by which sums are split, 0 or more. token_loss: see `token_losses`. prior: [vocabulary]
        of probabilities that labels are smoothed towards; uniform by default. varlen: the model was switched by `use_varlen`.
        towards_base: smooth towards what the model before training predicts: the model without its adapters, or where it is
        trained in full `copy`, which is frozen and in evaluation mode.
        """
        super().__init__()
        self.model = model
        # Whether gradients may stay unsharded between the micro-batches of a step; set by `shard`.
        self.holds_gradients = True
        self.z_loss = z_loss
        self._rows = uncertainty_bins + 1
        self._token_loss = token_loss
        self._prior = prior
        self._varlen, self._towards_base, self._masks = varlen, towards_base, False
        # In a tuple, as a module that this one holds itself would be trained, sharded, saved and exported with it.
        self._copies = () if copy is None else (copy,)
        self.head = OutputHead(model)
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters

    @property
    def body(self) -> nn.Module:
        """The decoder: token ids to hidden states."""
        return self.model.get_decoder()

    def forward(self, batch: Batch) -> ForwardSums:
        """Sum the loss over the batch's target tokens: position t predicts token t + 1 with the alpha of that token.

        A batch without attention mask is packed: transformers separates a sequence's samples where `position_ids` restart.
        """
        before = self._before_training(batch)
        hidden = self._states(batch)
        return_freed_memory()  # the loss's tensors are of other sizes than what the layers freed
        labels, alpha = _shifted(batch.labels, IGNORE_INDEX), _shifted(batch.alpha, 0.0)
        # In evaluation the loss is that of all tokens, so that arms compare.
        weighted = self.training and batch.weight is not None
        loss, metrics = smoothed_linear_cross_entropy_with_metrics(
            hidden.flatten(0, 1),
            self.head.weight,
            labels,
            alpha,
            bias=self.head.bias,
            token_weight=_shifted(batch.weight, 1.0) if weighted and batch.weight is not None else None,
            prior=self._prior_for(self.head.weight),
            **before,
            token_loss=self._token_loss if self.training else None,
            vocab_size=self.head.size,
            softcap=self.head.softcap,
            z_loss=self.z_loss,
        )
        for copy in self._copies:
            reshard(copy)  # its head, which nothing frees without a backward pass
        per_token = (metrics.nll, metrics.smoothing, metrics.top1, alpha * metrics.target, metrics.target)
        values = torch.stack([value.double() for value in per_token], dim=1)
        by_bin = values.new_zeros(self._rows, len(SUMS))
        return ForwardSums(loss, by_bin.index_add_(0, _shifted(batch.uncertainty_bin, -1) + 1, values))

    def states(self, batch: Batch) -> Tensor:
        """Return what the output layer multiplies, [tokens, hidden]; until `reshard`, the layer's weights stay gathered."""
        return self._states(batch).flatten(0, 1)

    def _states(self, batch: Batch) -> Tensor:
        """Run the decoder; return what the output layer multiplies, as `_hidden`, in the precision of its weights."""
        # Mamba's decoder gives float32 in any precision.
        return self.head.scaled(self._hidden(batch)).to(self.head.weight.dtype)

    def _hidden(self, batch: Batch) -> Tensor:
        """Run the decoder: states of [rows, length, hidden], or of [1, rows * length, hidden] sample by sample."""
        if self._varlen:
            ids, positions = batch.input_ids.view(1, -1), batch.position_ids.view(1, -1)
            lengths = Lengths(sample_lengths(positions))
            own: dict[str, Any] = {"position_ids": positions, "sample_lengths": lengths}
            states = self.body(input_ids=ids, attention_mask=None, use_cache=False, **own).last_hidden_state
            if not lengths.arrived:
                raise UserError(
                    f"train.attention=varlen does not support {type(self.model).__name__}",
                    got="layers that do not pass the lengths of samples on to their attention",
                    fix="set train.attention=auto",
                )
            return states
        own = {"position_ids": batch.position_ids} if self.takes_positions else {}
        mask: Any = batch.attention_mask
        if mask is None and self._masks:
            mask = pack_masks(self.model, batch.position_ids, self.head.weight.dtype)
        return self.body(input_ids=batch.input_ids, attention_mask=mask, use_cache=False, **own).last_hidden_state

    def without_varlen(self) -> None:
        """Compute packs with a mask again."""
        for one in (self, *self._copies):
            one._varlen = False
            one.model.set_attn_implementation("sdpa")

    def with_masks(self) -> None:
        """Give the decoder the masks of packs, in place of the positions that it should make them from."""
        for one in (self, *self._copies):
            one._masks = True

    @torch.no_grad()
    def _before_training(self, batch: Batch) -> dict[str, Tensor | None]:
        """Return the loss's arguments from the model before training, where labels are smoothed towards it; else none."""
        if not self._towards_base:
            return {}
        if self._copies:
            (copy,) = self._copies
            return {"prior_hidden": copy.states(batch), "prior_weight": copy.head.weight, "prior_bias": copy.head.bias}
        was_training = self.training
        self.model.eval()  # no dropout: what is smoothed towards is the same in every epoch
        try:
            with without_adapters(self.model):
                return {"prior_hidden": self._states(batch).flatten(0, 1)}
        finally:
            self.model.train(was_training)

    def _prior_for(self, weight: Tensor) -> Tensor | None:
        """Move the prior to the head's device, with zeros for its padding rows, once."""
        if self._prior is not None and (self._prior.device != weight.device or len(self._prior) != len(weight)):
            prior = self._prior.to(weight.device, torch.float32)
            self._prior = nn.functional.pad(prior, (0, len(weight) - len(prior)))
        return self._prior

    def logits(self, input_ids: Tensor) -> Tensor:
        """Return the model's own logits [rows, length, vocabulary], to check `forward` against."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def _shifted(values: Tensor, last: float) -> Tensor:
    """Shift each token's value to the position that predicts it; `last` at the last position. Flat, [rows * length]."""
    # The values are shifted instead of slicing the hidden states, which would copy them.
    return nn.functional.pad(values[:, 1:], (0, 1), value=last).flatten()


def build(
    path: str,
    config: TrainConfig,
    mesh: DeviceMesh,
    device: torch.device,
    trust_remote_code: bool = False,
    prior: Callable[[int], Tensor | None] = lambda vocabulary: None,
    longest: int = 0,
) -> SmoothedCausalLM:
    """Load a model, sharded from the start: every rank of the mesh calls it, and none ever holds all weights.

    path: directory or hub name. prior: given the size of the vocabulary, what labels are smoothed towards. longest: tokens of
    the longest row. Raises UserError for an unsupported architecture, and for rows that the model has no positions for.
    """
    if config.compile:
        check_compiler(device.type)
    causal_lm = empty_trained_model(path, config.lora, config.dtype, trust_remote_code)
    check_positions(causal_lm, longest)
    if config.activation_checkpointing:
        checkpoint_activations(causal_lm, config.activation_checkpointing)
    weights, varlen = token_loss(config.loss, config.loss_strength), use_varlen(causal_lm, config, device)
    own_prior = prior(OutputHead(causal_lm).size)
    own = (config.z_loss, config.uncertainty_bins, weights, own_prior, varlen)
    copy = frozen_copy(path, config, mesh, device, trust_remote_code) if config.holds_copy else None
    model = SmoothedCausalLM(causal_lm, *own, towards_base=config.prior == "base", copy=copy)
    if config.compile:
        compile_layers(model.body)
    shard(model, mesh, config)
    for one in (model, *([] if copy is None else [copy])):
        load_weights(one.model, path, device, home=torch.device("cpu") if config.cpu_offload else device)
    _check_ways(model, device, config, varlen)
    return model


def frozen_copy(
    path: str, config: TrainConfig, mesh: DeviceMesh, device: torch.device, trust_remote_code: bool = False
) -> SmoothedCausalLM:
    """Make the model before training, sharded and without weights, for a model that is trained in full."""
    causal_lm = empty_frozen_model(path, config.dtype, trust_remote_code)
    copy = SmoothedCausalLM(causal_lm, varlen=use_varlen(causal_lm, config, device)).eval()
    # Without a backward pass, nothing else would free its layers.
    shard(copy, mesh, config.model_copy(update={"reshard_after_forward": True}))
    return copy


def _check_ways(model: SmoothedCausalLM, device: torch.device, config: TrainConfig, varlen: bool) -> None:
    """Check the loss; while it is wrong, take the next way of computing packs. Raises what the way without added masks gave."""
    others = [model.without_varlen] if varlen and config.attention == "auto" else []
    masks = [model.with_masks] if config.packing and config.attention != "varlen" else []
    errors = []
    for way in (lambda: None, *others, *masks):
        way()
        try:
            return check_loss(model, device, packing=config.packing)
        except UserError as error:
            errors.append(error)
    raise errors[len(others)]


def check_positions(causal_lm: Any, longest: int) -> None:
    """Raise UserError when a model looks positions up in a table (GPT-2, OPT) that has fewer than `longest`."""
    positions = getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or longest <= positions:
        return
    tokens = causal_lm.get_input_embeddings()
    tables = [one for one in causal_lm.modules() if isinstance(one, nn.Embedding) and one is not tokens]
    # OPT's has two entries more.
    if any(positions <= table.num_embeddings <= positions + 2 for table in tables):
        raise UserError(
            "rows are longer than the model's table of positions",
            got=f"{longest} tokens",
            expected=f"at most {positions}",
            fix=f"set train.max_length={positions}",
        )


@torch.no_grad()
def check_loss(model: SmoothedCausalLM, device: torch.device, *, packing: bool = False) -> None:
    """Raise UserError when the loss differs from that of the model's own logits, or depends on a pack's other samples.

    Some architectures transform their logits in ways that `forward` does not support, or attend across a pack's samples;
    training them would be silently wrong. Others cannot be called as `forward` does.
    """
    try:
        _check_loss(model, device, packing)
    except (UserError, torch.OutOfMemoryError, dist.DistError):
        raise
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"models of the kind {type(model.model).__name__} cannot be trained yet: a first forward pass failed",
            got=f"{type(error).__name__}: {error}",
            fix="check its config.json with transformers alone; if it is sound, use a model of another kind",
        ) from error


def _check_loss(model: SmoothedCausalLM, device: torch.device, packing: bool) -> None:
    was_training, kind = model.training, type(model.model).__name__
    model.eval()
    samples = [_sample(range(1, 9)), _sample(range(9, 1, -1))]
    sums = model(collate([[sample] for sample in samples]).to(device)).by_bin.sum(0)
    ids = torch.stack([torch.as_tensor(sample.input_ids).long() for sample in samples]).to(device)
    logits = model.logits(ids)[:, :-1]
    model.head.check(
        sums[SUMS.index("nll")],
        logits.flatten(0, 1),
        ids[:, 1:].flatten(),
        f"models of the kind {kind} cannot be trained yet",
        "use another model: this one transforms its logits in a way that ual_ray.models.output_head does not support",
    )
    if packing and not _keeps_samples_apart(model, device, logits.dtype):
        raise UserError(
            f"{kind} cannot be trained with packing: its attention does not separate the samples of a pack",
            got="train.packing=true",
            fix="set train.packing=false",
        )
    model.train(was_training)
    reshard(model)


def _keeps_samples_apart(model: SmoothedCausalLM, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a sample's NLL is the same at either end of a pack, next to different samples, and alone.

    Packs of equal lengths differ only in the other sample, so the sample's NLL is compared exactly, in any dtype. Alone, it
    goes through other kernels: for a confident model, bfloat16 then changes the NLL of unlikely tokens by percents. That
    difference is the tolerance for its two positions in a pack.
    """
    sample = _sample(range(9, 1, -1))
    others = [_sample(ids, trained=False) for ids in (range(1, 9), range(3, 11))]

    def nll(*sequence: Sample, packed: bool = True) -> Tensor:
        return model(collate([sequence], packed=packed).to(device)).loss

    before, behind, alone = [nll(sample, x) for x in others], [nll(x, sample) for x in others], nll(sample, packed=False)
    sees_no_other = all(_agree(one, other, rtol=1e-6) for one, other in (before, behind))
    rounding = 0.0 if dtype == torch.float32 else 2 * float((before[0] - alone).abs())
    return sees_no_other and all(_agree(value, before[0], atol=rounding) for value in (behind[0], alone))


def _sample(ids: range, trained: bool = True) -> Sample:
    tokens = np.asarray(ids, dtype=np.int32)
    return Sample("check", tokens, tokens if trained else np.full_like(tokens, IGNORE_INDEX), 0.0)


def _agree(first: Tensor, second: Tensor, rtol: float = TOLERANCE, atol: float = 0.0) -> bool:
    return bool(torch.isclose(first.float(), second.float(), rtol=rtol, atol=atol))
