"""How this package and lm-evaluation-harness read the answers to GSM8K, over generated texts.

    python bench/gsm8k_parity.py --data ../shared/data/gsm8k_train.jsonl [--texts 10000] [--seed 0]

A text is a real rationale, cut somewhere in a half of the texts, and one of ENDINGS with a number in one of FORMS. The harness
(extra `harness`) reads it by the filters and the exact match of its own task file. A difference is explained by the fewest
CLASSES whose marks must leave the text until both sides read the same; docs/evaluation.md has to show the example of each. The
command fails at a difference that they do not explain.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ual_ray.benchmarks.gsm8k import FLEXIBLE, STRICT
from ual_ray.data.answers import extract_flexible, extract_strict, same_number

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
EXTRACT = {STRICT: extract_strict, FLEXIBLE: extract_flexible}
FILTERS = {STRICT: "strict-match", FLEXIBLE: "flexible-extract"}
# How a number may be written; the first two are those of GSM8K's own answers.
FORMS: tuple[Callable[[int], str], ...] = (
    str,
    "{:,}".format,
    "{}.00".format,
    "${:,}".format,
    "-{}".format,
    "{}%".format,
    "{}/7".format,
    lambda n: f"{n:,}".replace(",", " "),
    lambda n: f"{n:,}".replace(",", "{,}"),
    "{:_}".format,
    lambda n: f"{n:,}".replace(",", " , "),
    lambda n: f"{n:,}".replace(",", ", "),
    "{}k".format,
    lambda n: f"${n}-${n + 2}",
    lambda n: "".join(chr(ord(digit) + ord("\N{FULLWIDTH DIGIT ZERO}") - ord("0")) for digit in str(n)),
)
# N is the number; the first is that of GSM8K's own answers.
ENDINGS = (
    *("#### N", "#### N\n", "#### N.", "####N", "####  N", "#### N dollars", "#### N...", "#### N (that is all)"),
    *("#### **N**", "**#### N**", "### N", "#### N-N", "#### N + 1", "#### N\n#### N", "#### N\n\nSo the answer is N."),
    *(
        "The answer is N",
        "The answer is N.",
        "The final answer is: N!",
        "Answer: N apples",
        "So there are N in all. I hope this helps...",
    ),
    *(r"\boxed{N}", r"$\boxed{N}$.", "= N", "= $N", "about N, more or less", ""),
)


@dataclass(frozen=True)
class Class:
    """A kind of difference: as docs/evaluation.md shows it, and how its mark leaves a text."""

    example: str
    pattern: str
    without: str | Callable[[re.Match[str]], str]


CLASSES = {
    "no blank or several behind ####": Class("`####18`", r"####\s*", "#### "),
    "a sign of money behind ####": Class("`#### $18`", r"(####\s*)\$", r"\1"),
    "decimals of zero": Class("18.00", r"(\d)\.0+(?!\d)", r"\1"),
    "full stops behind a number": Class("`18...`", r"(?<=\d)\.{2,}", ""),
    "signs without a number": Class("`$.`", r"(?<![\d.])[$.,]{2,}(?!\d)", " "),
    "a fraction": Class("1/2", r"(?<=\d)/(?=\d)", " of "),
    "thousands behind a blank": Class("12 000", r"(?<=\d) (?=\d{3}(?!\d))", ""),
    "thousands behind {,}": Class("`12{,}000`", re.escape("{,}"), ""),
    "thousands behind _": Class("`1_000`", r"(?<=\d)_(?=\d{3}(?!\d))", ""),
    "thousands behind a comma and a blank": Class("`18 , 000`", r"(?<=\d)(?: , ?|, )(?=\d{3}(?!\d))", ""),
    "letters for thousands": Class("`18k`", r"(?<=\d) ?(?:[kKMB]|mn|bn)\b", ""),
    "full-width digits": Class("full-width digits", r"[\uff10-\uff19]", lambda found: unicodedata.normalize("NFKC", found[0])),
    "a range or a calculation": Class("`18-20`", r"(?<=[\d)%])[ \t]*(?:[-+*x=~÷]|to|or)[ \t]*(?=[\d$(.])", " and "),
}


class Harness:
    """The harness's filters and exact match, as its task `gsm8k` sets them."""

    def __init__(self) -> None:
        """Read the task file."""
        import lm_eval
        import lm_eval.filters
        from lm_eval.api.metrics import exact_match_fn
        from lm_eval.api.registry import get_filter

        self.version = lm_eval.__version__
        task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
        chains = {one["name"]: one["filter"] for one in task["filter_list"]}
        self.filters = {
            way: [
                get_filter(step["function"])(**{key: step[key] for key in step.keys() - {"function"}}) for step in chains[name]
            ]
            for way, name in FILTERS.items()
        }
        (metric,) = task["metric_list"]
        self.ignored = metric["regexes_to_ignore"]
        self._match, self._settings = (
            exact_match_fn,
            {key: metric[key] for key in metric if key.startswith(("ignore", "regexes"))},
        )

    def read(self, way: str, text: str, target: str) -> tuple[str | None, bool]:
        """Extract from a text; return what the exact match compares, None where there is nothing, and whether it is right."""
        found: Any = [[text]]
        for step in self.filters[way]:
            found = list(step.apply(found, [{}]))
        (extracted,) = found
        right = self._match(predictions=[extracted], references=[target], **self._settings)["exact_match"] == 1
        if extracted == "[invalid]":
            return None, right
        for pattern in self.ignored:
            extracted = re.sub(pattern, "", extracted)
        return extracted.lower(), right


