"""The lines of a run: what users wrote is printed as it is."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from ual_ray.formatting import count_list
from ual_ray.run.step import Session


@pytest.mark.parametrize("text", ["reddit[/r/askscience]", "[red]x", "[/]", "a [link=b]c", "\\[x]"])
def test_users_text_is_no_markup(text: str) -> None:
    out = io.StringIO()
    session = cast(Session, SimpleNamespace(console=Console(file=out, width=200)))
    Session.say(session, "elicit", f"3 {text}", note="(1 s)")
    Session.say(session, text, "x", style="red")
    assert out.getvalue().splitlines()[0].split() == f"elicit 3 {text} (1 s)".split()


def test_long_lists_are_cut() -> None:
    counts: dict[str, Any] = {f"https://example.org/{'x' * 200}/{n}": 1 for n in range(200)}
    assert len(count_list(counts)) < 2000 and count_list(counts).endswith("and 180 others")
    assert count_list({"a": 1, "b": 2}) == "1 a, 2 b"
