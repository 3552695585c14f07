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


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": False},
        {"activation_checkpointing": True, "global_batch_size": 32},
        {"activation_checkpointing": True, "global_batch_size": 32, "reshard_after_forward": False},
        {"activation_checkpointing": True, "global_batch_size": 32, "prior": "base"},
        {"activation_checkpointing": True, "global_batch_size": 32, "prior": "base", "reshard_after_forward": False},
        {"activation_checkpointing": True, "max_length": 256, "prior": "base", "lora": {"rank": 2}},
    ],
    ids=[
        *("kept", "checkpointed, two micro-batches", "held, two micro-batches"),
        *("with a frozen copy, two micro-batches", "with a frozen copy, held, two micro-batches"),
        "towards the model without adapters, one chunk",
    ],
)
@pytest.mark.slow
def test_the_estimate_is_what_the_tensors_of_a_rank_take(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2))
    (tmp_path / "model.safetensors").write_bytes(NO_WEIGHTS)
    command = [sys.executable, str(SCRIPT), str(tmp_path), json.dumps({**BATCH, **settings})]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.95 < found["estimated"] / found["counted"] < 1.1, found
