"""The benchmarks' page and the README's table say what the benchmarks' files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "bench" / "tables.py")
assert SPEC is not None and SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


def test_the_page_is_written_from_the_files() -> None:
    assert tables.PAGE.read_text() == tables.page(tables.results()), "run bench/tables.py"


def test_the_readmes_table_is_written_from_the_files() -> None:
    readme = tables.README.read_text()
    assert readme == tables.with_table(readme, tables.readme_table(tables.results())), "run bench/tables.py"


def test_every_benchmark_has_its_command() -> None:
    for name, content in tables.results().items():
        assert content["command"].startswith("bench/"), name
        assert (ROOT / content["command"].split()[0]).is_file(), name
