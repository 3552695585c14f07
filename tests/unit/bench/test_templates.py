"""Every chat template of the installed trl trains one reply and several, from the prompts of generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bench_scripts import script

pytest.importorskip("trl")
bench = script("templates")


@pytest.mark.parametrize(("name", "template"), bench.templates(), ids=lambda value: value if len(value) < 40 else "")
def test_a_template_trains_every_reply_behind_its_own_prompt(
    name: str, template: str, chat_tokenizer: Callable[[str], Any]
) -> None:
    renderer = bench.renderer_of(template, chat_tokenizer("chatml"))
    for messages in (bench.ONE, bench.THREE):
        trained = bench.train(renderer, messages)
        assert trained.sequences and trained.prompt and trained.once, trained
    for messages in (bench.THOUGHT, bench.TOOLS):
        trained = bench.train(renderer, messages)
        assert trained.prompt and trained.once if trained.sequences else "drops" in trained.error, trained
