"""Parts of torch that it does not document: DTensors from shards, stagers, tensors without storage, shapes of compiled graphs.

And the memory of tensors on a CPU: large pages (c10/core/impl/alloc_cpu.cpp), and what glibc keeps of it (mallopt).

When tests/unit/train/test_compat_torch.py fails with another torch: read `DTensor.__new__` (torch/distributed/tensor/_api.py),
`AsyncStager` (torch/distributed/checkpoint/staging.py), `flop_registry` (torch/utils/flop_counter.py), `TorchDispatchMode`
(torch/utils/_python_dispatch.py), `FakeTensorMode` (torch/_subclasses/fake_tensor.py) and `maybe_mark_dynamic`
(torch/_dynamo/decorators.py) of that version, adapt this file, run tests/unit/train and tests/integration/test_fsdp.py, and
move the bounds of torch in pyproject.toml.
"""

import ctypes
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
# Of glibc's malloc.h: from so many bytes on, blocks are mapped one by one, outside of the heap; free memory at the heap's end
# is returned; and how many heaps there are.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX = -3, -1, -8
MOST_KEPT_BYTES = 2**30
PAGE_BYTES = 2 * 2**20
# Attention and the products of experts that torch's counter of operations does not know.
UNCOUNTED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, torch.ops.aten._grouped_mm

_reuses = False


def use_large_pages() -> None:
    """Have torch ask the kernel for pages of 2 MB for tensors from that size on, unless told otherwise.

    To be called before a process makes its first tensor. A step makes and frees gigabytes of tensors, which the kernel provides
    page by page: with small pages 13% of the CPU time of a layer and the loss (SmolLM2-135M's sizes), with large ones 5%.
    """
    os.environ.setdefault(LARGE_PAGES, "1")


def reuse_freed_memory() -> None:
    """Have glibc's malloc keep what is freed until `return_freed_memory`, in as few heaps as it can, unless told otherwise.

    By itself it maps most tensors of a step one by one, and unmaps them when they are freed: the kernel clears every page for
    every tensor. What it keeps has no limit, and the next step's tensors, whose packs have other lengths, do not fit there: the
    memory of the process grows from step to step. To be called early: threads that run have heaps of their own, which later
    ones share, and whose parts of 64 MB keep less. bench/train_step_vs_trl.py measures pace and peak.
    """
    global _reuses
    set_up = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None or set_up:
        return
    if set_option(M_MMAP_THRESHOLD, MOST_KEPT_BYTES):
        _reuses = bool(set_option(M_TRIM_THRESHOLD, MOST_KEPT_BYTES) and set_option(M_ARENA_MAX, 1))
    else:
        # glibc before 2.35 keeps no such tensors in its heap: all are mapped one by one.
        set_option(M_MMAP_THRESHOLD, PAGE_BYTES)


def return_freed_memory() -> None:
    """Give what was freed since the last call back to the kernel, if `reuse_freed_memory` has it kept."""
    if _reuses:
        ctypes.CDLL(None).malloc_trim(0)


class HostStager(AsyncStager):
    """Gives the state dict that `async_save` writes, in host memory: copied before it returns, or shared where it is there.

    torch's own stagers read the null pointer of a DTensor's wrapper where its shard begins within its storage.
    """

    # The copy is complete when `stage` returns.
    _synchronize_after_execute = False

    def __init__(self, *, copies: bool) -> None:
        """copies: without, a tensor in host memory must not change until it is written."""
        self._copies = copies

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Take every tensor, sharded ones shard by shard."""
        return _on_host(state_dict, self._copies)


def _on_host(value: Any, copies: bool) -> Any:
    if isinstance(value, dict):
        return {key: _on_host(item, copies) for key, item in value.items()}
    if isinstance(value, list):
        return [_on_host(item, copies) for item in value]
    if isinstance(value, DTensor):
        # Not DTensor.from_local, which moves the shard back to the device of the mesh.
        return DTensor(_on_host(value.to_local(), copies), value._spec, requires_grad=False)
    return value.detach().to("cpu", copy=copies) if isinstance(value, Tensor) else value


def fake_tensors() -> AbstractContextManager[Any]:
    """Let all tensors that are made in the block have a shape and a dtype, but no storage."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    class AnyPrecision(FakeTensorMode):
        """Has the products of experts in float32, too, which a CPU computes and torch's shapes refuse."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is torch.ops.aten._grouped_mm:
                return args[0].new_empty(*args[0].shape[:-1], args[1].shape[-1])
            return super().__torch_dispatch__(func, types, args, kwargs)

    return AnyPrecision()


def flop_counter() -> Any:
    """Make a counter of operations; attention on a CPU and products of experts, which torch's own leaves out, count."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def of_experts(rows: Any, weights: Any, *_: Any, **__: Any) -> int:
        # Each row meets the matrix of its expert; for the gradient of the weights, the columns are those of one expert each.
        matrices = rows[0] if len(rows) == len(weights) == 3 else 1
        return 2 * matrices * rows[-2] * rows[-1] * weights[-1]

    return FlopCounterMode(display=False, custom_mapping=dict(zip(UNCOUNTED, (attention, of_experts), strict=True)))


def is_product(operation: Any) -> bool:
    """Whether an operation is a matrix product, a convolution, or attention: what torch's flop counter counts, and two more."""
    from torch.utils.flop_counter import flop_registry

    packet = getattr(operation, "overloadpacket", operation)
    return packet in flop_registry or packet in UNCOUNTED


class ProductBytes(TorchDispatchMode):
    """Adds the results of products up, in bytes, for as long as it is entered."""

    def __init__(self) -> None:
        """Begin with 0 bytes."""
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count what it made."""
        made = func(*args, **(kwargs or {}))
        if is_product(func):
            self.bytes += sum(one.nbytes for one in (made if isinstance(made, tuple) else (made,)) if isinstance(one, Tensor))
        return made


def mark_shapes_dynamic(values: Any) -> None:
    """Let torch.compile make its graph for any sizes of the tensors in nested values, where their use allows it."""
    from torch.utils._pytree import tree_leaves

    for tensor in tree_leaves(values):
        if isinstance(tensor, Tensor):
            torch._dynamo.maybe_mark_dynamic(tensor, [*range(tensor.ndim)])


def storage_key(tensor: Tensor) -> int:
    """Identify a tensor's storage among those alive; views of one tensor have the same, also without memory behind it."""
    return tensor.untyped_storage()._cdata
