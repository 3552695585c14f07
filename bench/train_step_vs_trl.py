"""A whole training step beside the trainers that a user would take instead: same model, rows, packing, dtype and batch.

    python bench/train_step_vs_trl.py --data ../shared/data/dolly_3k.json [--dtype bfloat16 --rows 150 --steps 2]

One process with all threads each. TRL's SFTTrainer has its memory-saving loss (a fused LM head, its default), and is run with
and without gradient checkpointing; transformers' own Trainer makes full logits. tokens/s counts tokens without padding,
with collating and the optimizer in the time; memory is the high-water mark of the process, from its start.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from typing import Any

import torch
from alone import peak_bytes, run_alone
from common import report
from training import LEARNING_RATE, WARM_UP, Work, add_options, make_config, product_rate, real_samples, run_ranks, settings_of

from ual_ray.models.resolve import resolve_model

TRL, TRL_CHECKPOINTING, TRANSFORMERS = "TRL", "TRL, gradient checkpointing", "transformers Trainer"
TRL_SMOOTHED = "TRL with our loss, UAL"
OURS, OURS_CHECKPOINTING = "ours, UAL", "ours, UAL, activation checkpointing"
OURS_SELECTIVE = "ours, UAL, activation checkpointing but for products"
OURS_COMPILED = "ours, UAL, compiled layers"
PEERS = (TRL, TRL_CHECKPOINTING, TRANSFORMERS, TRL_SMOOTHED)


def sft_arguments(name: str, work: Work, folder: str) -> Any:
    """Make the arguments of TRL's trainer that fit the work."""
    from trl import SFTConfig

    config = work.config
    return SFTConfig(
        folder,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.global_batch_size // config.micro_batch_size,
        max_steps=WARM_UP + work.steps,
        max_length=config.max_length,
        packing=config.packing,
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=name == TRL_CHECKPOINTING,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )


def peer(name: str, work: Work) -> dict[str, Any]:
    """Train with another trainer; return its pace and its memory."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback
    from trl import SFTTrainer

    from ual_ray.integrations.trl import SmoothedSFTTrainer

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM_UP:
                self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended = time.perf_counter()

    torch.set_num_threads(work.threads)
    path, config = resolve_model(work.model), work.config
    rows = Dataset.from_list(
        [{"input_ids": s.input_ids.tolist(), "labels": s.labels.tolist(), "alpha": s.alpha} for s in work.samples]
    )
    accumulation = config.global_batch_size // config.micro_batch_size
    clock, counts = Clock(), []
    with tempfile.TemporaryDirectory() as folder:
        arguments = sft_arguments(name, work, folder)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        kind = SmoothedSFTTrainer if name == TRL_SMOOTHED else SFTTrainer
        tokenizer = AutoTokenizer.from_pretrained(path)
        trainer: Any = kind(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[clock])
        if name == TRANSFORMERS:
            # TRL has put its own forward onto the model: only its rows are taken over.
            collator, packed = trainer.data_collator, trainer.train_dataset
            del trainer, model
            gc.collect()
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            arguments.remove_unused_columns = False
            trainer = Trainer(model, arguments, collator, packed, callbacks=[clock], processing_class=tokenizer)
        inner = trainer.data_collator

        def counting(examples: list[dict[str, Any]]) -> dict[str, Any]:
            counts.append(sum(len(example["input_ids"]) for example in examples))
            return inner(examples)

        trainer.data_collator = counting
        trainer.train()
    # What is fetched ahead of the last step is not part of it.
    tokens = sum(counts[WARM_UP * accumulation : (WARM_UP + work.steps) * accumulation])
    seconds = clock.ended - clock.started
    losses = [entry.get("nll", entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens/s": tokens / seconds,
        "peak (MB)": peak_bytes() / 2**20,
        "nll": losses[-1],
    }


def main() -> None:
    """Run all contestants one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--no-packing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also ours with train.compile")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", default=",".join(map(str, range(len(PEERS)))), help=f"numbers of {PEERS}")
    options = parser.parse_args()
    config = make_config(options, num_workers=1, micro_batch_size=options.micro_batch, packing=not options.no_packing)
    samples = real_samples(options.data, options.rows, options.model, options.max_length)
    work = Work(options.model, samples, config, options.threads, options.steps)
    torch.set_num_threads(options.threads)
    rate = product_rate(getattr(torch, options.dtype))
    found = {PEERS[int(number)]: run_alone(peer, PEERS[int(number)], work) for number in filter(None, options.peers.split(","))}
    (found[OURS],) = run_ranks(work, arms=True)
    (found[OURS_CHECKPOINTING],) = run_ranks(work.with_config(activation_checkpointing=True))
    (found[OURS_SELECTIVE],) = run_ranks(work.with_config(activation_checkpointing="selective"))
    if options.compile:
        (found[OURS_COMPILED],) = run_ranks(work.with_config(compile=True))
    mine = found[OURS]
    useful = 6 * mine["parameters"] * mine["tokens/s"]
    ratios = {}
    kinds = (OURS, OURS_SELECTIVE, OURS_CHECKPOINTING)
    for own, name in ((own, name) for name in PEERS if name in found for own in kinds):
        # Beside TRL at its leanest, we are at ours; beside TRL that computes no product twice, we compute none twice.
        aimed = (own, name) in ((OURS_CHECKPOINTING, TRL_CHECKPOINTING), (OURS_SELECTIVE, TRL))
        fast, lean = (found[own][column] / found[name][column] for column in ("tokens/s", "peak (MB)"))
        ratios[f"tokens/s, {own}, over {name}"] = (fast, ">= 2" if aimed else "-")
        ratios[f"peak memory, {own}, over {name}"] = (lean, "<= 0.5" if aimed else "-")
    if options.compile:
        ratios["tokens/s, compiled layers over not"] = (found[OURS_COMPILED]["tokens/s"] / mine["tokens/s"], "-")
    ratios[f"6 x parameters x tokens/s over {options.dtype} products of {rate / 1e9:.0f} GFLOP/s"] = (useful / rate, ">= 0.35")
    ratios["time of the UAL arm over the SFT arm, same batches in turn"] = (mine["time over SFT"], "<= 1.02")
    columns = ("tokens", "seconds", "tokens/s", "peak (MB)", "nll")
    rows = [{"": name, **{column: row[column] for column in columns}} for name, row in found.items()]
    extra = {"padding": mine["padding"], "target_share": mine["target share"], "parameters": mine["parameters"]}
    report(f"train_step_vs_trl_{options.dtype}{'_compiled' * options.compile}", rows, ratios, **settings_of(options), **extra)


if __name__ == "__main__":
    main()
