"""The documentation names what there is: every command is accepted, and the tables list what is registered."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from ual_ray.cli.app import app
from ual_ray.config import ENSEMBLE
from ual_ray.config.registry import BENCHMARKS, ESTIMATORS, MAPS

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Collect the lines of the pages' shell blocks that run `ual`, without their comments."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [line.split(" #")[0].split(" > ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("ual ")]


@pytest.mark.parametrize("line", sorted(set(commands())))
@pytest.mark.slow
def test_a_documented_command_is_accepted(line: str) -> None:
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(line)[1:]
    command = group.get_command(None, name)  # type: ignore[attr-defined, arg-type]
    assert command is not None, f"no command {name}"
    command.make_context(name, arguments)


def test_commands_are_found() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(
    ("page", "head", "registered"),
    [
        ("elicitation.md", "elicit.estimators", {*ESTIMATORS, ENSEMBLE}),
        ("evaluation.md", "evaluate.benchmarks.NAME.kind", set(BENCHMARKS)),
        ("training.md", "arms.NAME.map", set(MAPS)),
    ],
)
def test_a_table_lists_what_is_registered(page: str, head: str, registered: set[str]) -> None:
    (rows,) = re.findall(rf"\| `{re.escape(head)}` \|.*\n\|-.*\n((?:\|.*\n)+)", (ROOT / "docs" / page).read_text())
    names = [name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == sorted(registered)
