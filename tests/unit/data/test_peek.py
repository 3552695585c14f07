"""The first look at a data set: what it is, how large, and what no run could use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray.config import DataConfig
from ual_ray.data import peek as module
from ual_ray.data import reading as pieces
from ual_ray.data.formats import BadRow
from ual_ray.data.peek import DataPeek, peek
from ual_ray.data.records import name_of
from ual_ray.errors import UserError


def alpaca(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"q{index}", "output": f"a{index}"} for index in range(count)]


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def look_at(path: Path, rows: int = 1000, **options: Any) -> DataPeek:
    return peek(DataConfig(path=str(path), **options), rows)


def instructions(seen: DataPeek) -> list[str]:
    return [record["instruction"] for record, _ in seen.records]


def test_a_small_data_set_is_seen_completely(tmp_path: Path) -> None:
    seen = look_at(jsonl(tmp_path, alpaca(3)))
    assert (seen.format_name, len(seen.pieces), seen.estimated_rows, seen.complete) == ("alpaca", 1, 3, True)
    assert [record for record, _ in seen.records] == alpaca(3)
    assert seen.records[0][1] == [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]


@pytest.mark.parametrize(("rows", "complete"), [(1, False), (29, False), (30, True), (99, True)])
def test_no_more_rows_are_seen_than_asked_for(rows: int, complete: bool, tmp_path: Path) -> None:
    seen = look_at(jsonl(tmp_path, alpaca(30)), rows)
    assert instructions(seen) == [f"q{index}" for index in range(min(rows, 30))]
    assert (seen.complete, seen.estimated_rows) == (complete, 30)
    assert seen.size() == ("30 rows" if complete else "about 30 rows")


@pytest.mark.parametrize("limit", [1, 3, 25, 30, 99])
def test_max_rows_limits_everything(limit: int, tmp_path: Path) -> None:
    seen = look_at(jsonl(tmp_path, alpaca(30)), 20, max_rows=limit)
    most = min(limit, 30)
    assert instructions(seen) == [f"q{index}" for index in range(min(most, 20))]
    assert (seen.estimated_rows, seen.complete) == (most, most <= 20)


def test_rows_are_seen_across_pieces(tmp_path: Path) -> None:
    jsonl(tmp_path, alpaca(2), "a.jsonl")
    (tmp_path / "b.json").write_text(json.dumps(alpaca(2)))
    seen = look_at(tmp_path, 3)
    assert (instructions(seen), len(seen.pieces)) == (["q0", "q1", "q0"], 2)
    assert (seen.complete, seen.estimated_rows) == (False, 4)


def test_pieces_that_are_not_needed_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        jsonl(tmp_path, alpaca(5), name)
    opened = []
    monkeypatch.setattr(module, "read_piece", lambda piece: opened.append(piece.name) or pieces.read_piece(piece))
    look_at(tmp_path, 4)
    assert opened == ["00000-00000-a.jsonl"]


def test_a_large_text_file_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SAMPLE", 2000)
    seen = look_at(jsonl(tmp_path, alpaca(1000)), 10)
    assert not seen.complete
    assert seen.estimated_rows == pytest.approx(1000, rel=0.1)


def test_a_size_that_cannot_be_told_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SAMPLE", 5)
    seen = look_at(jsonl(tmp_path, alpaca(100)), 10)
    assert (seen.estimated_rows, seen.size()) == (None, "an unknown number of rows")


def test_bad_rows_are_seen_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"broken\n\n{"instruction": "a", "output": "b"}\n')
    seen = look_at(path)
    assert [isinstance(messages, BadRow) for _, messages in seen.records] == [True, False]
    assert seen.records[0][0] == {"raw": '{"broken'}


def test_columns_are_mapped(tmp_path: Path) -> None:
    seen = look_at(jsonl(tmp_path, [{"ask": "q", "reply": "a"}]), columns={"instruction": "ask", "output": "reply"})
    assert (seen.format_name, seen.records[0][0]) == ("alpaca", {"instruction": "q", "output": "a"})


@pytest.mark.parametrize("format_name", ["auto", "alpaca"])
def test_a_mapping_is_checked_whatever_the_format(format_name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)no column 'ask' \(for instruction\).*'instruction', 'output'"):
        look_at(jsonl(tmp_path, alpaca(1)), format=format_name, columns={"instruction": "ask"})


def test_a_format_that_is_set_is_not_guessed(tmp_path: Path) -> None:
    rows = [{**alpaca(1)[0], "question": "q", "answer": "a"}]
    assert look_at(jsonl(tmp_path, rows), format="alpaca").format_name == "alpaca"
    assert look_at(jsonl(tmp_path, rows), format="gsm8k").format_name == "gsm8k"


# --- the demo ------------------------------------------------------------------------------------------------------------


def test_the_demo() -> None:
    seen = peek(DataConfig())
    assert (seen.format_name, len(seen.pieces), seen.estimated_rows, seen.complete) == ("demo", 1, 200, True)
    assert {record["source"] for record, _ in seen.records} == {"open_ended", "deterministic"}
    assert not any(isinstance(messages, BadRow) for _, messages in seen.records)


def test_a_short_demo_keeps_both_sources() -> None:
    seen = peek(DataConfig(max_rows=20))
    assert {record["source"] for record, _ in seen.records} == {"open_ended", "deterministic"}
    assert (seen.estimated_rows, len(seen.records)) == (20, 20)


# --- what no run could use ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "a,b\n")])
def test_an_empty_data_set_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"(?s)the data set is empty.*{name}"):
        look_at(tmp_path / name)


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"instruction": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match="the data set is empty"):
        look_at(path)


def test_the_most_frequent_reason_is_shown_if_no_row_can_be_used(tmp_path: Path) -> None:
    rows = [{"instruction": "", "output": "a"}, {"instruction": "q", "output": ""}, {"instruction": "r", "output": ""}]
    with pytest.raises(UserError) as error:
        look_at(jsonl(tmp_path, rows))
    assert "no row of" in str(error.value)
    assert "2 of the first 3 rows: no response: output is empty" in str(error.value)


# --- what is not used, and what is asked for ---


def test_columns_and_keys_of_messages_that_nothing_reads_are_listed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q", "lang": "en"}, {"role": "assistant", "content": "a", "name": None}]
    seen = look_at(jsonl(tmp_path, [{"messages": turns, "id": 1, "source": "s", "quality": 3, "note": None, "tools": []}]))
    assert seen.unused == ("messages.lang", "quality")
    assert seen.describe("x").endswith("columns not used: messages.lang, quality")


@pytest.mark.parametrize("column", ["context", "passage", "choices", "image", "history"])
def test_a_column_that_a_question_needs_is_asked_for(column: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"question": "Who?", column: "By Ana.", "answer": "Ana"}])
    with pytest.raises(UserError, match=f"(?s)does not read the column {column}.*data.columns=.context: {column}"):
        look_at(path)
    assert look_at(path, format="gsm8k").unused == (column,)


def test_a_context_that_is_mapped_stands_before_the_question(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"question": "Who?", "passage": "By Ana.", "answer": "Ana"}])
    ((_, messages),) = look_at(path, columns={"context": "passage"}).records
    assert [message["content"] for message in messages] == ["By Ana.\n\nWho?", "Ana"]


def test_columns_of_two_formats_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="(?s)several formats.*gsm8k.*metamath.*data.format"):
        look_at(jsonl(tmp_path, [{"question": "q", "answer": "a", "query": "x", "response": "y"}]))


def test_a_mapping_that_the_format_does_not_read_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"question": "q", "extra": "x", "answer": "a"}])
    fix = (
        r"fix: set data\.format=alpaca or alpaca_eval, which reads it, or map to one of these, or leave input out of data\.col"
    )
    with pytest.raises(UserError, match=f"gsm8k does not read input(?s:.*){fix}"):
        look_at(path, columns={"input": "extra"})


def test_one_column_for_prompt_and_response_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"text": "a", "reply": "b"}])
    with pytest.raises(UserError, match=r"takes instruction and output from one column\n  got: text"):
        look_at(path, columns={"instruction": "text", "output": "text"})
    assert look_at(path, columns={"instruction": "text", "output": "reply", "source": "text"}).format_name == "alpaca"


def test_a_system_message_of_another_name_is_used(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"id": "flan.1", "system_prompt": "In French.", "question": "Hello", "response": "Bonjour"}])
    seen = look_at(path, columns={"answer": "response", "system": "system_prompt"})
    ((_, messages),) = seen.records
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert seen.unused == ()


def test_an_unknown_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.group_by: .* has no column 'nope'"):
        look_at(jsonl(tmp_path, alpaca(3)), group_by="nope")


PROMPT_ENDS = ["\n\nAssistant:", " [/INST]", "<|im_end|>\n<|im_start|>assistant\n", "\n\n### Response:\n", "<|Assistant|>"]
REPLY_ENDS = ["</s>", "<|im_end|>\n", "<|eot_id|>", "<end_of_turn>", "<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize(
    ("role", "end"), [*(("user", end) for end in PROMPT_ENDS), *(("assistant", end) for end in REPLY_ENDS)]
)
@pytest.mark.parametrize("format_name", ["alpaca", "prompt_completion", "messages"])
def test_chats_as_text_are_no_turns(format_name: str, role: str, end: str, tmp_path: Path) -> None:
    def row(number: int, last: str = "") -> dict[str, Any]:
        user, reply = (f"{text} {number}{last if role == own else ''}" for own, text in (("user", "Hi"), ("assistant", "Yes")))
        return {
            "alpaca": {"instruction": user, "output": reply},
            "prompt_completion": {"prompt": user, "completion": reply},
            "messages": {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]},
        }[format_name]

    half = jsonl(tmp_path, [*(row(n, end) for n in range(4)), *(row(n) for n in range(4, 8))])
    with pytest.raises(UserError, match=f"chats as text(?s:.*)a turn of {role} that ends in(?s:.*)data.format={format_name}"):
        look_at(half)
    assert look_at(half, format=format_name).format_name == format_name
    few = look_at(jsonl(tmp_path, [row(0, end), *(row(n) for n in range(1, 4))]))
    assert not any(isinstance(messages, BadRow) for _, messages in few.records)


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "null", "NULL", "None", "<NA>", "#N/A", "\\N", "#REF!"])
def test_a_missing_value_of_a_csv_file_is_no_text(word: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"instruction,input,system,output\nq1,{word},{word},a1\nq2,,,{word}\n{word},,,a3\nq4,x,s,{word} is it\n")
    kept, *bad, last = [messages for _, messages in look_at(path).records]
    assert kept == [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]
    assert [str(reason).split(", ")[0] for reason in bad] == [
        f"no response: output is {word!r}", f"no instruction: instruction is {word!r}",
    ]  # fmt: skip
    assert not isinstance(last, BadRow) and last[-1]["content"] == f"{word} is it"
    as_text = look_at(path, format="alpaca")
    assert [str(messages[-1]["content"]) for _, messages in as_text.records][1] == word
    assert f"2 of all 4 rows: a turn is a word for a missing value ({word!r})" in as_text.remarks[0]


def test_a_missing_value_of_another_file_is_no_text_or_is_counted(tmp_path: Path) -> None:
    words = [" nan ", "<NA>", float("nan"), "NA", "null", "None", "a"]
    seen = look_at(jsonl(tmp_path, [{"question": f"q{n}", "answer": word, "system": "nan"} for n, word in enumerate(words)]))
    bad = [str(messages) for _, messages in seen.records if isinstance(messages, BadRow)]
    assert [reason.split(",")[0] for reason in bad] == [
        "no response: answer is ' nan '", "no response: answer is '<NA>'", "no response: answer is empty",
    ]  # fmt: skip
    assert seen.remarks[0].startswith("3 of all 7 rows: a turn is a word for a missing value ('NA', 'null', 'None')")
    assert all(len(messages) == 2 for _, messages in seen.records if not isinstance(messages, BadRow))


@pytest.mark.parametrize("column", ["context", "id", "source", "reference", "tools", "group"])
def test_a_missing_value_is_none_of_another_column(column: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"instruction,output,{column}\nq1,a1,NaN\nq2,a2,nan\n")
    options: dict[str, Any] = {"reference": {"reference": "reference"}, "group": {"group_by": "group"}}.get(column, {})
    for record, messages in look_at(path, **options).records:
        assert not isinstance(messages, BadRow) and "extra" not in messages[0]
        assert name_of(record.get(column)) is None


MARKED = [
    "<|im_start|>user\nHi<|im_end|> Go on.", "[INST] Hi [/INST] Yes [INST] No", "<start_of_turn>user\nHi<end_of_turn> Go on.",
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|> Go on.", "### Instruction:\nHi\n\n### Response:\nYes. Go on.",
    "Human: Hi\n\nAssistant: Yes.\n\nHuman: Go on.", "<|user|>\nHi\n<|assistant|>\nYes. Go on.",
    "<｜User｜>Hi<｜Assistant｜>Yes. Go on.",
]  # fmt: skip


@pytest.mark.parametrize("text", MARKED)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_marks_of_a_template_within_a_text_are_counted(text: str, role: str, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]} for n in range(8)]
    for row in rows[:2]:
        next(turn for turn in row["messages"] if turn["role"] == role)["content"] += (
            f" {text}" if text[0] == "[" else f"\n{text}"
        )
    (remark,) = look_at(jsonl(tmp_path, rows)).remarks
    assert remark.startswith("2 of all 8 rows: a text has marks of a chat template or of media (")


@pytest.mark.parametrize("text", [
    "<s>old</s> new", "# Instruction\n## Response", "a < b | c > d", "Assistant: hello", "He is an Assistant: I am Human: no",
    "[inst]", "None of them", "nan is not a number", "<think>t</think>", "### Input", "a <think>",
])  # fmt: skip
def test_other_texts_are_not_remarked_on(text: str, tmp_path: Path) -> None:
    assert look_at(jsonl(tmp_path, [{"instruction": "q", "output": f"{text} x"}])).remarks == []


def test_thoughts_without_an_end_placeholders_and_media_are_counted(tmp_path: Path) -> None:
    replies = ["<think>it is", "[deleted]", "<image>\na cat", "<think>it is</think>so", "<think>1</think><think>2", "[THINK]no"]
    remarks = look_at(jsonl(tmp_path, [{"prompt": f"q{n}", "completion": text} for n, text in enumerate(replies)])).remarks
    assert [remark.split(":")[0] for remark in remarks] == ["1 of all 6 rows", "1 of all 6 rows", "3 of all 6 rows"]
    assert "('[deleted]')" in remarks[0] and "('<image>')" in remarks[1] and "does not end" in remarks[2]


@pytest.mark.parametrize(
    ("column", "bad", "good"),
    [
        *[(name, True, False) for name in ("is_bad", "toxic", "deleted", "truncated", "is_rejected", "flagged")],
        *[("finish_reason", reason, "stop") for reason in ("length", "content_filter", "max_tokens")],
        *[("quality", "low", "high"), ("spam", "yes", "no"), ("failed", 1, 0)],
        *[("error", text, empty) for text, empty in (("timeout", None), ("HTTP 500", ""), (True, False), ("x", "None"))],
        *[("error_message", "refused", None), ("exception", "ValueError: x", None)],
        *[
            ("status", word, good)
            for word, good in (("failed", "ok"), ("Error", "success"), ("timeout", 200), ("incomplete", "complete"))
        ],
        *[
            ("score", 0, 1),
            ("score", False, True),
            ("reward", 0.0, 1.0),
            ("verdict", "wrong", "right"),
            ("resolved", False, True),
        ],
        *[("judgement", "incorrect", "correct"), ("pass", "fail", "pass")],
    ],
)
def test_a_row_that_a_column_calls_bad_is_asked_for(column: str, bad: Any, good: Any, tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "output": "a", column: bad if n == 2 else good} for n in range(4)]
    with pytest.raises(UserError, match=f"rows that may not be for training: the column {column} is"):
        look_at(jsonl(tmp_path, rows))
    assert not any(isinstance(found, BadRow) for _, found in look_at(jsonl(tmp_path, rows), format="alpaca").records)
    assert look_at(jsonl(tmp_path, [row | {column: good} for row in rows])).format_name == "alpaca"


@pytest.mark.parametrize("column", ["score", "error_rate", "hint", "error_type"])
def test_a_number_or_a_note_about_a_row_is_no_verdict(column: str, tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "output": "a", column: value} for n, value in enumerate((0.1, 0.7, -1.5))]
    assert look_at(jsonl(tmp_path, rows)).format_name == "alpaca"


@pytest.mark.parametrize("column", ["corrected_output", "Edited Response", "revised_answer", "response", "completion"])
@pytest.mark.parametrize(
    ("format_name", "row"), [("alpaca", {"instruction": "q", "output": "a"}), ("gsm8k", {"question": "q", "answer": "a"})]
)
def test_another_column_of_responses_is_asked_for(column: str, format_name: str, row: dict[str, str], tmp_path: Path) -> None:
    rows = [row, row | {column: "A whole other answer."}]
    with pytest.raises(UserError, match=f"does not read the column {column}(?s:.*): {column}}}' trains on it"):
        look_at(jsonl(tmp_path, rows))
    assert look_at(jsonl(tmp_path, [row | {column: ""}])).format_name == format_name


@pytest.mark.parametrize("column", ["evidence", "knowledge", "source_text", "question_body", "db_schema", "code", "Snippets"])
def test_a_text_that_a_question_is_about_is_asked_for(column: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"does not read the column {column}"):
        look_at(jsonl(tmp_path, [{"question": "q", "answer": "a", column: "e"}]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        *[(text, "another encoding") for text in ("cafÃ©", "itâ€™s", "caf\ufffd")],
        *[(text, "as Python prints it") for text in ("b'hello'", "['a' 'b']", "array(['a'], dtype=object)", "{'text': 'a'}")],
        *[(text, "a missing value") for text in ("none", "TODO", "...", " - ")],
    ],
)
def test_a_text_that_an_export_damaged_is_counted(text: str, told: str, tmp_path: Path) -> None:
    (remark,) = look_at(jsonl(tmp_path, [{"instruction": "q", "output": text}])).remarks
    assert remark.startswith("1 of all 1 row: ") and told in remark


@pytest.mark.parametrize("text", ["NÃO", "['a', 'b']", "[1 2]", "a - b", "naïve café’s “x”", "{'a': 1}", "b'"])
def test_a_text_that_is_only_unusual_is_not(text: str, tmp_path: Path) -> None:
    assert look_at(jsonl(tmp_path, [{"instruction": "q", "output": text}])).remarks == []
