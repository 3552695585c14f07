"""Group answers of the same meaning: by their final answers, by their words, by their embeddings, or by entailment.

A grouping turns texts into keys once, and compares keys: `group(keys, same)` then gives every text the number of its group.
Embeddings are mean-pooled last hidden states of an encoder, compared by their cosine; a cross-encoder for natural language
inference judges whether each of two answers entails the other.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from ual_ray.benchmarks.answer_key import AnswerKey, answer_of, same_answer
from ual_ray.errors import UserError
from ual_ray.formatting import nfkc
from ual_ray.models.resolve import resolve_model

# The blocks of scripts without spaces between words; Korean has spaces.
UNSPACED = (
    "\u0e01-\u0e4e\u0e81-\u0ecd\u0f40-\u0fbc\u1000-\u109d\u1780-\u17d3"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31f0-\u31ff"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
# Vowel signs and accents, which \w leaves out: without them many words of Hindi or Tamil are one.
MARKS = "".join(chr(code) for code in range(0x300, 0x11800) if unicodedata.category(chr(code)).startswith("M"))
WORD = re.compile(rf"[{UNSPACED}]|(?<!\w)-?\d+(?:[.,]\d+)*(?!\w)|(?:[^\W{UNSPACED}]|[{MARKS}])+")
LONGEST_PAIR = 512  # tokens
LONGEST_TEXT = 512  # tokens


class Grouping(Protocol):
    """Tells texts that mean the same from texts that do not."""

    def keys(self, texts: Sequence[str]) -> list[Any]:
        """Turn each text into what is compared."""

    def same(self, first: Any, second: Any) -> bool:
        """Tell whether two keys mean the same."""


@dataclass(frozen=True)
class AnswerGrouping:
    """Equal final answers; a text without one agrees with nothing, not even with another of its kind."""

    def keys(self, texts: Sequence[str]) -> list[AnswerKey | None]:
        """Extract the final answers."""
        return [answer_of(text) for text in texts]

    def same(self, first: AnswerKey | None, second: AnswerKey | None) -> bool:
        """Compare two final answers."""
        return same_answer(first, second)


@dataclass(frozen=True)
class LexicalGrouping:
    """Word overlap (F1 over words with their counts, i.e. ROUGE-1) of at least `similarity`.

    Scripts that are written without spaces (Han, kana, Thai, Lao, Tibetan, Burmese, Khmer) are compared by their characters.
    """

    similarity: float

    def keys(self, texts: Sequence[str]) -> list[Counter[str]]:
        """Count the words, in one form of each character (full-width and half-width are equal); without any, the characters."""
        plain = [nfkc(text).casefold() for text in texts]
        return [Counter(WORD.findall(text) or "".join(text.split())) for text in plain]

    def same(self, first: Counter[str], second: Counter[str]) -> bool:
        """Compare two word counts."""
        return word_overlap(first, second) >= self.similarity


def word_overlap(first: Counter[str], second: Counter[str]) -> float:
    """F1 of the words that two texts share, in [0, 1]; two empty texts are the same."""
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


def group(keys: Sequence[Any], same: Callable[[Any, Any], bool]) -> list[int]:
    """Number the groups: each key joins the first group whose first member is the same."""
    founders: list[Any] = []
    numbers = []
    for key in keys:
        number = next((index for index, founder in enumerate(founders) if same(founder, key)), len(founders))
        if number == len(founders):
            founders.append(key)
        numbers.append(number)
    return numbers


@dataclass(frozen=True)
class NliGrouping:
    """Bidirectional entailment (Kuhn et al. 2023, arXiv 2302.09664): both orders of two texts are labelled entailment.

    context: what the texts answer. It is put in front of each, as in the paper: "Paris" and "It is Paris" mean the same
    behind their question alone.
    """

    model: str
    context: str = ""

    def keys(self, texts: Sequence[str]) -> list[str]:
        """Put the context in front of each text."""
        return [f"{self.context} {text}".strip() for text in texts]

    def same(self, first: str, second: str) -> bool:
        """Ask for both directions, in one batch; equal texts are the same."""
        if first == second:
            return True
        import torch

        tokenizer, classifier, entailment = _classifier(self.model)
        pairs = [first, second], [second, first]
        batch = tokenizer(*pairs, padding=True, truncation=True, max_length=LONGEST_PAIR, return_tensors="pt")
        with torch.inference_mode():
            labels = classifier(**batch).logits.argmax(-1)
        return bool((labels == entailment).all())


def entailment_label(labels: dict[int, str], model: str) -> int:
    """Return the index of the label named entailment. Raises UserError unless exactly one of several is."""
    found = [index for index, name in labels.items() if name.strip().lower() in ("entailment", "entail", "entails", "entailed")]
    if len(found) != 1 or len(labels) < 2:
        raise UserError(
            "elicit.nli_model has no label named entailment",
            got=f"{model}: labels {list(labels.values())}",
            expected="a cross-encoder trained for natural language inference, with its label names in config.json",
        )
    return int(found[0])


def check_nli_model(name: str) -> None:
    """Raise UserError for a model whose configuration cannot be read, or names no entailment; loads no weights."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_model(name))
    except (OSError, ValueError) as error:
        raise UserError(
            "elicit.nli_model cannot be loaded",
            got=f"{name}: {str(error).splitlines()[0]}",
            fix="check the name, or download the model and give its directory",
        ) from error
    entailment_label(config.id2label, name)


@lru_cache(maxsize=1)
def _classifier(name: str) -> tuple[Any, Any, int]:
    """Load the model once per process; it runs on the CPU, so that the engine keeps its GPU memory."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    classifier, loading = AutoModelForSequenceClassification.from_pretrained(
        path, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            "elicit.nli_model lacks weights of a classifier",
            got=f"{name}: {missing[:3]}",
            fix="name a sequence classifier trained for natural language inference",
        )
    if classifier.config.pad_token_id is None:
        classifier.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, classifier.eval(), entailment_label(classifier.config.id2label, name)


@dataclass(frozen=True)
class EmbeddingGrouping:
    """Texts whose embeddings have a cosine of at least `similarity` mean the same."""

    model: str
    similarity: float

    def keys(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Embed the texts: unit vectors [hidden size], float32."""
        import torch

        tokenizer, encoder = _encoder(self.model)
        batch = tokenizer(
            [text or " " for text in texts], padding=True, truncation=True, max_length=LONGEST_TEXT, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = encoder(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return list(torch.nn.functional.normalize(mean, dim=-1).numpy())

    def same(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Compare two embeddings."""
        return float(first @ second) >= self.similarity


@lru_cache(maxsize=1)
def _encoder(name: str) -> tuple[Any, Any]:
    """Load the encoder once per process; it runs on the CPU, so that the engine keeps its GPU memory."""
    from transformers import AutoModel, AutoTokenizer

    path = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, AutoModel.from_pretrained(path).eval()
