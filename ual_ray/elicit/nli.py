"""Answers mean the same where each entails the other, as a cross-encoder for natural language inference judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ual_ray.errors import UserError
from ual_ray.models.resolve import resolve_model

LONGEST_PAIR = 512  # tokens


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
