"""The trained model as an ordinary Hugging Face directory, written parameter by parameter: no rank ever holds it whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ual_ray.models.compat_transformers import as_in_checkpoint, optional_file
from ual_ray.models.resolve import INDEX, WEIGHTS
from ual_ray.train.lora import ADAPTER, adapted_layers, delta
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.sharding import reshard

GENERATION = "generation_config.json"
SHARD_BYTES = 4 * 2**30


def export(
    model: SmoothedCausalLM,
    source: str,
    folder: Path,
    card: str,
    trust_remote_code: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors, config, generation config, tokenizer with its chat template, and `card` as README.md.

    Every rank calls it; rank 0 writes, to a neighbour that takes the folder's name when it is whole. source: the directory or
    hub name that the model was built from. Adapters are merged. shard_bytes: size that no file goes beyond, unless a single
    parameter does; rank 0 holds one such file at a time.
    """
    reshard(model)
    part = folder.with_name(folder.name + ".part")
    writer = _Writer(part, shard_bytes) if not dist.is_initialized() or dist.get_rank() == 0 else None
    for name, tensor in whole_parameters(model.model):
        if writer is not None:
            for saved_name, saved in as_in_checkpoint(model.model, name, tensor.cpu()).items():
                writer.add(saved_name, saved)
    if writer is not None:
        writer.finish()
        _write_companions(model.model, source, part, trust_remote_code)
        (part / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    if dist.is_initialized():
        dist.barrier()


@torch.no_grad()
def whole_parameters(causal_lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Gather every parameter and saved buffer in turn, adapters merged; a tied weight comes once. Every rank iterates."""
    layers: dict[str, Any] = {f"{name}.base_layer.weight": layer for name, layer in adapted_layers(causal_lm)}
    repeated = repeated_parameters(causal_lm)
    for name, value in causal_lm.state_dict().items():
        if name in repeated or f".{ADAPTER}." in name:
            continue
        tensor = _whole(value)
        if name in layers:
            layer = layers[name]
            a, b = (_whole(linear[ADAPTER].weight) for linear in (layer.lora_A, layer.lora_B))
            tensor = tensor + delta(layer, a, b)
        yield name.replace(".base_layer.", "."), tensor


def repeated_parameters(model: nn.Module) -> set[str]:
    """Name the parameters that are another's under a second name, such as a head tied to the embedding."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}


def _whole(value: Tensor) -> Tensor:
    if not isinstance(value, DTensor):
        return value.detach()
    # What is kept in host memory travels between GPUs all the same.
    return value.to(value.device_mesh.device_type).full_tensor()


def _write_companions(causal_lm: nn.Module, source: str, folder: Path, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    model: Any = causal_lm
    model.config.save_pretrained(folder)
    # Copied, as transformers refuses to save the settings of some well-known models.
    if generation := optional_file(source, GENERATION):
        shutil.copy(generation, folder / GENERATION)
    else:
        model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code).save_pretrained(folder)
    # A model with code of its own names these files in its config.
    for code in Path(source).glob("*.py"):
        shutil.copy(code, folder)


class _Writer:
    """Collects tensors and writes a file whenever the next one would not fit into it; the names follow at the end."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._names: list[list[str]] = []
        self._bytes = self._total = 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, name: str, tensor: Tensor) -> None:
        if self._waiting and self._bytes + tensor.nbytes > self._shard_bytes:
            self._write()
        self._waiting[name] = tensor.contiguous()
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes

    def finish(self) -> None:
        """Write the rest; give the files their final names, which contain their number, and list them in an index."""
        self._write()
        count = len(self._names)
        if count == 1:
            self._file(0).rename(self._folder / WEIGHTS)
            return
        index: dict[str, str] = {}
        for number, names in enumerate(self._names):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._file(number).rename(self._folder / file)
            index |= dict.fromkeys(names, file)
        content = {"metadata": {"total_size": self._total}, "weight_map": index}
        (self._folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")

    def _file(self, number: int) -> Path:
        return self._folder / f"shard-{number}"

    def _write(self) -> None:
        from safetensors.torch import save_file

        save_file(self._waiting, self._file(len(self._names)), metadata={"format": "pt"})
        self._names.append(list(self._waiting))
        self._waiting, self._bytes = {}, 0
