"""Models and rows for the probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_jobs import COMMON, FAMILIES, Families

from ual_ray import columns as col
from ual_ray.parquet import write_rows


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Callable[[str], Any]) -> Families:
    """Get the directory of a family's tiny model whose output layer is `scale` times as large."""
    root = tmp_path_factory.mktemp("families")

    def folder_of(family: str, scale: float = 1.0) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = root / f"{family}-{scale}"
        if not folder.exists():
            torch.manual_seed(0)
            settings = {**COMMON, **FAMILIES[family]}
            config = AutoConfig.for_model(settings.pop("model_type", family), **settings)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            if scale != 1:
                assert not config.tie_word_embeddings
                model.get_output_embeddings().weight.data *= scale
            model.save_pretrained(folder)
            chat_tokenizer("chatml").save_pretrained(folder)
        return folder

    return folder_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of canonical rows: a third of them for each split."""
    folder = tmp_path_factory.mktemp("rows")
    colours = ["Blue light.", "Green is a colour too.", "Sunlight is a mix of colours, and blue is one.", "Blue."]
    found = []
    for number in range(36):
        messages = [
            {"role": "user", "content": f"Name colour {number}."},
            {"role": "assistant", "content": f"{number}: {colours[number % 4]}"},
        ]
        split = ("train", "validation", "test")[number % 3]
        found.append({"id": col.content_id(messages), "source": f"s{number % 2}", "split": split, "messages": messages})
    write_rows(found[:20], col.ROWS, folder / "a.parquet")
    write_rows(found[20:], col.ROWS, folder / "b.parquet")
    return folder
