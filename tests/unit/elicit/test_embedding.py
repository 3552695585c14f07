"""Embeddings: the mean of what is not padding, of length one, compared by their cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ual_ray.elicit import grouping as module
from ual_ray.elicit.grouping import LONGEST_TEXT, EmbeddingGrouping, group

VECTORS = {"east": (1.0, 0.0), "north": (0.0, 1.0), "west": (-1.0, 0.0), "far": (3.0, 4.0)}
DIRT = (100.0, -77.0)  # what an encoder may have where there is padding


class WordTokenizer:
    """One token per word; pads to the longest with token 0."""

    words = ["", *VECTORS]

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def __call__(self, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        self.options = options
        assert all(texts), "an empty text has no token"
        ids = [[self.words.index(word) for word in text.split()] for text in texts]
        longest = max(1, *map(len, ids))
        rows = [row + [0] * (longest - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> WordTokenizer:
    """Put an encoder in place that knows four words."""
    tokenizer = WordTokenizer()
    table = torch.tensor([DIRT, *VECTORS.values()])

    def encoder(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=table[input_ids])

    monkeypatch.setattr(module, "_encoder", lambda name: (tokenizer, encoder))
    return tokenizer


def test_an_embedding_is_the_mean_over_the_words_of_length_one(tokenizer: WordTokenizer) -> None:
    keys = EmbeddingGrouping("e", 0.9).keys(["east", "east north", "far", "east north far far"])
    half = math.sqrt(0.5)
    expected = [(1, 0), (half, half), (0.6, 0.8), (7 / math.hypot(7, 9), 9 / math.hypot(7, 9))]
    np.testing.assert_allclose(keys, expected, rtol=1e-6)
    assert all(key.dtype == np.float32 for key in keys)
    assert tokenizer.options["truncation"] is True and tokenizer.options["max_length"] == LONGEST_TEXT


def test_padding_does_not_matter(tokenizer: WordTokenizer) -> None:
    grouping = EmbeddingGrouping("e", 0.9)
    (alone,) = grouping.keys(["north"])
    beside, _ = grouping.keys(["north", "east east east east"])
    np.testing.assert_array_equal(alone, beside)


def test_similar_enough_is_the_same(tokenizer: WordTokenizer) -> None:
    east, north, west, between = EmbeddingGrouping("e", 0.7).keys(["east", "north", "west", "east north"])
    assert EmbeddingGrouping("e", 0.7).same(east, between)  # the cosine is 0.7071
    assert not EmbeddingGrouping("e", 0.71).same(east, between)
    for first, second, expected in ((east, north, False), (east, west, False), (east, east, True)):
        assert EmbeddingGrouping("e", 0.7).same(first, second) is EmbeddingGrouping("e", 0.7).same(second, first) is expected


def test_texts_fall_into_groups(tokenizer: WordTokenizer) -> None:
    grouping = EmbeddingGrouping("e", 0.9)
    assert group(grouping.keys(["east", "north", "east east", "west", "north"]), grouping.same) == [0, 1, 0, 2, 1]


def test_an_empty_text_says_nothing(tokenizer: WordTokenizer) -> None:
    grouping = EmbeddingGrouping("e", 0.5)
    empty, east = grouping.keys(["", "east"])
    assert not np.isnan(empty).any()
    assert not grouping.same(empty, east)


def test_a_real_encoder_is_loaded_once(
    tmp_path: Path, chat_tokenizer: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel, BertConfig, BertModel

    tokenizer = chat_tokenizer("chatml")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loads: list[Sequence[Any]] = []
    load = AutoModel.from_pretrained
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *given, **options: loads.append(given) or load(*given, **options))
    monkeypatch.setattr(module, "resolve_model", lambda name: name)
    module._encoder.cache_clear()
    grouping = EmbeddingGrouping(str(tmp_path), 0.999)
    first, long, again, empty = grouping.keys(["Blue.", "Why is the sky blue? " * 300, "Blue.", ""])
    grouping.keys(["Blue."])
    module._encoder.cache_clear()
    assert len(loads) == 1
    assert first.shape == (16,)
    assert [float(np.linalg.norm(key)) for key in (first, long, empty)] == pytest.approx([1, 1, 1], abs=1e-5)
    assert grouping.same(first, again) and not grouping.same(first, long)
