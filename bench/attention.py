"""Packs of short samples: attention sample by sample against transformers' sdpa with a mask over the whole pack.

    python bench/attention.py [--lengths 512,1024,2048 --sample 128 --tokens 2048 --threads 2]

Forward and backward of a transformers Llama with few layers, whose widths are those of the demo's model, each contestant in a
process of its own. The losses of both are compared: they differ by rounding.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from alone import best_seconds, run_alone
from common import report

from ual_ray.config import TrainConfig
from ual_ray.train.attention import use_varlen
from ual_ray.train.batches import Sample, collate
from ual_ray.train.model import SmoothedCausalLM

REPEATS = 3
LAYERS = 3
CPU = torch.device("cpu")


def contest(attention: str, dtype: str, length: int, sample: int, tokens: int, threads: int) -> dict[str, Any]:
    """Time forward and backward over packs of `length` tokens of samples of `sample` tokens, `tokens` in all."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    causal_lm = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=LAYERS, max_position_embeddings=length, **sizes))
    varlen = use_varlen(causal_lm, TrainConfig(packing=True, attention=attention), CPU)  # type: ignore[arg-type]
    model = SmoothedCausalLM(causal_lm.to(getattr(torch, dtype)), varlen=varlen)
    generator = np.random.default_rng(0)
    samples = [Sample("", ids, ids, 0.1) for ids in generator.integers(4, 500, (tokens // sample, sample)).astype(np.int32)]
    in_pack = length // sample
    batch = collate([samples[at : at + in_pack] for at in range(0, len(samples), in_pack)], packed=True)

    def run() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(batch).loss / tokens
        loss.backward()
        return loss.item()

    loss = run()
    seconds = best_seconds(run, REPEATS)
    return {"seconds": seconds, "tokens/s": tokens / seconds, "loss per token": loss}


def main() -> None:
    """Run all contestants one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="512,1024,2048", help="tokens per pack")
    parser.add_argument("--sample", type=int, default=128, help="tokens per sample")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    sizes = (options.sample, options.tokens, options.threads)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, tuple[float, str]] = {}
    for dtype in options.dtypes.split(","):
        for length in map(int, options.lengths.split(",")):
            found = {name: run_alone(contest, name, dtype, length, *sizes) for name in ("sdpa", "varlen")}
            rows += [{"dtype": dtype, "pack": length, "attention": name, **row} for name, row in found.items()]
            what = f"{dtype}, packs of {length}: tokens/s over sdpa with a mask"
            ratios[what] = found["varlen"]["tokens/s"] / found["sdpa"]["tokens/s"], ">= 1.0"
    report("attention", rows, ratios, **vars(options))


if __name__ == "__main__":
    main()
