"""What the tests of the dry run share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_llama import INNER, LAYERS, NO_WEIGHTS, VOCABULARY, WIDTH


@pytest.fixture
def model(tmp_path: Path, chat_tokenizer: Any) -> str:
    """Write the directory of a small Llama: its config.json, a tokenizer, and a file without weights."""
    config = {
        **{"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False},
        "max_position_embeddings": 256,
    }
    folder = tmp_path / "model"
    chat_tokenizer("chatml").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    return str(folder)
