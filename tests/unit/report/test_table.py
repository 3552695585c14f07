"""The comparison table: what is beside what, with which arrow, and what is missing."""

from __future__ import annotations

from ual_ray.evaluate.metrics import Figure
from ual_ray.report.table import cell, compare


def test_markdown_by_hand() -> None:
    base = [Figure("exact_match_strict", "overall", 0.25, 0.125, 16), Figure("nll", "overall", 2.0, 0.5, 20)]
    arm = [Figure("nll", "overall", 1.5, None, 20), Figure("nll", "maths", 1.0, 0.1, 8)]
    table = compare({"base": base, "ual": arm}, {"ual": 0.1})
    assert table.markdown().splitlines() == [
        "| metric | n | base | ual |",
        "| --- | ---: | ---: | ---: |",
        "| mean alpha per training row | - | - | 0.100 |",
        "| NLL per token (nats) ↓ | 20 | 2.000 ± 0.500 | 1.500 |",
        "| NLL per token (nats), maths ↓ | 8 | - | 1.000 ± 0.100 |",
        "| exact match, strict ↑ | 16 | 25.0% ± 12.5 | - |",
    ]
    assert table.columns()["ual"] == ["0.100", "1.500", "1.000 ± 0.100", "-"]


def test_a_missing_figure_is_no_zero() -> None:
    assert cell(None) == "-"
    assert cell(Figure("exact_match_strict", "overall", 0.0, 0.0, 5)) == "0.0% ± 0.0"
