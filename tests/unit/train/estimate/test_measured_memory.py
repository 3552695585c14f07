"""The estimate of memory against what an H100 measured (bench/gpu_check.py), a case for each way that a micro-batch is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_llama import NO_WEIGHTS

from ual_ray.config import Config, TrainConfig
from ual_ray.train.estimate.dry_run import MicroBatch, Model
from ual_ray.train.estimate.state import PROCESS_BYTES

MEASURED = Path(__file__).parents[4] / "bench" / "results" / "gpu_check_NVIDIA_H100_80GB_HBM3.json"
# Of bench/gpu_training.py: Llama 3.2 1B, with four micro-batches per step.
LLAMA = {
    **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "dtype": "bfloat16"},
    **{"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "max_position_embeddings": 8192,
}
PASSES = 4
CASES = json.loads(MEASURED.read_text())["training speed"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    return str(folder)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_the_estimate_is_what_a_gpu_measured(case: str, llama: str) -> None:
    rows, length = CASES[case]["micro-batch"]
    train = TrainConfig(
        num_workers=1,
        gpus_per_worker=1,
        dtype="bfloat16",
        packing="packed" in case,
        activation_checkpointing="checkpointed" in case,
        # The frozen weights were float32 then.
        lora={"rank": 16, "base_dtype": "float32"} if "LoRA" in case else {},
    )
    memory = Model(Config(model=llama, train=train)).memory(train, MicroBatch(rows, length, PASSES))
    # Of padded rows, the first micro-batch of a step is the largest: the later ones, beside gradients, are smaller than that.
    most = 1.05 if train.packing else 1.15
    assert 0.95 < (memory.peak - PROCESS_BYTES["cuda"]) / 1e9 / CASES[case]["peak GB"] < most
