"""AlpacaEval's files: answers as model_outputs.json, verdicts as annotations.json, so that the official tool can take over.

In annotations output_1 is the reference's answer and output_2 the candidate's; a preference is in [1, 2], 2 = output_2.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.config.files import write_text
from ual_ray.errors import UserError
from ual_ray.judge.pairs import as_text

Row = Mapping[str, Any]

OUTPUTS_FILE = "model_outputs.json"
REFERENCE_OUTPUTS_FILE = "reference_outputs.json"
ANNOTATIONS_FILE = "annotations.json"
OPEN_ENDED = "alpaca_eval"


def as_annotations(verdicts: Iterable[Row]) -> list[dict[str, Any]]:
    """Turn rows of `columns.VERDICTS` into AlpacaEval's annotations; a missing verdict is null, pairs without an answer go."""
    return [
        {
            "instruction": instruction(row[col.MESSAGES]),
            "output_1": row[col.TEXT_REFERENCE],
            "output_2": row[col.TEXT_CANDIDATE],
            "generator_1": row[col.REFERENCE],
            "generator_2": row[col.CANDIDATE],
            "preference": row[col.PREFERENCE],
            "annotator": row[col.JUDGE],
        }
        for row in verdicts
        if row[col.TEXT_REFERENCE] is not None and row[col.TEXT_CANDIDATE] is not None
    ]


def export(verdicts: Iterable[Row], folder: Path) -> None:
    """Write annotations.json, and both sides' answers for `alpaca_eval --model_outputs ... --reference_outputs ...`."""
    entries = as_annotations(verdicts)
    write(entries, folder / ANNOTATIONS_FILE)
    for file, number in ((OUTPUTS_FILE, 2), (REFERENCE_OUTPUTS_FILE, 1)):
        names = {"instruction": "instruction", "output": f"output_{number}", "generator": f"generator_{number}"}
        write([{name: entry[key] for name, key in names.items()} for entry in entries], folder / file)


def read_model_outputs(path: Path) -> list[dict[str, Any]]:
    """Read AlpacaEval's outputs of any model as rows for `columns.RESULTS`, so that they can be judged.

    Raises UserError for a file of another form, and for an instruction that has several outputs.
    """
    expected = "a JSON list of objects with 'instruction' and 'output'"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [_result(entry) for entry in content]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError("model outputs cannot be read", got=f"{path}: {error!r}", expected=expected) from error
    if len({row[col.ID] for row in rows}) < len(rows):
        raise UserError(f"{path} answers an instruction twice", got=f"{len(rows)} outputs", expected="one model's outputs")
    return rows


def write(entries: list[dict[str, Any]], path: Path) -> None:
    """Write outputs or annotations as the official tool reads them."""
    write_text(path, json.dumps(entries, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def instruction(messages: col.Messages) -> str:
    """Write what was asked as text, without a last reply; roles are named when there is more than one turn."""
    return as_text(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def _result(entry: Mapping[str, Any]) -> dict[str, Any]:
    text, output = entry["instruction"], entry["output"]
    if not isinstance(text, str) or not isinstance(output, str):
        raise TypeError(f"an output of {type(output).__name__} to an instruction of {type(text).__name__}")
    messages = [col.Message(role="user", content=text)]
    return {
        col.ID: col.content_id(messages),
        col.BENCHMARK: OPEN_ENDED,
        col.SOURCE: entry.get("dataset"),
        col.MESSAGES: messages,
        col.PREDICTION: output,
        col.MODEL: entry.get("generator"),
        col.STATUS: col.STATUS_OK,
    }
