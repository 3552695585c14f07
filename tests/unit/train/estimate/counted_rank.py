"""Take steps of rank 0 of eight, in a group that sends nothing, and count what its tensors take; prints bytes as JSON.

counted_rank.py FOLDER SETTINGS...: a folder with a config.json, and keys of `train` as JSON. Each SETTINGS has a process of its
own, behind the imports, and a line of the output.
"""

import json
import os
import sys
import weakref
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ual_ray.config import Config, TrainConfig
from ual_ray.models.compat_transformers import auto_causal_lm
from ual_ray.train.batches import Sample, collate
from ual_ray.train.compat_torch import storage_key
from ual_ray.train.estimate.dry_run import Model, micro_batch
from ual_ray.train.estimate.state import PROCESS_BYTES
from ual_ray.train.model import SmoothedCausalLM, frozen_copy
from ual_ray.train.optimizer_step import backward, make_optimizer
from ual_ray.train.sharding import checkpoint_activations, make_mesh, shard
from ual_ray.train.weights import empty_trained_model

CPU = torch.device("cpu")


class Counter(TorchDispatchMode):
    """Adds up the storages that there are; `peak`: the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            # A sharded tensor's own storage, as large as the whole, is not there.
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor) and tensor.device == CPU:
                self.note(tensor)
        return made

    def note(self, tensor: torch.Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key not in self.sizes:
            weakref.finalize(storage, self.count, key, 0)
        self.count(key, storage.nbytes())

    def count(self, key: int, size: int) -> None:
        self.now += size - self.sizes.pop(key, 0)
        if size:
            self.sizes[key] = size
        self.peak = max(self.peak, self.now)


def main(folder: str, settings: dict[str, Any]) -> None:
    train = TrainConfig(num_workers=8, packing=True, dtype="float32", **settings)
    dist.init_process_group("fake", rank=0, world_size=8)
    micro, counter = micro_batch(train, train.global_batch_size, train.max_length), Counter()
    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> None:
        resize(storage, size)
        counter.count(storage._cdata, size)

    # FSDP frees gathered weights by this.
    torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign,assignment]
    with counter:
        causal_lm = empty_trained_model(folder, train.lora, train.dtype)
        if train.activation_checkpointing:
            checkpoint_activations(causal_lm, train.activation_checkpointing)
        mesh = make_mesh(train, CPU)
        copy = frozen_copy(folder, train, mesh, CPU) if train.holds_copy else None
        model = SmoothedCausalLM(causal_lm, towards_base=train.prior == "base", copy=copy).train()
        shard(model, mesh, train)
        for one in (model, *([] if copy is None else [copy])):
            one.to_empty(device=CPU)
        optimizer = make_optimizer(model, train)
        ids = np.ones((micro.rows, 4, micro.length // 4), dtype=np.int32)
        batches = [collate([[Sample("", one, one, 0.1) for one in row] for row in ids], packed=True)] * micro.passes
        for _ in range(2):
            # The first step counts what torch finds out about sharded operations with tensors that take no memory.
            counter.peak = counter.now
            backward(model, batches, 1, CPU)
            optimizer.step()
            optimizer.zero_grad()
    memory = Model(Config(model=folder, train=train)).memory(train, micro)
    estimated = memory.peak - PROCESS_BYTES["cpu"] - memory.parts["checkpoint"]
    print(json.dumps({"counted": counter.peak, "estimated": estimated, "moment": memory.moment}), flush=True)


if __name__ == "__main__":
    auto_causal_lm()
    assert "sklearn" not in sys.modules, "transformers imports it in another way than auto_causal_lm prevents"
    for each in sys.argv[2:]:
        if not (child := os.fork()):
            main(sys.argv[1], json.loads(each))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"failed with {each}")
