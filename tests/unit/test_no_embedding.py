"""A tokenizer larger than the model's embedding: rows with such tokens are refused before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from ual_ray import columns as col
from ual_ray import preflight
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.models.resolve import too_few_entries

# Of the 400 tokens of the tests' tokenizer, the first row has none above 317, the second one of 398.
ENTRIES, ALL_ENTRIES = 320, 400
PLAIN, OUTSIDE = "Blue.", "Sunlight is scattered most."
REFUSED = "the tokenizer is larger than the model's embedding"


@pytest.fixture
def model(tmp_path: Path, chat_tokenizer: Callable[[str], Any]) -> Callable[..., str]:
    """Write a model directory with so many entries in its vocabulary, and so many rows in its embedding."""

    def make(entries: int = ENTRIES, rows: int | None = None) -> str:
        folder = tmp_path / f"model-{entries}-{rows}"
        chat_tokenizer("chatml").save_pretrained(folder)
        config = {"model_type": "llama", "vocab_size": entries, "hidden_size": 8, "intermediate_size": 8}
        config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"model.embed_tokens.weight": np.zeros((rows or entries, 8), np.float32)}, folder / "model.safetensors")
        return str(folder)

    return make


def rows_of(path: Path, replies: list[str], split: str) -> Path:
    chats = [[{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": reply}] for reply in replies]
    rows = [{"id": f"{split}{number}", "split": split, "messages": chat, "alpha": 0.1} for number, chat in enumerate(chats)]
    schema = pa.schema([*col.fields(col.ID, col.SPLIT, col.MESSAGES), pa.field(col.ALPHA, pa.float64())])
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("where", "refused"), [("train", True), ("validation", True), (None, False)])
def test_a_dry_run_looks_at_the_rows_of_both_splits(
    where: str | None, refused: bool, model: Callable[..., str], ual_without_ray: Callable[..., Any], tmp_path: Path
) -> None:
    """A validation row was not looked at: the training failed on it."""
    paths = [
        rows_of(tmp_path / f"{split}.parquet", [PLAIN] * 9 + [OUTSIDE if split == where else PLAIN], split)
        for split in ("train", "validation")
    ]
    keys = [f"model={model()}", "train.peak_tflops=1"]
    done = ual_without_ray("train", paths[0], *keys, "--validation", paths[1], "--dry-run", cwd=tmp_path)
    assert (done.code == 2 and REFUSED in done.output and "fix: use the tokenizer that belongs" in done.output) == refused
    assert (done.code == 0) == (not refused), done.output


def data_of(folder: Path, *replies: str) -> str:
    rows = [{"instruction": f"{number}Name a colour.", "output": reply} for number, reply in enumerate(replies)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={folder / 'rows.jsonl'}"


@pytest.mark.parametrize(
    ("reply", "entries", "refused"), [(OUTSIDE, ENTRIES, True), (PLAIN, ENTRIES, False), (OUTSIDE, 400, False)]
)
def test_a_run_is_refused_before_rows_are_scored(
    reply: str, entries: int, refused: bool, model: Callable[..., str], tmp_path: Path
) -> None:
    own = [f"model={model(entries)}", "data.test_share=0", "data.validation_share=0", "runtime.check_memory=false"]
    config = load(None, [data_of(tmp_path, *[PLAIN] * 50, reply), *own])
    preflight.check(config, {"elicit"})
    if not refused:
        preflight.check(config, {"elicit", "train"})
        return
    with pytest.raises(UserError, match=f"(?s){REFUSED}.*1 row: token 398 is outside of .* 320 entries.*fix: "):
        preflight.check(config, {"elicit", "train"})


def test_ids_of_a_tokenizer_are_compared_with_the_vocabulary(model: Callable[..., str]) -> None:
    assert too_few_entries(model(ALL_ENTRIES)) is None
    assert too_few_entries(model(ALL_ENTRIES - 1)) == ALL_ENTRIES - 1
    folder = Path(model(ALL_ENTRIES))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for change in ({"added_tokens": [{"id": 400, "content": "new"}]}, {"model": {"vocab": [["a", 0.0]] * 401}}):
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer | change))
        assert too_few_entries(str(folder)) == ALL_ENTRIES
    (folder / "tokenizer.json").unlink()
    assert too_few_entries(str(folder)) is None


@pytest.mark.parametrize("command", [["train", "t.parquet", "--dry-run"], ["train", "t.parquet"], ["run"]])
def test_a_vocabulary_larger_than_the_embedding_is_refused_by_every_command(
    command: list[str], model: Callable[..., str], ual_without_ray: Callable[..., Any], tmp_path: Path
) -> None:
    """The dry run passed, as it reads config.json; the weights could not be loaded after the scoring."""
    rows_of(tmp_path / "t.parquet", [PLAIN] * 9, "train")
    data = data_of(tmp_path, *(f"Blue {number}." for number in range(50)))
    keys = [f"model={model(ALL_ENTRIES, ENTRIES)}", *([data, f"output={tmp_path / 'out'}"] if command == ["run"] else [])]
    done = ual_without_ray(*command, *keys, "runtime.check_memory=false", cwd=tmp_path)
    assert done.code == 2 and "the embedding in the weights is smaller than the vocabulary of config.json" in done.output
    assert "320 rows" in done.output and "vocab_size 400" in done.output and "fix: correct vocab_size" in done.output
