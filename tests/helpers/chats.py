"""Conversations, and what of them is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ual_ray.columns import Message
from ual_ray.models.chat import IGNORE_INDEX, Rendered

STYLES = ["chatml", "llama3", "mistral", "gemma"]
Tokenizers = Callable[[str], Any]


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """Alternate user and assistant messages, after a system message if there is one."""
    roles = ["user", "assistant"] * len(contents)
    first = [] if system is None else [Message(role="system", content=system)]
    return first + [Message(role=role, content=text) for role, text in zip(roles, contents, strict=False)]


ONE_TURN = chat("Why is the sky blue?", "Blue light is scattered most.")
TWO_TURNS = chat("Name a colour.", "Blue.", "And one more, please.", "Green is a colour too.")
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def sentencepiece_tokenizer() -> Any:
    """Build a tokenizer as Llama 2's and Mistral's: it puts a blank before every text that it encodes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = [message["content"] for message in [*ONE_TURN, *TWO_TURNS]] * 5 + [
        f" {n} Blue A B <|user|> <|assistant|>" for n in range(10)
    ]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def trained_runs(tokenizer: Any, rendered: Rendered) -> list[str]:
    """Decode each unbroken run of labels, special tokens written out."""
    runs: list[list[int]] = [[]]
    for label in rendered.labels:
        if label != IGNORE_INDEX:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]