def ours(way: str, text: str, target: str) -> tuple[str | None, bool]:
    """Extract from a text as the benchmark does; return the number and whether it is right."""
    found = EXTRACT[way](text)
    return found, same_number(found, extract_strict(target))


def texts(path: str, count: int, seed: int) -> Iterator[tuple[str, str, bool]]:
    """Yield a text, its reference answer, and whether it is written as GSM8K's own answers are."""
    answers = [json.loads(line)["answer"] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    drawn = random.Random(seed)
    for _ in range(count):
        target = drawn.choice(answers)
        text, _, gold = target.partition("#### ")
        number = int(gold.replace(",", "").lstrip("-"))
        if drawn.random() < 0.1:
            number = drawn.randrange(1_000_000)
        if drawn.random() < 0.5:
            text = re.sub(r"<<.*?>>", "", text)
        if drawn.random() < 0.5:
            text = text[: drawn.randrange(len(text))]
        form, ending = drawn.randrange(len(FORMS)), drawn.randrange(len(ENDINGS))
        yield text + ENDINGS[ending].replace("N", FORMS[form](number)), target, form < 2 and ending < 2


def explain(text: str, agree: Callable[[str], bool]) -> tuple[str, ...] | None:
    """Return the fewest classes without whose marks the text reads the same; None where it does not without all of them."""

    def without(names: Mapping[str, Class]) -> str:
        kept = text
        for one in names.values():
            kept = re.sub(one.pattern, one.without, kept)
        return kept

    needed = dict(CLASSES)
    if not agree(without(needed)):
        return None
    for name in CLASSES:
        fewer = {other: needed[other] for other in needed if other != name}
        if agree(without(fewer)):
            needed = fewer
    return tuple(needed)


def unlisted() -> list[str]:
    """Name the classes that docs/evaluation.md does not show."""
    page = PAGE.read_text(encoding="utf-8")
    return [name for name, one in CLASSES.items() if one.example not in page]


def main() -> None:
    """Read all texts on both sides, and count."""
    from common import report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="gsm8k_train.jsonl")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    harness = Harness()
    counts, equal = Counter[tuple[str, str]](), Counter[str]()
    canonical, unexplained = [], []
    for text, target, as_its_own in texts(options.data, options.texts, options.seed):
        for way in EXTRACT:

            def agree(other: str, way: str = way, target: str = target) -> bool:
                return ours(way, other, target) == harness.read(way, other, target)

            same = agree(text)
            equal[way] += same
            if as_its_own:
                canonical.append(same)
            if same:
                continue
            if (needed := explain(text, agree)) is None:
                unexplained.append(
                    f"{way}: {text[-80:]!r}: ours {ours(way, text, target)}, harness {harness.read(way, text, target)}"
                )
            for name in needed or ():
                counts[name, f"{way}{', with others' if len(needed or ()) > 1 else ''}"] += 1
    columns = [f"{way}{more}" for way in EXTRACT for more in ("", ", with others")]
    report(
        "gsm8k_parity",
        [
            {"difference": "none", "example": ""} | {column: equal[column] for column in columns},
            *(
                {"difference": name, "example": one.example} | {column: counts[name, column] for column in columns}
                for name, one in CLASSES.items()
            ),
        ],
        {
            "answers written as GSM8K's own: share that both read equal": (sum(canonical) / len(canonical), "1.0"),
            "share that is read equal, or differs as listed": (1 - len(unexplained) / (2 * options.texts), "1.0"),
        },
        harness=harness.version,
        texts=options.texts,
        seed=options.seed,
    )
    if missing := [*unexplained, *(f"docs/evaluation.md does not show: {name}" for name in unlisted())]:
        raise SystemExit("\n".join(missing[:20]))


if __name__ == "__main__":
    main()
