"""docs/results.md shows what the files of its experiments say, and every table of it has rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench_scripts import script

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "results.md").read_text()
RULE = re.compile(r"^\|(\s*:?-+:?\s*\|)+$")


def test_no_table_is_empty() -> None:
    tables, empty = 0, []
    for page in sorted((ROOT / "docs").glob("*.md")):
        lines = [*page.read_text().splitlines(), ""]
        rules = [place for place, line in enumerate(lines) if RULE.match(line)]
        tables += len(rules)
        empty += [f"{page.name}:{place}" for place in rules if not lines[place + 1].startswith("|")]
    assert tables > 40 and not empty


def test_the_tables_of_where_it_helps_are_those_of_the_file() -> None:
    report = script("real_text_report")
    runs = json.loads((ROOT / "bench" / "results" / "real_text.json").read_text())["runs"]
    for run in runs:
        assert "\n".join(report.where_it_helps(run["comparisons"])) in PAGE, run["about"]["corrupted"]
        assert "\n".join(report.by_epochs(run["cases"])) in PAGE, run["about"]["corrupted"]
    assert PAGE.count(report.where_it_helps(runs[0]["comparisons"])[0]) == len(runs)


def test_the_null_table_is_that_of_the_file() -> None:
    content = json.loads((ROOT / "bench" / "results" / "null_table.json").read_text())
    assert "\n".join(script("null_table").markdown(content["measurements"])) in PAGE
    assert f"python {content['command']}\n" in PAGE
