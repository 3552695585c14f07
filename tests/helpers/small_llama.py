"""A small Llama, rows and settings for the tests of the dry run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.load import load

LAYERS, WIDTH, INNER, VOCABULARY = 4, 32, 64, 1000
# A safetensors file without tensors, for models of which nothing but config.json is read.
NO_WEIGHTS = b"\2" + bytes(7) + b"{}"
SMOOTHED = pa.schema(
    [(col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE), (col.ALPHA, pa.float64())]
)


def write(path: Path, words: list[int]) -> Path:
    chats = [
        [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": "blue " * count}]
        for n, count in enumerate(words)
    ]
    rows = [{col.ID: col.content_id(chat), col.SPLIT: col.TRAIN, col.MESSAGES: chat, col.ALPHA: 0.1} for chat in chats]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, SMOOTHED), path)
    return path


def settings(model: str, *overrides: str) -> Config:
    # A known speed: nothing is measured.
    return load(None, [f"model={model}", "train.peak_tflops=1", "train.dtype=float32", *overrides])
