"""User text is never markup: not on the terminal, where rich reads [tags], nor on a page, where a browser reads <tags>."""

from __future__ import annotations

import ast
import io
import json
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scored_rows import folder_of, many

from ual_ray.inspect.measure import inspect
from ual_ray.inspect.page import to_console, to_html
from ual_ray.report.table import Grid, TableRow
from ual_ray.run.progress import Meter

PACKAGE = Path(__file__).parents[2] / "ual_ray"
HOSTILE = ["reddit[/r/askscience]", "[bold]b[/]", "a</td><script>alert(1)</script>", "$x^2$ \\", "{{ 7*7 }}"]


def prints(tree: ast.AST) -> list[ast.Call]:
    """Find the calls `....print(f"...{value}...")` that do not switch markup off."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    printing = (call for call in calls if call.func.attr == "print" and call.args)  # type: ignore[attr-defined]
    return [call for call in printing if not any(keyword.arg == "markup" for keyword in call.keywords)]


def unescaped(value: ast.FormattedValue, escaped: set[str]) -> bool:
    """Whether a formatted value may be text: it is not escaped, not a number, and not a type's name."""
    form = ast.unparse(value.format_spec) if value.format_spec else ""
    text = ast.unparse(value.value)
    number = form.rstrip("'\"").endswith(("f", "%")) or text.startswith("len(")
    counted = re.fullmatch(r"plural\(.+, '[a-z ]+'\)", text) is not None
    return not (number or counted or text.startswith("escape(") or text in escaped or text.endswith("__name__"))


@cache
def escaped_in(tree: ast.AST) -> set[str]:
    """Name the variables of a file that are escaped where they are set."""
    sets = (node for node in ast.walk(tree) if isinstance(node, ast.Assign))
    return {ast.unparse(node.targets[0]) for node in sets if ast.unparse(node.value).startswith("escape(")}


# Ids, states and styles that the package itself makes, counts, and bars.
OWN = {"job", "found.status.value", "status.value", "latest.status.value", "count", "bar", "''", "title"}
OWN |= {"check.rows", "check.swapped", "auroc_text(found)", "'warning'", "errors", "warnings"}
OWN |= {"style", "finding.status", "finding.check"}


@pytest.mark.slow
def test_what_is_printed_is_escaped_or_no_markup() -> None:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}
    found = [(file, call) for file, tree in trees.items() for call in prints(tree)]
    assert len(found) > 10
    for file, call in found:
        values = [part for part in ast.walk(call.args[0]) if isinstance(part, ast.FormattedValue)]
        left = {ast.unparse(value.value) for value in values if unescaped(value, escaped_in(trees[file]))} - OWN
        assert not left, f"{file.relative_to(PACKAGE)}, line {call.lineno}: give markup=False, or escape {left}"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.slow
def test_a_hostile_source_is_text_on_page_and_terminal(text: str, tmp_path: Path, read_page: Any) -> None:
    rows = [row | {"source": text, "error": f"{text}: x", "elicitor": text, "given_id": text} for row in many(60)]
    inspection = inspect(folder_of(tmp_path, rows))
    page, shown = to_html(inspection), io.StringIO()
    read_page(page)
    assert "<script" not in page
    to_console(inspection, Console(file=shown, width=200))
    assert json.dumps(asdict(inspection))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_text_in_tables_and_progress(text: str) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=True, color_system=None)
    meter = Meter(console, text, 3, "rows")
    meter.update(1, note=text)
    meter.close()
    console.print(Grid(text, (text, text), (TableRow(text, (text, text)),)).rich())
    assert shown.getvalue().count(text) >= 5
