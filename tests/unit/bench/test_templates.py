"""Every chat template of the installed trl trains one reply and several, from the prompts of generation."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from bench_scripts import script

bench = script("templates")
PAGE = (Path(__file__).parents[3] / "docs" / "cases.md").read_text()


@pytest.mark.parametrize(("name", "template"), bench.templates(), ids=lambda value: value if len(value) < 40 else "")
@pytest.mark.slow
def test_a_template_trains_every_reply_behind_its_own_prompt(
    name: str, template: str, chat_tokenizer: Callable[[str], Any]
) -> None:
    renderer = bench.renderer_of(template, chat_tokenizer("chatml"))
    found = [bench.train(renderer, messages) for messages in (bench.ONE, bench.THREE, bench.THOUGHT, bench.TOOLS)]
    for trained in found[:2]:
        assert trained.sequences and trained.prompt and trained.once, trained
    for trained in found[2:]:
        assert trained.prompt and trained.once if trained.sequences else "drops" in trained.error, trained
    if f"(trl {version('trl')})" in PAGE:
        assert bench.row(name, *found)[0] in PAGE, "run bench/cases.py"
