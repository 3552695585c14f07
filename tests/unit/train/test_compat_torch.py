"""torch's undocumented parts still do what is needed of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ual_ray.train import compat_torch
from ual_ray.train.compat_torch import (
    LARGE_PAGES,
    HostStager,
    ProductBytes,
    fake_tensors,
    flop_counter,
    is_product,
    mark_shapes_dynamic,
    storage_key,
)

FIX = f"torch has changed what ual_ray uses of it: do what is written at the top of {compat_torch.__file__}"


def test_a_staged_state_is_a_copy_shard_by_shard(group: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    sharded = distribute_tensor(torch.arange(12.0).view(4, 3), mesh, [Shard(0)])
    state = {"model": {"weight": sharded}, "steps": [torch.tensor(3.0), 4]}
    staged = HostStager(copies=True).stage(state)
    copy = staged["model"]["weight"]
    assert isinstance(copy, DTensor), FIX
    assert (copy.device_mesh, copy.placements, copy.shape) == (mesh, (Shard(0),), (4, 3)), FIX
    with torch.no_grad():
        sharded.to_local().zero_()
        state["steps"][0].zero_()  # type: ignore[index,union-attr]
    assert torch.equal(copy.to_local(), torch.arange(12.0).view(4, 3)), FIX
    assert (staged["steps"][0].item(), staged["steps"][1]) == (3.0, 4)


def test_what_is_in_host_memory_need_not_be_copied(group: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    state = {"weight": distribute_tensor(torch.zeros(4, 3), mesh, [Shard(0)]), "step": torch.tensor(3.0)}
    staged = HostStager(copies=False).stage(state)
    assert staged["weight"].to_local().data_ptr() == state["weight"].to_local().data_ptr()  # type: ignore[attr-defined]
    assert staged["step"].data_ptr() == state["step"].data_ptr()


def test_a_save_does_not_wait_for_the_stager_a_second_time() -> None:
    assert HostStager(copies=True).should_synchronize_after_execute is False, FIX


def test_a_view_has_the_storage_of_its_tensor_with_memory_or_without() -> None:
    real = torch.zeros(4, 4)
    with fake_tensors():
        fake = torch.zeros(4, 4)
        assert storage_key(fake) == storage_key(fake[1:]) != storage_key(torch.zeros(4, 4)), FIX
    assert storage_key(real) == storage_key(real.T) != storage_key(torch.zeros(4, 4)), FIX


def test_operations_of_linear_layers_and_of_attention_on_a_cpu_are_counted() -> None:
    with fake_tensors(), flop_counter() as counter:
        nn.Linear(8, 16)(torch.zeros(4, 8))
        linear = counter.get_total_flops()
        # Long enough for the kernel that real models take; requires_grad, as training does.
        query = torch.zeros(1, 2, 64, 16, requires_grad=True)
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert linear == 2 * 4 * 8 * 16, FIX
    assert counter.get_total_flops() - linear == 2 * (2 * 2 * 64 * 64 * 16), FIX


def test_results_of_products_and_of_attention_on_a_cpu_are_counted() -> None:
    with fake_tensors(), ProductBytes() as products:
        torch.relu(nn.Linear(8, 16)(torch.zeros(4, 8)))
        linear = products.bytes
        query = torch.zeros(1, 2, 64, 16, requires_grad=True)
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert linear == 4 * 4 * 16, FIX
    assert products.bytes - linear == 4 * (2 * 64 * 16 + 2 * 64), FIX  # with a log-sum-exp per head and token
    named = [torch.ops.aten.mm.default, torch.ops.aten._grouped_mm.default, torch.ops.aten.relu.default]
    assert [is_product(operation) for operation in named] == [True, True, False], FIX


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_experts_have_shapes_in_any_precision(dtype: torch.dtype) -> None:
    with fake_tensors():
        rows, weights = torch.ones(12, 8, dtype=dtype), torch.ones(4, 8, 16, dtype=dtype)
        product = nn.functional.grouped_mm(rows, weights, offs=torch.zeros(4, dtype=torch.int32))
    assert (product.shape, product.dtype) == ((12, 16), dtype), FIX


def test_products_of_experts_are_counted() -> None:
    """12 rows, of which each meets one of 4 experts, and the gradients of both."""
    with flop_counter() as counter:
        rows, weights = (torch.ones(shape, requires_grad=True) for shape in ((12, 8), (4, 8, 16)))
        product = nn.functional.grouped_mm(rows, weights, offs=torch.tensor([3, 3, 9, 12], dtype=torch.int32))
        forward = counter.get_total_flops()
        product.square().sum().backward()
    assert forward == 2 * 12 * 8 * 16, FIX
    assert counter.get_total_flops() == 3 * forward, FIX


@pytest.mark.slow
def test_marked_tensors_share_a_graph_whatever_their_sizes() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    @torch.compile(backend=backend)
    def doubled(states: torch.Tensor, more: dict[str, torch.Tensor]) -> torch.Tensor:
        return 2 * states + more["bias"]

    for rows, length in ((2, 8), (3, 9), (9, 8)):
        states, more = torch.ones(rows, length, 4), {"bias": torch.ones(rows, length, 1)}
        mark_shapes_dynamic(((states,), more))
        assert torch.equal(doubled(states, more), torch.full((rows, length, 4), 3.0))
    assert len(graphs) == 1, FIX


PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNT_PAGES = """
import os, resource
from ual_ray.train import worker
from ual_ray.train.compat_ray_train import NodeBackend
import torch
from ual_ray.train.compat_torch import use_large_pages
for ask in (use_large_pages, bool):
    if not (child := os.fork()):
        ask()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensor = torch.ones(25_000_000)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not PAGES.exists() or "[never]" in PAGES.read_text(), reason="the kernel has no large pages")
