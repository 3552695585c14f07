"""The benchmarks' page and the README's table say what the benchmarks' files say."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_scripts import script

ROOT = Path(__file__).parents[3]
tables = script("tables")


def test_the_page_is_written_from_the_files() -> None:
    assert tables.PAGE.read_text() == tables.page(tables.results()), "run bench/tables.py"


def test_the_readmes_table_is_written_from_the_files() -> None:
    readme = tables.README.read_text()
    assert readme == tables.with_table(readme, tables.readme_table(tables.results())), "run bench/tables.py"


def test_every_benchmark_has_its_command() -> None:
    for name, content in tables.results().items():
        assert content["command"].startswith("bench/"), name
        assert (ROOT / content["command"].split()[0]).is_file(), name


@pytest.mark.parametrize(
    ("value", "aim", "met"),
    [
        (1.0, ">= 1.0", True),
        (0.99, ">= 1.0", False),
        (1e-6, "<= 1e-06", True),
        (0.2, "<= 0.1", False),
        (30, "below 30", False),
        (55.8, "below 150: flat", True),
        (1, "1", True),
        (0.995, "1", False),
        (0.995, "1, or near: rounding", None),
        (1.2, "1 is the least", None),
        (1.2, "-", None),
    ],
)
def test_an_aim_that_is_a_number_is_met_or_not(value: float, aim: str, met: bool | None) -> None:
    assert tables.is_met(value, aim) is met


def test_every_table_says_what_it_compares_and_every_missed_aim_is_named() -> None:
    page = tables.page(tables.results())
    for name, content in tables.results().items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert tables.compared(name) in section
        for what, ratio in content.get("ratios", {}).items():
            assert tables.better(what, ratio["aim"]), what
            missed = tables.is_met(ratio["value"], ratio["aim"]) is False
            assert (f"{what} ({tables.number(ratio['value'])}, aim {ratio['aim']})" in section) is missed, what
