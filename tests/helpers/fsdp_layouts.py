"""How a step of training is laid out over ranks and micro-batches, by name: the layouts that are compared with plain torch."""

from __future__ import annotations

from typing import Any

SINGLE = [[row] for row in range(8)]
PACKS = [[0, 5], [1, 2, 3], [4], [6, 7]]
LORA = {"lora": {"rank": 4, "alpha": 8}}
# Graphs are made and differentiated, and run as they are: the C++ compiler takes seconds for each.
WITHOUT_COMPILER = {"backend": "aot_eager"}


def layout(name: str, world: int, micro_batch: int, sequences: list[list[int]], **train: Any) -> dict[str, Any]:
    rounds = -(-len(sequences) // (world * micro_batch))
    settings = {"dtype": "float32", "uncertainty_bins": 2, **train}
    return {
        "name": name,
        "world": world,
        "micro_batch": micro_batch,
        "sequences": sequences,
        "rounds": rounds,
        "train": settings,
    }


LAYOUTS = [
    layout("1x8", 1, 8, SINGLE),
    layout("8x1", 1, 1, SINGLE),
    layout("2x4", 2, 4, SINGLE),
    layout("2x1, the last of rank 1 empty", 2, 5, SINGLE) | {"rounds": 2},
    layout("packed", 1, 4, PACKS, packing=True),
    layout("packed on 2", 2, 1, PACKS, packing=True),
    layout("checkpointed", 1, 8, SINGLE, activation_checkpointing=True),
    layout("checkpointed on 2, packed", 2, 1, PACKS, packing=True, activation_checkpointing=True),
    layout("selective", 1, 8, SINGLE, activation_checkpointing="selective"),
    layout("selective on 2, packed", 2, 1, PACKS, packing=True, activation_checkpointing="selective"),
    layout("no resharding", 2, 2, SINGLE, reshard_after_forward=False),
    layout("replicas", 2, 2, SINGLE, replicas=2),
    layout("replicas, one micro-batch", 2, 4, SINGLE, replicas=2),
    layout("compiled on 2", 2, 2, SINGLE, compile=True) | WITHOUT_COMPILER,
    layout("compiled on 2, checkpointed, packed", 2, 1, PACKS, packing=True, activation_checkpointing=True, compile=True),
    layout("offloaded", 2, 2, SINGLE, cpu_offload=True),
    layout("bf16", 2, 2, SINGLE, dtype="bfloat16"),
    layout("adapters", 1, 8, SINGLE, **LORA),
    layout("adapters on 2", 2, 2, SINGLE, **LORA),
    layout("adapters on 2, checkpointed, packed", 2, 1, PACKS, packing=True, activation_checkpointing=True, **LORA),
    layout("adapters on 2, selective", 2, 2, SINGLE, activation_checkpointing="selective", **LORA),
    layout("adapters on 2, compiled, packed", 2, 1, PACKS, packing=True, compile=True, **LORA) | WITHOUT_COMPILER,
    layout("adapters, replicas", 2, 2, SINGLE, replicas=2, **LORA),
    layout("towards base", 1, 8, SINGLE, prior="base", **LORA),
    layout("towards base on 2", 2, 2, SINGLE, prior="base", **LORA),
    layout(
        "towards base on 2, checkpointed, packed",
        2,
        1,
        PACKS,
        prior="base",
        packing=True,
        activation_checkpointing=True,
        **LORA,
    ),
    layout("towards a copy", 1, 8, SINGLE, prior="base"),
    layout("towards a copy on 2", 2, 2, SINGLE, prior="base"),
    layout("towards a copy on 2, held, packed", 2, 1, PACKS, prior="base", packing=True, reshard_after_forward=False),
    layout("towards a copy, replicas", 2, 2, SINGLE, prior="base", replicas=2, activation_checkpointing=True),
    layout("low base", 1, 8, SINGLE, lora=LORA["lora"] | {"base_dtype": "bfloat16"}),
    layout("low base on 2", 2, 2, SINGLE, lora=LORA["lora"] | {"base_dtype": "bfloat16"}),
]
LOW = ["low base", "low base on 2"]
FULL = [item["name"] for item in LAYOUTS if not {"lora", "prior"} & set(item["train"]) and item["name"] != "bf16"]
TOWARDS_BASE = [item["name"] for item in LAYOUTS if {"lora", "prior"} <= set(item["train"])]
TOWARDS_COPY = [item["name"] for item in LAYOUTS if "prior" in item["train"] and item["name"] not in TOWARDS_BASE]
ADAPTED = [item["name"] for item in LAYOUTS if "lora" in item["train"] and item["name"] not in [*LOW, *TOWARDS_BASE]]
