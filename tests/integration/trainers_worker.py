"""Run by ranks.py in test_trainers_on_ranks.py: transformers' Trainer and TRL's under DistributedDataParallel, on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig

from ual_ray.integrations import SmoothedCollator, smoothed, smoothed_loss
from ual_ray.integrations.trl import SmoothedSFTTrainer


class Noting:
    """A collator that notes down the rows of every batch, in order."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.batches: list[list[dict[str, Any]]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        self.batches.append(rows)
        return self.collator(rows)


def main(task_file: str) -> None:
    """Train as each task says; leave what every rank saw, and rank 0's weights and log."""
    folder = Path(task_file).parent
    given = torch.load(task_file, weights_only=True)
    for name, task in given["tasks"].items():
        model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(given["model"])
        tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
        kind = SFTConfig if task["trl"] else TrainingArguments
        arguments: Any = kind(str(folder / name), **given["arguments"] | task["arguments"])
        data = {"train_dataset": Dataset.from_list(given["rows"]), "processing_class": tokenizer}
        trainer: Any
        if task["trl"]:
            trainer = SmoothedSFTTrainer(model, arguments, **data)
        else:
            collator = SmoothedCollator(DataCollatorForSeq2Seq(tokenizer))
            loss = smoothed_loss if task["function"] else None
            trainer = Trainer(smoothed(model), arguments, collator, compute_loss_func=loss, **data)
        trainer.data_collator = noting = Noting(trainer.data_collator)
        trainer.train()
        batches: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(batches, noting.batches)
        if dist.get_rank() == 0:
            state = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
            torch.save({"batches": batches, "weights": state, "log": trainer.state.log_history}, folder / f"{name}.pt")
    # The group is not destroyed: DDP's reducer would end gloo's thread with Python's lock in hand, and that thread may wait for
    # the lock to let go of its last tensors.
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
