"""Bad input on the command line: one clear message, exit code 2, no traceback, and nothing started."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

GOOD = {"instruction": "a", "output": "b"}


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def ual(ual_without_ray: Any) -> Any:
    """Run `ual ...` where no Ray is to be started."""
    return ual_without_ray


def refuse(ual: Any, *arguments: object) -> str:
    done = ual(*arguments)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=nowhere.jsonl"], ["data.path does not exist", "nowhere.jsonl"]),
        (["data.path=README.md"], ["unsupported file type", ".jsonl", ".parquet"]),
        (["train.learning_rat=1"], ["unknown key 'train.learning_rat'", "did you mean 'train.learning_rate'?"]),
        (["train.epochs=many"], ["train.epochs", "'many'"]),
        (["engine.kv_cache_gb=100000"], ["does not fit into memory", "engine.kv_cache_gb"]),
        (["model=/no/such/model"], ["model: the directory does not exist", "/no/such/model"]),
        (["tracking.uri=http://127.0.0.1:9"], ["tracking.uri cannot be used", "http://127.0.0.1:9"]),
        (["elicit.estimators=[verbalised]"], ["elicit.estimators", "'verbalized_error'", "got: 'verbalised'"]),
        (["elicit.calibrate_with=nowhere.csv"], ["the labels file does not exist", "nowhere.csv"]),
        (["elicit.adapter=nowhere"], ["elicit.adapter is not a LoRA adapter", "nowhere/adapter_config.json"]),
        (["elicit.templates=nowhere.yaml"], ["elicit.templates cannot be read", "nowhere.yaml"]),
        (["engine.kind=openai"], ["elicit.estimators ['nll']", "a server does not give the likelihood", "engine.kind=vllm"]),
        (
            ["engine.kind=openai", "elicit.estimators=[verbalized_error]", "engine.endpoint.url=http://127.0.0.1:9/v1"],
            ["cannot be reached", "http://127.0.0.1:9/v1"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_settings(ual: Any, tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    message = refuse(ual, "run", f"output={tmp_path / 'out'}", *overrides)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["the data set is empty"]),
        ([{"prompt": "a", "answer": "b"}], ["the format of", "alpaca (instruction, output)", "messages"]),
        ([GOOD, {"instruction": "c", "output": ""}], ["1 of 2 rows", "no response", "data.max_bad_share"]),
        ([GOOD, {"instruction": "c", "output": "d"}], ["split is empty", "2 rows in all"]),
        ([GOOD, "{not json"], ["1 of 2 rows", "not JSON"]),
    ],
    ids=["empty", "unknown format", "no response", "empty split", "not JSON"],
)
def test_bad_data(ual: Any, tmp_path: Path, rows: list[Any], words: list[str]) -> None:
    message = refuse(ual, "run", f"output={tmp_path / 'out'}", f"data.path={write(tmp_path, 'rows.jsonl', rows)}")
    for word in words:
        assert word in message


def test_data_that_is_no_text(ual: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00broken")
    message = refuse(ual, "run", f"output={tmp_path / 'out'}", f"data.path={path}")
    assert "no row that can be read: not UTF-8: line 1" in message


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("{instructoin: a, output: b}", ["unknown column in data.columns: 'instructoin'", "expected: ", "instruction"]),
        ("{instruction: a, output: c}", ["has no column 'c' (for output)", "columns ['a', 'b']"]),
    ],
)
def test_columns_that_are_not_there(ual: Any, tmp_path: Path, columns: str, words: list[str]) -> None:
    data = write(tmp_path, "rows.jsonl", [{"a": "question", "b": "answer"}])
    for command in (["run", f"output={tmp_path / 'out'}", f"data.path={data}"], ["preview", data]):
        message = refuse(ual, *command, f"data.columns={columns}")
        for word in words:
            assert word in message


def test_a_template_that_leaves_out_the_response(ual: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("verbalized_error: Rate {instruction} from {lowest} to {highest}.")
    for command in (["run", f"output={tmp_path / 'out'}"], ["preview", "demo"]):
        message = refuse(ual, *command, f"elicit.templates={path}")
        assert "verbalized_error of" in message and "has the wrong placeholders" in message
        assert "{highest}, {instruction}, {lowest}, {response}, all of them" in message


def test_an_adapter_without_a_rank(ual: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "not a LoRA adapter" in refuse(ual, "elicit", "demo", f"elicit.adapter={tmp_path}", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_that_cannot_be_read(ual: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("id,correct\n1,maybe\n")
    message = refuse(ual, "elicit", "demo", f"elicit.calibrate_with={path}", "--out", tmp_path / "out")
    assert "label is not a boolean" in message and "'maybe'" in message and "label 1" in message
    assert "the input does not exist" in refuse(ual, "inspect", tmp_path / "nowhere", "--labels", path)


def test_a_model_without_weights(ual: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    message = refuse(ual, "run", f"output={tmp_path / 'out'}", f"model={folder}")
    assert "has no weights" in message
    assert "safetensors" in message


def test_an_output_of_another_configuration(ual: Any, small: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "owner.json").write_text(json.dumps({"data.path": "demo", "model": "somebody/else"}))
    message = refuse(ual, "run", *small, f"output={output}")
    assert "belongs to another configuration" in message
    assert "somebody/else" in message


def test_an_output_full_of_somebodys_files(ual: Any, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "was not made by ual" in refuse(ual, "run", *small, f"output={tmp_path}")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_busy_port(ual: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port}" in refuse(ual, "ui", tmp_path, "--port", port)


def test_an_unknown_stage_to_rerun(ual_process: Any) -> None:
    assert "expected: elicit, smooth, train, evaluate" in refuse(ual_process, "run", "--rerun", "everything")


def test_a_relative_output_for_a_job(ual: Any) -> None:
    assert "absolute path" in refuse(ual, "submit", "-c", "jobs/configs/tiny.yaml", "output=runs/x")


def test_a_folder_for_a_job(ual: Any, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    done = ual("submit", "data.path=rows", f"output={tmp_path}/out", cwd=tmp_path)
    assert done.code == 2 and "folders are not uploaded" in done.output, done.output


def test_a_job_server_that_is_away(ual: Any, tmp_path: Path) -> None:
    message = refuse(ual, "submit", "-c", "jobs/configs/tiny.yaml", f"output={tmp_path}", "--address", "http://127.0.0.1:9")
    assert "job server is unreachable" in message
