"""The word list of `make lint`: phrases that read like a translation are found, and names in code are not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

RULES = """
mend(s|ed)? -> fix
for want of -> without
(?<!there )is no (?!longer ) -> is not a
"""


@pytest.fixture(scope="module")
def words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("words", ROOT / ".ci" / "words.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(words: ModuleType, name: str, text: str) -> list[tuple[int, str, str]]:
    return [tuple(hit) for hit in words.check(name, text, words.read_rules(RULES))]


def test_a_planted_word_is_found_with_its_line_and_a_better_one(words: ModuleType) -> None:
    text = "# Title\n\nThis Mended a bug.\nNothing here. It is no number.\n"
    assert found(words, "README.md", text) == [(3, "Mended", "fix"), (4, "is no", "is not a")]


def test_a_clean_text_passes(words: ModuleType) -> None:
    text = "Amend the list: there is no score, and it is no longer needed. Recommended: recommend, mending.\n"
    assert found(words, "README.md", text) == []


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.md", "Dropped for\nwant of a score.\n", 1),
        ("a.md", "First.\n- Dropped for\n  want of a score.\n", 2),
        ("a.py", '"""Drop rows.\n\n    Some for\n    want of a score.\n"""\n', 3),
        ("a.py", "x = 1  # first\n\n# Dropped for\n# want of a score.\n", 3),
        ("a.py", 'text = (\n    "dropped for "\n    "want of a score"\n)\n', 2),
        ("a.py", 'row = 1\ntext = f"{row} dropped for want of a score"\n', 2),
        ("a.sh", "run it  # no\n# Dropped for\n# want of a score.\n", 2),
        ("Dockerfile", "FROM a\n# Dropped for want of a score.\n", 2),
        ("a.yaml", "key: dropped for want of a score\n", 1),
        ("page.html.j2", "<p>{{ count }} dropped for want of a score</p>\n", 1),
    ],
)
def test_prose_is_found_in_every_kind_of_file(words: ModuleType, name: str, text: str, line: int) -> None:
    assert found(words, name, text) == [(line, "for want of", "without")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "def mend(mended: int) -> str:\n    return 'mend' + f'{mended}'\n"),
        ("a.py", "x = {'mend': 1}  # a key\n"),
        ("a.sh", "mend() { :; }\nmend now\n"),
        ("page.html.j2", "{% macro mend(verdict) %}{{ mend(verdict) }}{# mend #}{% endmacro %}\n"),
    ],
)
def test_names_in_code_are_free(words: ModuleType, name: str, text: str) -> None:
    assert found(words, name, text) == []


def test_lines_are_counted_behind_a_tag_of_several_lines(words: ModuleType) -> None:
    assert found(words, "a.j2", "{#\n\n#}\n<p>mend</p>\n") == [(4, "mend", "fix")]


def test_a_find_makes_the_exit_status_1(words: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, planted = tmp_path / "clean.md", tmp_path / "planted.md"
    clean.write_text("Retry rows that failed with an engine error.\n")
    planted.write_text("Mend rows that failed.\n")
    assert words.main([str(clean)]) == 0
    assert words.main([str(clean), str(planted)]) == 1
    assert f"{planted}:1: 'Mend': write fix" in capsys.readouterr().out


def test_every_line_of_the_list_has_a_better_wording(words: ModuleType) -> None:
    rules = words.read_rules((ROOT / ".ci" / "words.txt").read_text(encoding="utf-8"))
    assert rules and all(rule.better for rule in rules)
    text = "It will not do, for want of use: lest it say what loses, mend it by hand with the utmost care beside the places."
    hits = words.check("a.md", text, rules)
    assert {hit.phrase for hit in hits} >= {"will not do", "for want of", "lest", "say", "what loses", "mend", "by hand"}
