"""What survives a crash, and what leaves training: sharded checkpoints (DCP) and a Hugging Face directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful


class TrainingState(Stateful):
    """Model, optimizer and the number of finished steps; the data cursor and the schedule follow from the steps."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Hold the objects that are saved from and loaded into."""
        self._model = model
        self._optimizer = optimizer
        self.finished_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return sharded state by parameter name."""
        model, optimizer = get_state_dict(self._model, self._optimizer)
        return {"model": model, "optimizer": optimizer, "finished_steps": torch.tensor(self.finished_steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put sharded state back, at any world size."""
        set_state_dict(
            self._model,
            self._optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self.finished_steps = int(state_dict["finished_steps"])


def save(state: TrainingState, folder: Path) -> None:
    """Write this rank's shards below `folder`; every rank calls it."""
    dcp.save({"training": state}, checkpoint_id=str(folder))


def load(state: TrainingState, folder: Path) -> None:
    """Load shards written at any world size; every rank calls it."""
    dcp.load({"training": state}, checkpoint_id=str(folder))


def repeated_parameters(model: nn.Module) -> set[str]:
    """Name the parameters that are another's under a second name, such as a head tied to the embedding."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}


def export(model: nn.Module, tokenizer_source: str, folder: Path, trust_remote_code: bool = False) -> None:
    """Write a Hugging Face directory: safetensors, config, generation config, tokenizer with its chat template.

    Every rank calls it; rank 0 writes, to a neighbour that takes the folder's name when it is whole.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        from transformers import AutoTokenizer

        for name in repeated_parameters(model):
            weights.pop(name, None)
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        unsharded: Any = model
        unsharded.save_pretrained(part, state_dict=weights)
        AutoTokenizer.from_pretrained(tokenizer_source, trust_remote_code=trust_remote_code).save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    dist.barrier()
