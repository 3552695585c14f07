"""The trained model as an ordinary Hugging Face directory, written by all ranks, of which none ever holds it whole.

model.part/export.json                      what is being written: an interrupted export of the same weights goes on
model.part/model-00001-of-00008.safetensors each file by one rank; whole, as it gets this name last
model.part/checksums.sha256                 of the files that are whole, by which a damaged model is recognised
model/                                      takes the name when everything is there
adapter/                                    LoRA: the adapter alone, as peft and vLLM load it

The model card (README.md) has the lineage, the training settings and the metrics.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ual_ray import __version__
from ual_ray.config import TrainConfig
from ual_ray.config.files import SUMS_FILE, Sums, damage_in, read_json, read_sums, replacing, sums_of, write_json, write_sums
from ual_ray.config.keys import affecting
from ual_ray.errors import UserError
from ual_ray.models.compat_transformers import as_in_checkpoint, float32_names, optional_file
from ual_ray.models.resolve import INDEX, WEIGHTS, hub_name
from ual_ray.run.folder import HERE, Folder
from ual_ray.train.lora import ADAPTER, adapted_layers, delta, write_adapter_settings
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.progress import Progress
from ual_ray.train.sharding import reshard

GENERATION = "generation_config.json"
# Of a model for images or sounds: engines load it with these, also for texts alone.
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# People add to it, and nothing reads it.
CARD = "README.md"
PLAN_FILE = "export.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SHARD_BYTES = 4 * 2**30
PAPER = "https://arxiv.org/abs/2406.04854"


@dataclass(frozen=True)
class Export:
    """Where and how a model is exported.

    source: the directory or hub name that the model was built from. card: of the README.md. dtype: of the weights, float32 or
    bfloat16. origin: names the checkpoint with these weights; None = what an interrupted export has written is not used.
    shard_bytes: size that no file goes beyond, unless a single parameter does; a rank holds one such file at a time.
    """

    source: str
    card: str
    dtype: str = "float32"
    origin: str | None = None
    trust_remote_code: bool = False
    shard_bytes: int = SHARD_BYTES


def export(
    model: SmoothedCausalLM, settings: Export, folder: Path, group: dist.ProcessGroup | None = None, output: Folder = HERE
) -> None:
    """Write safetensors, config, generation config, tokenizer with its chat template, and the card as README.md.

    Every rank calls it with a folder that all of them see or reach by `output`, and writes its share of the files, which are
    gathered first: so no rank waits in a collective while another writes. Adapters are merged. group: for messages between
    ranks, None = all.
    """
    reshard(model)
    part = folder.with_name(folder.name + ".part")
    weights = _Weights(model.model, getattr(torch, settings.dtype))
    files = _files(weights, settings.shard_bytes)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    plan = {"files": files, "source": settings.source, "dtype": settings.dtype, "origin": settings.origin}
    sums = _begin(part, plan, group, output)
    missing = [file for file in files if file not in sums]
    for start in range(0, len(missing), ranks):
        held, sum_of_mine = dict[str, Tensor](), dict[str, str]()
        for owner, file in enumerate(missing[start : start + ranks]):
            for name in files[file]:
                tensor = weights.whole(name)
                if owner == rank:
                    held |= as_in_checkpoint(model.model, name, tensor.cpu())
        if held:
            with output.writing(part / missing[start + rank]) as mine:
                _write(held, mine)
                sum_of_mine = sums_of([mine])
        written: list[Sums] = [{}] * ranks
        dist.all_gather_object(written, sum_of_mine, group)
        for own in written:
            sums |= own
        if rank == 0:
            output.call(write_sums, part, sums)
    if rank == 0:
        if len(files) > 1:
            output.call(_write_index, part, [*files], sum(size for _, size in weights.sizes()))
        with output.writing(part) as mine:
            mine.mkdir(exist_ok=True)
            _write_companions(model.model, settings, mine)
        output.call(_end, part, folder, sums, settings.card)
    dist.barrier(group)


@torch.no_grad()
def export_adapter(model: SmoothedCausalLM, source: str, folder: Path, output: Folder = HERE) -> None:
    """Write the adapters alone, in float32, as a directory that peft and vLLM load; every rank calls it, rank 0 writes.

    source: as in Export; the directory names it as the model that the adapters belong to.
    """
    reshard(model)
    writes = dist.get_rank() == 0
    tensors: dict[str, Tensor] = {}
    for name, layer in adapted_layers(model.model):
        for part in ("lora_A", "lora_B"):
            tensor = _whole(getattr(layer, part)[ADAPTER].weight)
            if writes:
                tensors[f"base_model.model.{name}.{part}.weight"] = tensor.cpu().contiguous()
    if writes:
        output.call(_empty, folder)
        with output.writing(folder) as mine:
            mine.mkdir(exist_ok=True)
            _write(tensors, mine / ADAPTER_WEIGHTS)
            # Last, and without it a folder is not an adapter.
            write_adapter_settings(model.model, source, mine)
            _add_sums(mine, {})


class _Weights:
    """Every parameter and saved buffer by its name without adapters, which are merged; a tied weight comes once."""

    def __init__(self, causal_lm: nn.Module, dtype: torch.dtype) -> None:
        repeated = repeated_parameters(causal_lm)
        layers = dict(adapted_layers(causal_lm))
        self._dtype, self._is_float32 = dtype, float32_names(causal_lm)
        self._values: dict[str, Tensor] = {}
        self._layers: dict[str, Any] = {}
        for name, value in causal_lm.state_dict().items():
            if name in repeated or f".{ADAPTER}." in name:
                continue
            exported = name.replace(".base_layer.", ".")
            self._values[exported] = value
            if (layer := layers.get(name.removesuffix(".base_layer.weight"))) is not None and name != exported:
                self._layers[exported] = layer

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield names with the bytes of their whole tensors in the exported dtype."""
        for name, value in self._values.items():
            yield name, value.numel() * self._dtype_of(name).itemsize

    def _dtype_of(self, name: str) -> torch.dtype:
        value = self._values[name]
        if not value.is_floating_point():
            return value.dtype
        return torch.float32 if self._is_float32(name) else self._dtype

    @torch.no_grad()
    def whole(self, name: str) -> Tensor:
        """Gather one tensor. Every rank calls it."""
        value, dtype = self._values[name], self._dtype_of(name)
        if name not in self._layers:
            return _whole(value.to(dtype))
        layer = self._layers[name]
        a, b = (_whole(linear[ADAPTER].weight) for linear in (layer.lora_A, layer.lora_B))
        # In float32: an adapter's changes are smaller than what bfloat16 can add to a weight.
        return (_whole(value) + delta(layer, a, b)).to(dtype)


