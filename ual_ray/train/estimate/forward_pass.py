"""Count the cost of one micro-batch in the decoder, in a forward pass over tensors with shapes but without storage.

Such tensors (torch's FakeTensorMode) run through the model's own code, so the counts hold for any architecture: autograd
reports the tensors it saves, torch's flop counter every product. Of layers that are alike, two run, and the others count like
the second. A 70B model takes seconds and no memory.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ual_ray.train.compat_torch import ProductBytes, fake_tensors, flop_counter, storage_key
from ual_ray.train.sharding import DTYPES, find_layers

OUTSIDE = -1


@dataclass(frozen=True)
class ForwardPass:
    """Bytes that autograd keeps of a micro-batch until backward, without head and loss, and operations.

    `kept` is without, `kept_checkpointed` with activation checkpointing: what goes into the layers, and all of the largest
    layer, computed again, which are `layer`; `kept_selective` also has the results of the layers' products. `largest` is the
    largest single tensor. `flops`: multiplications and additions of forward.
    """

    kept: int
    kept_checkpointed: int
    kept_selective: int
    layer: int
    largest: int
    flops: float

    def kept_with(self, activation_checkpointing: Literal[False, True, "selective"]) -> int:
        """Return what is kept with this train.activation_checkpointing."""
        return {"selective": self.kept_selective, True: self.kept_checkpointed, False: self.kept}[activation_checkpointing]


def forward_pass(causal_lm: nn.Module, dtype: str, rows: int, length: int, *, packed: bool) -> ForwardPass:
    """Run the decoder of a model on the meta device on [rows, length] tokens, in the arithmetic of train.dtype."""
    body = causal_lm.get_decoder()
    with fake_tensors(), ExitStack() as stack:
        # FSDP casts parameters, and leaves buffers as they are.
        state = {name: _fake(parameter, DTYPES[dtype]) for name, parameter in body.named_parameters()}
        state |= {name: _fake(buffer, buffer.dtype) for name, buffer in body.named_buffers()}
        kept, flops, products = _Kept(state.values()), flop_counter(), ProductBytes()
        alike = _Alike(kept, flops, products)
        for number, layer in enumerate(find_layers(body)):
            layer.forward = alike.wrapped(layer)
            stack.callback(delattr, layer, "forward")
            stack.enter_context(layer.register_forward_pre_hook(kept.entering(number), with_kwargs=True))
            stack.enter_context(layer.register_forward_hook(kept.leave))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.save, lambda tensor: tensor))
        stack.enter_context(flops)
        stack.enter_context(products)
        inputs = {
            "input_ids": torch.zeros(rows, length, dtype=torch.long),
            "position_ids": torch.arange(length).repeat(rows, 1),
            "attention_mask": None if packed else torch.ones(rows, length, dtype=torch.long),
        }
        torch.func.functional_call(body.train(), state, kwargs={**inputs, "use_cache": False})
    layers = [size for layer, size in kept.bytes.items() if layer != OUTSIDE]
    layer, given = max(layers, default=0), kept.bytes[OUTSIDE] + kept.layer_inputs
    operations = float(flops.get_total_flops() + alike.flops)
    return ForwardPass(kept.bytes.total(), given + layer, given + layer + alike.products, layer, kept.largest, operations)


class _Kept:
    """Adds up what autograd saves, by the layer that is running; every storage once, parameters not at all."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.bytes: Counter[int] = Counter()
        self.layer_inputs = 0
        self.largest = 0
        self._layer = OUTSIDE
        # By storage. They are kept alive, or a later one could have the address of one that is gone.
        self._saved = {storage_key(parameter): parameter for parameter in parameters}
        self._given = dict(self._saved)

    def save(self, tensor: Tensor) -> Tensor:
        """Take note of a tensor that autograd saves."""
        size = _add(tensor, self._saved)
        self.bytes[self._layer] += size
        self.largest = max(self.largest, size)
        return tensor

    @property
    def running(self) -> int:
        """Bytes kept by the layer that is running."""
        return self.bytes[self._layer]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's storage is kept."""
        return storage_key(tensor) in self._saved

    def count(self, size: int, tensors: Iterable[Tensor]) -> None:
        """Count so many bytes for the layer that is running, these tensors among them."""
        self.bytes[self._layer] += size
        self._saved |= {storage_key(tensor): tensor for tensor in tensors}

    def entering(self, layer: int) -> Any:
        """Make the hook that runs before a layer: checkpointing keeps what goes into it."""

        def enter(module: nn.Module, arguments: Any, keywords: Any) -> None:
            self._layer = layer
            self.layer_inputs += sum(_add(tensor, self._given) for tensor in _tensors([arguments, keywords]))

        return enter

    def leave(self, *_: Any) -> None:
        """Run behind a layer."""
        self._layer = OUTSIDE


@dataclass(frozen=True)
class _Run:
    """What a layer's run kept and computed, the bytes of its products, its output, and whether that was kept."""

    bytes: int
    flops: int
    products: int
    output: Tensor
    output_kept: bool


class _Alike:
    """Lets two layers of each kind run: the first also keeps what all of them share. The others count like the second."""

    def __init__(self, kept: _Kept, flops: Any, products: ProductBytes) -> None:
        self.flops = self.products = 0
        self._kept, self._counter, self._of_products = kept, flops, products
        self._runs: defaultdict[Any, list[_Run]] = defaultdict(list)

    def wrapped(self, layer: nn.Module) -> Callable[..., Any]:
        """Make the forward of a layer that runs only if not two layers like it have run on such inputs."""
        forward, kind = layer.forward, _kind(layer)

        def run(*arguments: Any, **keywords: Any) -> Any:
            given = [(tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in _tensors([arguments, keywords])]
            runs = self._runs[(kind, *given)]
            if len(runs) == 2:
                return self._repeat(runs[-1])
            bytes_before, flops_before, before = self._kept.running, self._counter.get_total_flops(), self._of_products.bytes
            output = forward(*arguments, **keywords)
            products = self._of_products.bytes - before
            self.products += products
            if isinstance(output, Tensor):
                costs = self._kept.running - bytes_before, self._counter.get_total_flops() - flops_before
                runs.append(_Run(*costs, products, output, self._kept.holds(output)))
            return output

        return run

    def _repeat(self, run: _Run) -> Tensor:
        self.flops += run.flops
        self.products += run.products
        output = torch.empty_like(run.output, requires_grad=run.output.requires_grad).clone()
        self._kept.count(run.bytes, [output] if run.output_kept else [])
        return output


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Describe a layer by its modules, their settings and the shapes of their parameters, without its number."""
    plain = (bool, int, float, str, type(None))
    return tuple(
        (
            *(name, type(module)),
            *((key, value) for key, value in sorted(vars(module).items()) if isinstance(value, plain) and key != "layer_idx"),
            *((key, tensor.shape, tensor.requires_grad) for key, tensor in module.named_parameters(recurse=False)),
        )
        for name, module in layer.named_modules()
    )


def _add(tensor: Tensor, seen: dict[int, Tensor]) -> int:
    """Bytes of a tensor's storage if it is new, else 0."""
    if storage_key(tensor) in seen:
        return 0
    seen[storage_key(tensor)] = tensor
    return tensor.untyped_storage().nbytes()


def _tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _fake(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(tensor.shape, dtype=dtype).requires_grad_(tensor.requires_grad)
