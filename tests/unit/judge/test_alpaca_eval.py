"""AlpacaEval's files: what leaves can be read back, and has the official tool's columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ual_ray import columns as col
from ual_ray.columns import Message
from ual_ray.errors import UserError
from ual_ray.judge.alpaca_eval import as_annotations, instruction, read_model_outputs, write
from ual_ray.parquet import read_table, write_rows


def result(text: str, answer: str | None, **values: Any) -> dict[str, Any]:
    messages = [Message(role="user", content=text)]
    return {"id": col.content_id(messages), "messages": messages, "prediction": answer, "model": "ual", "source": None} | values


def verdict(preference: float | None, **values: Any) -> dict[str, Any]:
    row = {name: None for name in col.VERDICTS.names} | {
        "messages": [Message(role="user", content="Say “hi”.")],
        "candidate": "ual",
        "reference": "sft",
        "text_candidate": "hi ☺",
        "text_reference": "hello",
        "preference": preference,
        "judge": "big",
    }
    return row | values


def test_outputs_come_back(tmp_path: Path) -> None:
    rows = [result("Say “hi”.", "hi ☺", source="koala"), result("Go.", "")]
    names = {"instruction": "messages", "output": "prediction", "generator": "model", "dataset": "source"}
    entries = [{name: row[key] for name, key in names.items()} for row in rows]
    write([entry | {"instruction": entry["instruction"][0]["content"]} for entry in entries], tmp_path / "model_outputs.json")
    back = read_model_outputs(tmp_path / "model_outputs.json")
    assert [{key: row[key] for key in rows[0]} for row in back] == rows
    write_rows(back, col.RESULTS, tmp_path / "rows.parquet")
    assert set(read_table(tmp_path / "rows.parquet")["id"].to_pylist()) == {row["id"] for row in rows}


def test_annotations_by_hand(tmp_path: Path) -> None:
    rows = [verdict(1.8), verdict(None), verdict(None, text_candidate=None)]
    write(as_annotations(rows), tmp_path / "annotations.json")
    first, second = json.loads((tmp_path / "annotations.json").read_text())
    assert first == {
        "instruction": "Say “hi”.",
        "output_1": "hello",
        "output_2": "hi ☺",
        "generator_1": "sft",
        "generator_2": "ual",
        "preference": 1.8,
        "annotator": "big",
    }
    assert second["preference"] is None


def test_several_turns_are_named_and_a_last_reply_is_left_out() -> None:
    turns = [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    assert instruction([Message(role=role, content=text) for role, text in turns]) == "User: One?\n\nAssistant: 1\n\nUser: Two?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read"),
        ("3", "cannot be read"),
        ('[{"instruction": "a"}]', "cannot be read"),
        ('[{"instruction": "a", "output": null}]', "cannot be read"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "c"}]', "twice"),
    ],
)
def test_files_that_will_not_do(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_model_outputs(path)
