"""The estimate of memory against the tensors of a rank that shares the model with seven others, over the steps of training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_llama import NO_WEIGHTS

SCRIPT = Path(__file__).with_name("counted_rank.py")
# The embedding and the head, which are apart, are larger than a layer.
QWEN2 = {
    **{"model_type": "qwen2", "vocab_size": 20000, "hidden_size": 256, "intermediate_size": 1024},
    **{"num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "max_position_embeddings": 4096,
}
BATCH = {"max_length": 512, "micro_batch_size": 2, "global_batch_size": 16}


CASES: dict[str, dict[str, Any]] = {
    "kept": {"activation_checkpointing": False},
    "selective, two micro-batches": {"activation_checkpointing": "selective", "global_batch_size": 32},
    "checkpointed, two micro-batches": {"global_batch_size": 32},
    "held, two micro-batches": {"global_batch_size": 32, "reshard_after_forward": False},
    "with a frozen copy, two micro-batches": {"global_batch_size": 32, "prior": "base"},
    "with a frozen copy, held, two micro-batches": {"global_batch_size": 32, "prior": "base", "reshard_after_forward": False},
    "towards the model without adapters, one chunk": {"max_length": 256, "prior": "base", "lora": {"rank": 2}},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Measure all cases: most of the time of one are the imports."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(QWEN2))
    (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    settings = [json.dumps({**BATCH, "activation_checkpointing": True, **own}) for own in CASES.values()]
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder), *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_the_estimate_is_what_the_tensors_of_a_rank_take(case: str, found: dict[str, dict[str, Any]]) -> None:
    assert 0.95 < found[case]["estimated"] / found[case]["counted"] < 1.1, found[case]
