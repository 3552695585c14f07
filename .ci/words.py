"""Find the phrases of words.txt in what people read: documentation, docstrings, comments, help, errors, pages, configurations.

    python .ci/words.py [FILE ...]      without files: everything under FOLDERS

Prints file, line and a better wording for each phrase, and exits with 1 if there is any. Code is not checked: of Python files
only comments and strings with a space are, of shell scripts and Dockerfiles only comments, of templates the text outside tags.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("words.txt")
FOLDERS = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", "docs", "ual_ray", "jobs", "cluster")
SUFFIXES = {"", ".css", ".j2", ".md", ".py", ".sh", ".yaml"}
TEMPLATE_TAG = re.compile(r"\{[{%#].*?[}%#]\}", re.DOTALL)
# At the start of a line these mark a comment, a list or a quotation; a phrase may continue behind them.
MARKS = {"#", ">", "*", "-"}


class Rule(NamedTuple):
    """A phrase to find and what to write in its place."""

    pattern: re.Pattern[str]
    better: str


class Hit(NamedTuple):
    """A phrase that was found: its line, counted from 1, the phrase as written, and what to write in its place."""

    line: int
    phrase: str
    better: str


def read_rules(text: str) -> list[Rule]:
    """Read a list with a rule per line: a regular expression for whole words, `->`, what to write; # begins a comment."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    parts = (line.partition("->") for line in lines if line)
    return [Rule(re.compile(rf"\b{phrase.strip()}\b", re.IGNORECASE), better.strip()) for phrase, _, better in parts]


def prose(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the parts of a file that people read, each with its first line, counted from 1."""
    if name.endswith(".py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                yield node.lineno, node.value
        comments = tokenize.generate_tokens(io.StringIO(text).readline)
        yield from _joined((token.start[0], token.string) for token in comments if token.type == tokenize.COMMENT)
    elif name.endswith(".sh") or "." not in name:
        lines = enumerate(text.splitlines(), start=1)
        yield from _joined((number, line.strip()) for number, line in lines if line.lstrip().startswith("#"))
    else:
        yield 1, TEMPLATE_TAG.sub(lambda tag: "\n" * tag.group().count("\n"), text)


def _joined(comments: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join comments on consecutive lines, so that a phrase is found across the end of a line."""
    first, block = 0, list[str]()
    for number, comment in comments:
        if block and number != first + len(block):
            yield first, "\n".join(block)
            block = []
        if not block:
            first = number
        block.append(comment)
    if block:
        yield first, "\n".join(block)


def check(name: str, text: str, rules: list[Rule]) -> list[Hit]:
    """Find every phrase of `rules` in a file's text, in the order of its lines."""
    found = []
    for first, part in prose(name, text):
        words = [
            (first + below, word)
            for below, line in enumerate(part.splitlines())
            for place, word in enumerate(line.split())
            if place > 0 or word not in MARKS
        ]
        plain = " ".join(word for _, word in words)
        starts = list(accumulate((len(word) + 1 for _, word in words), initial=0))
        for rule in rules:
            for match in rule.pattern.finditer(plain):
                line, _ = words[bisect_right(starts, match.start()) - 1]
                found.append(Hit(line, match.group().strip(), rule.better))
    return sorted(found)


def all_files() -> list[Path]:
    """List the files under FOLDERS that people read."""
    roots = map(Path, FOLDERS)
    return sorted(path for root in roots for path in (root, *root.rglob("*")) if path.is_file() and path.suffix in SUFFIXES)


def main(names: list[str]) -> int:
    """Check these files, or all. Returns the exit status."""
    rules = read_rules(LIST.read_text(encoding="utf-8"))
    files = [Path(name) for name in names] or all_files()
    found = 0
    for path in files:
        for hit in check(path.name, path.read_text(encoding="utf-8"), rules):
            print(f"{path}:{hit.line}: '{hit.phrase}': write {hit.better}")
            found += 1
    print(f"{len(files)} files, {found} phrases of {LIST.name}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