@pytest.mark.slow
def test_what_a_worker_imports_makes_no_tensor_before_it_asks_for_large_pages() -> None:
    """A tensor of 100 MB takes 24,414 pages of 4 KB, or 48 of 2 MB."""
    script = [sys.executable, "-c", COUNT_PAGES]
    environment = {name: value for name, value in os.environ.items() if name != LARGE_PAGES}
    large, small = map(int, subprocess.run(script, env=environment, capture_output=True, check=True).stdout.split())
    assert large < 2500 < 20_000 < small, FIX


FREE_MEMORY = """
import os, sys, threading
from pathlib import Path
import torch
from ual_ray.train.compat_torch import return_freed_memory, reuse_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

def steps():
    before = resident()
    for tokens in (3650, 4041, 4048, 4090):
        tensors = [torch.ones(tokens, size) for size in (576, 192, 1536) * 20]
        del tensors[::2]
        tensors += [torch.ones(tokens + 1, size) for size in (576, 192, 1536) * 10]
        kept = torch.ones(10)  # at the end of the heap
        del tensors
        return_freed_memory()
    print(resident() - before, flush=True)

for call in sys.argv[1:]:
    if not (child := os.fork()):
        eval(call)
        thread = threading.Thread(target=steps)
        thread.start()
        thread.join()
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
@pytest.mark.slow
def test_the_memory_of_freed_tensors_is_returned() -> None:
    """Also in another thread than the first, as Ray Train's, which has other heaps."""

    def left(*calls: str, **variables: str) -> list[int]:
        script = [sys.executable, "-c", FREE_MEMORY, *calls]
        others = {name: value for name, value in os.environ.items() if name != LARGE_PAGES and "MALLOC" not in name}
        return [*map(int, subprocess.run(script, env=others | variables, capture_output=True, check=True).stdout.split())]

    returned, kept = left("reuse_freed_memory()", "None")
    assert returned < 50 < 200 < kept
    (set_by_user,) = left("reuse_freed_memory()", MALLOC_MMAP_THRESHOLD_=str(2**25))
    assert set_by_user > 200


@pytest.mark.parametrize(
    ("most", "asked", "trims"), [(2**40, [(-3, 2**30), (-1, 2**30), (-8, 1)], 1), (2**25, [(-3, 2**30), (-3, 2**21)], 0)]
)
def test_where_malloc_keeps_no_large_blocks_they_are_mapped_one_by_one(
    most: int, asked: list[tuple[int, int]], trims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in glibc before 2.35, whose mallopt refuses limits above 32 MB."""
    calls, trimmed = [], []

    class Libc:
        def mallopt(self, option: int, value: int) -> int:
            calls.append((option, value))
            return int(option != -3 or value <= most)

        def malloc_trim(self, pad: int) -> None:
            trimmed.append(pad)

    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(compat_torch, "_reuses", False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Libc())
    compat_torch.reuse_freed_memory()
    compat_torch.return_freed_memory()
    assert (calls, len(trimmed)) == (asked, trims)
