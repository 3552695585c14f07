"""Fuzz inputs made of bytes: one definition of each serves hypothesis, which draws bytes, and atheris, which changes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

Item = TypeVar("Item")

THOUGHTS = (
    *("<think>", "</think>", "<thinking>", "</thinking>", "<reasoning>", "</reasoning>", "<thought>", "</thought>", "<plan>"),
    *("</plan>", "<details type='reasoning'>", "</details>", "[THINK]", "[/THINK]", "[end think]", "\u25c1think\u25b7", "<|"),
    *("<|begin_of_thought|>", "<|end_of_thought|>", "<|START_THINKING|>", "<|END_THINKING|>", "<|channel|>", "<|message|>"),
    *("analysis", "commentary", "final", "assistantfinal", "<", "</", "|>", ">", "_think_", "think", "a:think", "<|im_end|>"),
    *("</s>", "<eos>", "```thinking\n", "\uff5c", "\u2581"),
)
RATINGS = (
    *("Rating:", "rating", "score", "My ", " is ", "I'd give it", " a ", " out of 10", "/9", "%", "percent", "(0-9)", "(scale"),
    *(
        "on a scale of 0-9",
        "from 0 to 9",
        "0",
        "1",
        "7",
        "9",
        "10",
        "07",
        "7.0",
        "3.5",
        "-",
        "\u2013",
        "maybe ",
        "eight",
        "wait",
    ),
    *("actually", "because ", "since ", ", so ", "not ", "Example:", "answer", "correct", "wrong", "likelihood", '"rating"'),
    *(
        '{"rating": 7}',
        '{"answer": "M"}',
        "{",
        "}",
        "[",
        "]",
        "```",
        "```json\n",
        "\\boxed{",
        "**",
        "*",
        "# ",
        "## ",
        "- ",
        "> ",
    ),
    *(
        "'",
        '"',
        "_",
        "Reply M",
        "M",
        "m",
        "is better",
        "A",
        "B",
        "Option ",
        "(",
        ")",
        ".",
        "!",
        "?",
        ";",
        ",",
        ":",
        "\n",
        "\n\n",
    ),
    *(" ", "  ", "\t", "\r", "=", "<answer>7</answer>", "only ", "points", "in JSON format", "the winner is"),
)
NUMBERS = (
    *(
        "####",
        "#### ",
        "1,000",
        "11,",
        ",000",
        "1 000",
        "12 500",
        "\\frac{1}{2}",
        "\\frac",
        "{1}",
        "{2}",
        "1/2",
        "3 1/2",
        "\u00bd",
    ),
    *("\u00b2", "\u207b", "$", "\u20ac", "\u00a3", "\\$", "million", "hundred ", " thousand", "dollars", "cents", "\\%", "km"),
    *("ft", "cm^2", "square ", " cubed", "e5", "10:30", "am", "p.m.", "1-2-3", " to ", " or ", "between ", " and ", "about "),
    *(
        "the answer is ",
        "The final answer is: ",
        "Answer:",
        "\u7b54\u6848\u662f",
        "\\text{",
        "\\fbox{",
        "^",
        "^{",
        "{,}",
        "\\,",
    ),
    *(
        "\u00a0",
        "\u2009",
        "\u2212",
        "\u0663",
        "\uff11",
        "\u00b0",
        "\\circ",
        "x = ",
        "\\(",
        "\\]",
        "$$",
        "1e99",
        "0.5",
        ".5",
        "/",
    ),
)
ODD = (
    *("\u0300", "\u0316", "\ud800", "\udc00", "\U0001f600", "\x00", "\u200b", "\ufeff", "\ufb01", "\u0130", "\u00df", "\u2028"),
    *("\\u0000", "\\", "&amp;", "<html>", "<!--", "-->", "<style>", "null", "NaN", "true"),
)
# One piece for each byte, so that a text is as easily changed as its bytes.
PIECES: tuple[str, ...] = tuple(islice(cycle([*THOUGHTS, *RATINGS, *NUMBERS, *ODD]), 256))
NUMERIC = (0, 1, -1, 2, 7, 0.5, -1.5, 1e308, float("inf"), float("-inf"), float("nan"), 10**20, -(10**20), 10**400, 2**63)


def text_of(data: bytes) -> str:
    """Write a piece for each byte."""
    return "".join([PIECES[byte] for byte in data])


class Source:
    """Choices read off bytes; where they end, the first of the options."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, below: int) -> int:
        """Read a number from 0 to below, which is at most 256."""
        self._at += 1
        return self._data[self._at - 1] % below if below and self._at <= len(self._data) else 0

    def pick(self, options: Sequence[Item]) -> Item:
        return options[self.number(len(options))]

    def mostly(self, expected: Callable[[], Any], other: Callable[[], Any]) -> Any:
        """Make what is expected, in one of six cases something else."""
        return expected() if self.number(6) else other()

    def text(self, pieces: Sequence[str] = PIECES, most: int = 8) -> str:
        return "".join([self.pick(pieces) for _ in range(self.number(most))])

    def rest(self) -> bytes:
        """Return the bytes that were not read."""
        return self._data[self._at :]

    def leaf(self) -> Any:
        kind = self.number(8)
        if kind < 4:
            return self.text()
        return self.pick(NUMERIC) if kind < 6 else self.pick((None, True, False, ""))

    def value(self, keys: Sequence[str], depth: int = 4) -> Any:
        """Make a value as JSON has them, whose objects mostly have these keys."""
        kind = self.number(6) if depth else 5
        if kind == 0:
            return [self.value(keys, depth - 1) for _ in range(self.number(4))]
        if kind == 1:
            return {self.key(keys): self.value(keys, depth - 1) for _ in range(self.number(5))}
        if kind == 2 and self.number(16) == 1:
            return nested(self.pick(keys), self.number(3), 30 * self.number(32))
        return self.leaf()

    def key(self, keys: Sequence[str]) -> str:
        return self.pick(keys) if self.number(12) else self.text(most=3)

    def damaged(self, content: bytes) -> bytes:
        """Change, cut or lengthen some content."""
        changed = bytearray(content)
        for _ in range(self.number(6)):
            at = (self.number(256) * 256 + self.number(256)) % max(1, len(changed))
            kind, new = self.number(4), self.number(256)
            if kind == 0:
                changed[at : at + 1] = bytes([new])
            elif kind == 1:
                del changed[at : at + 1 + new // 16]
            elif kind == 2:
                del changed[at:]
            else:
                changed[at:at] = bytes([new]) * (1 + new % 9)
        return bytes(changed)


def nested(key: str, kind: int, depth: int) -> Any:
    """Make lists or objects within each other."""
    value: Any = "x"
    for _ in range(depth):
        value = [value] if kind == 0 else {key: value} if kind == 1 else {key: value, "more": 1}
    return value


@dataclass(frozen=True)
class Target:
    """Inputs, and a check that raises for a broken promise; `read` makes an input of bytes at less cost than `inputs` do."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    read: Callable[[bytes], Any] | None = None


def of_bytes(read: Callable[[bytes], Any], check: Callable[[Any], None], size: int = 200) -> Target:
    """Make a target whose inputs are made of at most so many bytes."""
    return Target(st.binary(max_size=size).map(read), check, lambda data: read(data[:size]))


@contextmanager
def scratch(name: str, content: bytes) -> Iterator[Path]:
    """Give a file in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path
