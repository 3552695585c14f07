"""Every kind of input on which the package once failed, and what it says now: writes docs/cases.md from a run of all.

    python bench/cases.py

Inputs are made here, or are those of the tests; tests/unit/bench/test_cases.py runs them again and compares with the page.
Longer than other files, as it is the table of the cases.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cases.md"

# Runs `ual` with arguments in a folder; returns what it printed.
Ual = Callable[[list[str], Path], str]
U, A = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Bonjour"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
MULTI = [U, A, {"role": "user", "content": "B?"}, {"role": "assistant", "content": "Two."}]
QA = [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(8)]
NOT_BETWEEN = "instruction,output\n" + "".join(f"question {n},{chr(34) * (n == 2)}answer {n}\n" for n in range(9))


@dataclass(frozen=True)
class Case:
    """An id of issue and README of the cases, its input, the command, and a pattern of the lines of its output to show."""

    id: str
    what: str
    content: list[Any] | str
    command: str
    shown: str
    name: str = "rows.jsonl"


DROPPED = r"left out of training|^- "
CASES = (
    Case(
        "S1",
        "a tokenizer that puts a blank before every text",
        [{"messages": MULTI}],
        "preview FILE model=LLAMA elicit.model=LLAMA",
        "^«",
    ),
    Case(
        "S4",
        "a call of a tool, and a template without tools",
        [{"messages": [U, A | {"tool_calls": [CALL]}]}],
        "preview FILE",
        DROPPED,
    ),
    Case("S4", "tools, and a template without them", [{"messages": [U, A], "tools": [CALL]}], "preview FILE", DROPPED),
    Case(
        "S5",
        "reasoning next to the content, and a template without it",
        [{"messages": [U, A | {"reasoning": "Why"}]}],
        "preview FILE",
        DROPPED,
    ),
    Case(
        "S5",
        "the same, dropped as asked",
        [{"messages": [U, A | {"thinking": "Why"}]}],
        "preview FILE data.thinking=drop",
        "^«",
    ),
    Case(
        "S6",
        "a column system next to messages",
        [{"system": "In French.", "messages": [U, A]}],
        "preview FILE",
        "^(?!System).*In French|^«",
    ),
    Case(
        "S6",
        "the same next to prompt and completion",
        [{"system": "In French.", "prompt": "q", "completion": "Oui"}],
        "preview FILE",
        "^(?!System).*In French|^«",
    ),
    Case(
        "S7",
        "a mapped column",
        [{"question": "q", "response": "Oui", "system_prompt": "In French."}],
        "preview FILE 'data.columns={answer: response, system: system_prompt}'",
        "^(?!System).*In French|^«",
    ),
    Case(
        "S7",
        "the same, not mapped",
        [{"question": "q", "answer": "Oui", "System Prompt": "In French."}],
        "preview FILE",
        "error|fix",
    ),
    Case(
        "S7",
        "a mapping that the format does not read",
        [{"question": "q", "extra": "x", "answer": "Oui"}],
        "preview FILE 'data.columns={input: extra}'",
        "error|fix",
    ),
    Case("S8", "a column context", [{"question": "q", "context": "c", "answer": "a"}], "preview FILE", "error|fix"),
    Case(
        "S8",
        "prompts that are chats as text",
        [{"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " a"}],
        "preview FILE",
        "error|got|fix",
    ),
    Case(
        "S9",
        "a reply that starts with an indent",
        [{"prompt": "def f(a):\n", "completion": "    return a\n"}],
        "preview FILE",
        "^«",
    ),
    Case("S13", "a quote that is open", NOT_BETWEEN, "preview FILE", "cannot be used|^- ", "rows.csv"),
    Case(
        "S15",
        "an id that repeats",
        [{"id": "a", "uncertainty": n / 4} for n in range(4)],
        "smooth FILE --out OUT",
        "error|got|fix",
        "rows.parquet",
    ),
    Case("S16", "a template without an end of turn", [{"messages": [U, A]}], "preview FILE model=ENDLESS", "may not stop"),
    Case("E3", "duplicates", [*QA, *QA[:2]], "preview FILE", "duplicate|cannot be used"),
    Case(
        "E4",
        "ids that start again",
        [{"id": 0, **row} for row in QA[:2]],
        "preview FILE",
        "rows of|cannot be used",
    ),
    Case(
        "E7",
        "several turns, and a template that thinks in the last",
        [{"messages": MULTI}],
        "preview FILE model=THINKS",
        "^training: |^«|left out",
    ),
    Case(
        "E8",
        "scores with a column alpha",
        [{"id": "a", "alpha": 0.1, "uncertainty": 0.5}],
        "smooth FILE --out OUT",
        "error|fix",
        "rows.parquet",
    ),
    Case("E8", "scores without an id", [{"uncertainty": 0.5}], "smooth FILE --out OUT", "error|expected", "rows.parquet"),
    Case(
        "E11",
        "an output that cannot be written",
        [{"id": "a", "uncertainty": 0.5}],
        "smooth FILE --out /proc/x",
        "error|expected",
        "rows.parquet",
    ),
    Case("E14", "an array in one line, named .jsonl", json.dumps(QA), "preview FILE", "error|fix"),
)
# What takes Ray, MLflow or a training: the test that shows it.
TESTED = (
    (
        "S14",
        "replies cut at train.max_length",
        "tests/unit/train/test_step.py",
        "test_truncated_rows_are_counted_over_all_blocks_and_stated",
    ),
    (
        "E1",
        "a source that looks like markup",
        "tests/unit/test_markup.py",
        "test_a_hostile_source_is_text_on_page_and_terminal",
    ),
    (
        "E2",
        "a source that no metric can be named after",
        "tests/unit/tracking/test_logged.py",
        "test_every_key_makes_a_metric_name_that_mlflow_takes",
    ),
    (
        "E9",
        "tokens outside of the embedding",
        "tests/unit/train/test_tokenize.py",
        "test_a_token_outside_of_the_embedding_refuses_the_training",
    ),
    (
        "E9",
        "the same in validation rows",
        "tests/unit/test_no_embedding.py",
        "test_a_dry_run_looks_at_the_rows_of_both_splits",
    ),
    (
        "E9",
        "vocab_size larger than the embedding in the weights",
        "tests/unit/test_no_embedding.py",
        "test_a_vocabulary_larger_than_the_embedding_is_refused_by_every_command",
    ),
    (
        "E10",
        "RAY_ADDRESS of a dead cluster",
        "tests/unit/run/test_cluster.py",
        "test_a_dead_address_is_refused_before_ray_waits_for_it",
    ),
    (
        "E13",
        "a deleted experiment",
        "tests/unit/tracking/test_tracking.py",
        "test_a_deleted_experiment_is_refused_at_the_start",
    ),
)
# S11: replies on the scale 0-9. S10: answers to compare with "#### 18". E15: gold answers of GSM8K.
REPLIES = (
    "<think>\nOkay, 2 things to",
    "<think>2 things</think>\n\n7",
    "Rating (0-9): 7",
    "1. The response",
    "On a scale from 0 to 9, 7",
    "A 7/10",
    "7 or 8",
    "Rating: 7. Wait, no.",
    '```json\n{"uncertainty": 7}\n```',
    "The answer is 7.",
    "Rating: 7\n\nThat is 7/10.",
)
ANSWERS = (
    "The answer is 18 dollars.",
    "The answer is **18**.",
    "The answer is $18 per day.",
    "So she makes $18.",
    "The answer is 18. I have 2 more.",
    "$\\$18$",
    "18.0",
    "180",
    "The answer is 18 of them, not 20.",
    "negative 18",
)
GOLD = ("#### 18.00", "#### １８", "#### 12{,}000", "#### 1/2", "#### 7:30", "#### 1,234", "#### 3 1/2")


def files(case: Case, folder: Path, models: Mapping[str, Path | str]) -> list[str]:
    """Write the input of a case into a folder; return the arguments of its command."""
    path = folder / case.name
    if not isinstance(case.content, str) and path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        common = {"source": "s", "split": "train", "status": "ok", "messages": [U, A], "response_length": 7}
        pa.parquet.write_table(pa.Table.from_pylist([common | row for row in case.content]), path)
    else:
        rows = case.content
        path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    named = {"FILE": case.name, "OUT": "out"} | {name: str(model) for name, model in models.items()}
    given = re.findall(r"'[^']*'|\S+", case.command)
    own = [] if "elicit.model" in case.command or "preview" not in case.command else ["elicit.model=MODEL"]
    own += [] if "model=" in case.command or "preview" not in case.command else ["model=MODEL"]
    return [re.sub(r"\b([A-Z]+)\b", lambda found: named.get(found[0], found[0]), text.strip("'")) for text in [*given, *own]]


def told(case: Case, ual: Ual, models: Mapping[str, Path | str]) -> str:
    """Run a case; return the lines of its output that the page shows."""
    with tempfile.TemporaryDirectory() as folder:
        printed = ual(files(case, Path(folder), models), Path(folder)).replace(f"{folder}/", "")
    lines = [line.strip() for line in printed.splitlines() if re.search(case.shown, line)]
    return " / ".join(dict.fromkeys(lines))


def make_models(folder: Path, model: Path | str) -> dict[str, Path | str]:
    """Make folders with tokenizers and the chat templates of some cases; `model` is a folder whose template is ChatML."""
    from chats import ZEPHYR, sentencepiece_tokenizer
    from transformers import AutoTokenizer

    own = {
        "LLAMA": (sentencepiece_tokenizer(), ZEPHYR),
        "ENDLESS": (
            AutoTokenizer.from_pretrained(model),
            "{% for m in messages %}\n### {{ m.role }}:\n{{ m.content }}\n{% endfor %}",
        ),
        "THINKS": (AutoTokenizer.from_pretrained(model), THINKS),
    }
    for name, (tokenizer, template) in own.items():
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder / name)
    return {"MODEL": model, **{name: folder / name for name in own}}


# As Qwen3's: an empty thought in the last turn alone.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def readings() -> Iterator[tuple[str, str, str, str]]:
    """Yield the cases of one function each: id, input, function, what it returns."""
    from ual_ray.benchmarks.answer_key import answer_of, same_answer
    from ual_ray.data.answers import extract_strict
    from ual_ray.engines.reply_text import Unread, read_choice

    for text in ANSWERS:
        same = same_answer(answer_of("#### 18"), answer_of(text))
        yield "S10", text, "same_answer", "is 18" if same else "is not 18"
    for text in REPLIES:
        read = read_choice(text, tuple("0123456789"))
        yield "S11", text, "read_choice", read.reason.split(":")[0] if isinstance(read, Unread) else read
    for text in GOLD:
        yield "E15", text, "extract_strict", extract_strict(text) or "no answer"


def calls() -> Iterator[tuple[str, str]]:
    """Yield each changed setting of the tests with the requests that it sends for 12 rows."""
    from bench_scripts import module

    known = module(ROOT / "tests" / "unit" / "elicit" / "test_known.py", "known_of_cases")
    for test, start in (
        (known.test_a_changed_setting_asks_only_what_it_concerns, ()),
        (known.test_sampled_replies_are_read_anew_without_being_asked_for, known.SAMPLED),
    ):
        (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")
        for change, _ in mark.args[1]:
            with tempfile.TemporaryDirectory() as folder:
                known.score(known.config_of(*start), Path(folder), "first")
                _, sent = known.score(known.config_of(*start, *change.split()), Path(folder), "second")
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(sent.items()) if count)
            yield f"{'sampled: ' if start else ''}`{change}`", told or "nothing"


# --- the page ---------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Cases

Kinds of input on which earlier versions failed, and what each prints now. `python bench/cases.py` runs them and writes this
page; `tests/unit/bench/test_cases.py` runs them again and compares.
"""