def repeated_parameters(model: nn.Module) -> set[str]:
    """Name the parameters that are another's under a second name, such as a head tied to the embedding."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}


def _whole(value: Tensor) -> Tensor:
    if not isinstance(value, DTensor):
        return value.detach()
    # What is kept in host memory travels between GPUs all the same.
    return value.detach().to(value.device_mesh.device_type).full_tensor()


def _files(weights: _Weights, shard_bytes: int) -> dict[str, list[str]]:
    """Spread the weights over files, in order; the same on every rank."""
    groups, size = list[list[str]](), 0
    for name, nbytes in weights.sizes():
        if not groups or size + nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, start=1)}


def _begin(part: Path, plan: dict[str, Any], group: dist.ProcessGroup | None, output: Folder) -> dict[str, str]:
    """Prepare the folder; return the files that an interrupted export of the same weights has finished, on every rank."""
    found = [output.call(_prepare, part, plan) if dist.get_rank() == 0 else dict[str, str]()]
    dist.broadcast_object_list(found, src=0, group=group)
    return found[0]


def _prepare(part: Path, plan: dict[str, Any]) -> dict[str, str]:
    if plan["origin"] is not None and _interrupted(part) == plan:
        return read_sums(part)
    _empty(part)
    write_json(part / PLAN_FILE, plan)
    return {}


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _end(part: Path, folder: Path, sums: Sums, card: str) -> None:
    (part / PLAN_FILE).unlink()
    _add_sums(part, sums)
    (part / CARD).write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def _interrupted(part: Path) -> Any:
    """Read the plan of an interrupted export; None without one, or when what it has written is damaged."""
    try:
        return None if damage_in(part) else read_json(part / PLAN_FILE)
    except UserError:
        return None


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    with replacing(file) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})


def _add_sums(folder: Path, known: Sums) -> None:
    """List the checksums of all files; known: those of files that were hashed when they were written."""
    others = [file for file in folder.iterdir() if file.is_file() and file.name not in (*known, SUMS_FILE)]
    write_sums(folder, {**sums_of(others), **known})


def _write_index(folder: Path, files: Iterable[str], total_size: int) -> None:
    """List each tensor's file, by the names in the files themselves."""
    from safetensors import safe_open

    homes = dict[str, str]()
    for file in files:
        with safe_open(folder / file, framework="pt") as opened:
            homes |= dict.fromkeys(opened.keys(), file)
    write_json(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(homes.items()))})


def _write_companions(causal_lm: nn.Module, settings: Export, folder: Path) -> None:
    from transformers import AutoTokenizer

    config = deepcopy(causal_lm.config)
    config.dtype = getattr(torch, settings.dtype)
    config.save_pretrained(folder)
    # Copied, as transformers refuses to save the settings of some well-known models.
    if generation := optional_file(settings.source, GENERATION):
        shutil.copy(generation, folder / GENERATION)
    else:
        causal_lm.generation_config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(settings.source, trust_remote_code=settings.trust_remote_code)
    tokenizer.save_pretrained(folder)
    for name in PROCESSORS:
        if processor := optional_file(settings.source, name):
            shutil.copy(processor, folder / name)
    # A model with code of its own names these files in its config.
    for code in Path(settings.source).glob("*.py"):
        shutil.copy(code, folder)


def model_card(
    base_model: str, config: TrainConfig, progress: Progress, lineage: Mapping[str, str], metrics: Mapping[str, float]
) -> str:
    """Write the model card in Markdown with the YAML header that model hubs read.

    lineage: names and digests of the model's inputs. metrics: of the exported step; nats per token, unsmoothed.
    """
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["uncertainty-aware-learning", "ual_ray"]}
    if known := hub_name(base_model):  # a hub refuses a card with another base model than one of its own
        header["base_model"] = known
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        f"# {base_model}, fine-tuned by Uncertainty-Aware Learning\n",
        f"Trained with ual_ray {__version__}: label smoothing per sample, set by its uncertainty ([paper]({PAPER})).",
        f"These are the weights after step {progress.step}: {progress.samples:,} samples, {progress.tokens:,} tokens seen.\n",
        *_table("Lineage", lineage),
        *_table("Metrics", {name: f"{value:.4g}" for name, value in sorted(metrics.items())}),
        *_table("Settings", affecting(config, "card")),
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    return [f"## {title}\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
