"""How pages are read, an empty store of MLflow, and random tiny models of well-known families with a real tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "br", "img"}


class Reader(HTMLParser):
    """Collect tags, attributes and text, and check that every tag that opens is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "


@pytest.fixture(scope="session")
def read_page() -> type[Reader]:
    """Reads a page, when it is called with one."""
    return Reader


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tables of a store of MLflow, which takes seconds, once."""
    from mlflow import MlflowClient

    from ual_ray.config.files import STORE_FILE
    from ual_ray.tracking.tracker import default_uri

    folder = tmp_path_factory.mktemp("store")
    MlflowClient(default_uri(folder)).search_experiments()
    return folder / STORE_FILE


# --- tiny models ---

COMMON = {
    "vocab_size": 620,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama_untied": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 0.5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 4.0},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4},
    # Its router is held in float32 in any precision.
    "ernie4_5_moe": {
        **{"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
        **{"moe_num_shared_experts": 0, "moe_layer_start_index": 0},
    },
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
}
# Not every test takes these. The first has experts next to other layers, and a buffer that is held in float32; the second has
# layers that do not pass on what its attention is called with, and the third makes masks without the positions.
OTHERS: dict[str, dict[str, Any]] = {
    "glm4_moe": {"head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "nemotron": {},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
}
# These pass their position ids on to the attention mask, so that a pack's samples do not see each other.
PACKABLE = [family for family in FAMILIES if family not in ("opt", "bloom")]

Families = Callable[[str], Path]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test every family, or every one that can be packed."""
    for name, values in (("any_family", [*FAMILIES]), ("packable", PACKABLE)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Callable[[str], Any]) -> Families:
    """Get the directory of a family's tiny model, made the first time it is asked for."""
    root = tmp_path_factory.mktemp("families")

    def folder_of(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM

            torch.manual_seed(0)
            settings = {**COMMON, **(FAMILIES | OTHERS)[family]}
            config = AutoConfig.for_model(settings.pop("model_type", family), **settings)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            saved = model.state_dict()
            for value in (*model.parameters(), *(saved[name] for name, _ in model.named_buffers() if name in saved)):
                # Norms and biases start as ones and zeros, which would hide a mistake.
                value.data += 0.1 * torch.randn_like(value)
            model.save_pretrained(folder)
            chat_tokenizer("chatml").save_pretrained(folder)
        return folder

    return folder_of