def page(ual: Ual, models: Mapping[str, Any], templates: str) -> str:
    """Run everything and write the page."""
    from case_servers import servers

    tested = [(name, what, f"`{file}`", f"`{test}`") for name, what, file, test in TESTED]
    cases = [(case.id, case.what, f"`ual {case.command}`", _code(told(case, ual, models))) for case in CASES]
    cases.sort(key=lambda row: (row[0][0] == "E", int(row[0][1:])))
    read = [(name, _code(text), f"`{function}`", found) for name, text, function, found in readings()]
    parts = (
        ("Data and commands", ("id", "input", "command", "prints"), cases),
        ("Replies and answers", ("id", "text", "function", "read as"), read),
        ("Shown by a test", ("id", "input", "file", "test"), tested),
        ("Servers", ("the server", "a rating, from log-probabilities", "three sampled ratings", "adapted"), [*servers()]),
        ("Requests after a changed setting, of 12 rows that are scored", ("changed", "sent"), [*calls()]),
    )
    return INTRODUCTION + "".join(_section(*part) for part in parts) + ABOUT_TEMPLATES + templates


ABOUT_TEMPLATES = """
## Chat templates

Of each template of trl: the number of training sequences that a conversation of one reply becomes, one of three, one with a
thought, and one with a call of a tool (`-`: the template drops it, so the row is left out with this reason); whether each
reply's prompt starts its sequence, whether each reply is trained once, and whether the end of the turn is trained.

"""


def _section(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]
    return f"\n## {title}\n\n" + "\n".join(lines) + "\n"


def _code(text: str) -> str:
    shown = text.replace("\n", "↵").replace("|", "\\|")
    marks = "``" if "`" in shown else "`"
    return f"{marks}{' ' * (marks == '``')}{shown}{' ' * (marks == '``')}{marks}" if shown else "**nothing**"


def main() -> None:
    """Write the page."""
    sys.path[:0] = [str(ROOT / "tests" / "helpers")]
    import templates

    from ual_ray.models.resolve import resolve_model

    def ual(arguments: list[str], folder: Path) -> str:
        command = [sys.executable, "-m", "ual_ray", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        return done.stdout + done.stderr

    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder), resolve_model("demo"))
        PAGE.write_text(page(ual, models, "\n".join([*templates.table()[0], ""])), encoding="utf-8")


if __name__ == "__main__":
    main()
