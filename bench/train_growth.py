"""Does a training step keep its pace as sequences grow? The same number of tokens per step, in longer and longer rows.

    python bench/train_growth.py [--lengths 128,256,512,1024,2048 --tokens 4096 --dtype bfloat16]

Every length in a process of its own, without and with activation checkpointing; rows are random tokens, all trained on.
How the data side grows with the number of rows is in train_data_growth.py.
"""

from __future__ import annotations

import argparse

from common import report
from training import WARM_UP, Work, random_samples, run_ranks
from transformers import AutoConfig

from ual_ray.config import TrainConfig
from ual_ray.models.resolve import resolve_model


def main() -> None:
    """Measure every length, and report the pace and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="128,256,512,1024,2048")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", default="0,1", help="0 = without, 1 = with activation checkpointing")
    options = parser.parse_args()
    vocabulary = AutoConfig.from_pretrained(resolve_model(options.model)).vocab_size
    lengths = [int(length) for length in options.lengths.split(",")]
    rows, ratios = [], {}
    for checkpointing in map(int, options.checkpointing.split(",")):
        found = []
        for length in lengths:
            count = max(1, options.tokens // length)
            config = TrainConfig(
                num_workers=1,
                dtype=options.dtype,
                max_length=length,
                global_batch_size=count,
                micro_batch_size=count,
                uncertainty_bins=0,
                activation_checkpointing=bool(checkpointing),
            )
            samples = random_samples(count * (WARM_UP + options.steps), length, vocabulary)
            (row,) = run_ranks(Work(options.model, samples, config, options.threads, options.steps))
            found.append(row)
            titles = {"length": length, "rows": count, "activation checkpointing": bool(checkpointing)}
            rows.append({**titles, "s/step": row["seconds"] / options.steps} | {k: row[k] for k in ("tokens/s", "peak (MB)")})
            print(rows[-1], flush=True)
        name = f"length {lengths[-1]} over {lengths[0]}{', activation checkpointing' if checkpointing else ''}"
        ratios[f"time per token, {name}"] = (found[0]["tokens/s"] / found[-1]["tokens/s"], "-")
        ratios[f"peak memory, {name}"] = (found[-1]["peak (MB)"] / found[0]["peak (MB)"], "-")
    report(f"train_growth_{options.dtype}", rows, ratios, **vars(options))


if __name__ == "__main__":
    main()
