"""A real tokenizer, trained here on a few sentences, with chat templates in the styles of well-known models."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

# The same examples every time, however slow the machine: a red run means a change, not luck.
settings.register_profile("unit", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("unit")

SENTENCES = [
    "Why is the sky blue? Sunlight is a mix of colours, and blue light is scattered most.",
    "Name a colour. Blue. And one more, please. Green is a colour too [as INST said].",
    "You are a helpful assistant. Reply with 0 1 2 3 4 5 6 7 8 9 or A B and nothing else.",
    "user assistant system model user assistant system model [INST] Name a colour. [/INST] [INST] [/INST]",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (  # as Mistral-7B-Instruct-v0.1: [INST] is plain text, a blank follows the end of the turn
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As Qwen3, which drops the reasoning of all turns but the last.
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last or m['role'] != 'assistant' else '(left out)' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "rewriting": REWRITING,
    "none": None,
}
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>"}
BEGIN, END = "<s>", "</s>"
SPECIAL_TOKENS = [
    *(BEGIN, END, "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Have SIGINT raise KeyboardInterrupt, also where the tests were started with it ignored, as in a script's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Undo what a test does to the environment: a command run in process sets Ray's token mode for good where a token is."""
    with mock.patch.dict(os.environ):
        yield


@cache
def _tokenizer(style: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    # As Llama and Mistral do: encoding with special tokens puts <s> in front, which a template has already done.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        chat_template=TEMPLATES[style],
        name_or_path="tiny",
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[[str], Any]:
    """Get the tokenizer with the chat template of a style: chatml, llama3, mistral, gemma, rewriting, none."""
    return _tokenizer


@pytest.fixture(scope="session")
def end_of_turn() -> dict[str, str]:
    """Get the token that ends the assistant's turn, per style that has one."""
    return END_OF_TURN
