"""docs/cases.md says what every case prints now: all are run again, but for the chat templates (test_templates.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_scripts import BENCH, script

cases = script("cases")


@pytest.mark.slow
def test_the_page_says_what_every_case_prints(
    ual_without_ray: Any, chat_tokenizer: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    chat_tokenizer("chatml").save_pretrained(tmp_path / "model")
    models = cases.make_models(tmp_path, tmp_path / "model")
    page = cases.PAGE.read_text()
    templates = page.split(cases.ABOUT_TEMPLATES)[1]

    def ual(arguments: list[str], folder: Path) -> str:
        return ual_without_ray(*arguments, cwd=folder).output

    assert page == cases.page(ual, models, templates), "run bench/cases.py"


def test_every_case_that_a_test_shows_has_it() -> None:
    for _, _, file, test in cases.TESTED:
        assert f"def {test}(" in (cases.ROOT / file).read_text(), test
