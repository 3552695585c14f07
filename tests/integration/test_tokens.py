"""Rendering, here and under Ray Data: what is dropped and counted, one store whatever the blocks, nothing rendered twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray import columns as col
from ual_ray.config import Config, TrainConfig
from ual_ray.errors import UserError
from ual_ray.train import tokenize as tokens
from ual_ray.train.token_store import TokenStore
from ual_ray.train.tokenize import DROPPED_FILE, TOKENS_FOLDER, render

pytestmark = pytest.mark.usefixtures("local_ray")

SMOOTHED = pa.schema(
    [
        *((col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE)),
        *((col.UNCERTAINTY, pa.float64()), (col.ALPHA, pa.float64())),
    ]
)
ROWS = pa.schema([SMOOTHED.field(name) for name in (col.ID, col.SPLIT, col.MESSAGES)])


def row(number: int, reply: str, **values: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Name colour {number}."}, {"role": "assistant", "content": reply}]
    return {
        col.ID: f"{number:04d}",
        col.SPLIT: col.TRAIN,
        col.MESSAGES: messages,
        col.UNCERTAINTY: number / 1000,
        col.ALPHA: number / 2000,
    } | values


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, rows_per_group: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
    pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    return path


@pytest.fixture
def config(tiny_model: Path) -> Config:
    return Config(model=str(tiny_model), train=TrainConfig(max_length=64))


@pytest.fixture
def smoothed(tmp_path: Path) -> Path:
    bad = row(3, "x", **{col.MESSAGES: [{"role": "user", "content": "Name a colour."}]})
    late = row(
        4, "Blue.", **{col.MESSAGES: [{"role": "user", "content": "colour " * 99}, {"role": "assistant", "content": "Blue."}]}
    )
    return write(tmp_path / "smoothed.parquet", [row(1, "Blue."), row(2, "Green. " * 99), bad, late], SMOOTHED)


@pytest.mark.parametrize("in_process", [tokens.ROWS_IN_PROCESS, 0], ids=["in_process", "by_actors"])
def test_what_loses_every_label_is_dropped_and_counted(
    config: Config, smoothed: Path, tmp_path: Path, in_process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "ROWS_IN_PROCESS", in_process)
    held_out = [row(5, "Red.", **{col.SPLIT: col.VALIDATION}), row(6, "Red."), row(7, "Red.", **{col.SPLIT: "test"})]
    rows = write(tmp_path / "rows" / "0.parquet", held_out, ROWS).parent
    counts = render(config, smoothed, rows, tmp_path)
    train, validation = (TokenStore.open(tmp_path / TOKENS_FOLDER, split, 2) for split in (col.TRAIN, col.VALIDATION))
    assert counts == {
        "train_rows": 2,
        "validation_rows": 1,
        "sequences": 3,
        "truncated_rows": 1,
        "endless_rows": 0,
        "train_tokens": int(train.lengths.sum()),
        "dropped_rows": 2,
        "dropped_share": 0.4,
        "dropped_reasons": {"no_target": 2},
        "dropped_error": "",
    }
    assert (tmp_path / DROPPED_FILE).read_text() == "0003\tno_target\n0004\tno_target\n"
    assert list(train.ids) == ["0001", "0002"] and list(validation.ids) == ["0005"]
    assert train.lengths[1] == 64
    assert [sample.alpha for sample in train] == [0.0005, 0.001]
    assert [sample.uncertainty_bin for sample in train] == [0, 1]
    assert (validation[0].alpha, validation[0].uncertainty_bin) == (0.0, -1)


def test_overlong_rows_are_dropped_where_that_is_asked(config: Config, smoothed: Path, tmp_path: Path) -> None:
    train = config.train.model_copy(update={"overlong": "drop"})
    counts = render(config.model_copy(update={"train": train}), smoothed, None, tmp_path)
    assert (counts["train_rows"], counts["truncated_rows"], counts["validation_rows"]) == (1, 0, 0)
    assert counts["dropped_reasons"] == {"no_target": 1, "overlong": 2}


def test_a_row_the_template_refuses_is_dropped_with_what_it_said(
    smoothed: Path, tmp_path: Path, tiny_model: Path, chat_tokenizer: Callable[[str], Any]
) -> None:
    model = tmp_path / "mistral"
    chat_tokenizer("mistral").save_pretrained(model)
    (model / "config.json").write_text((tiny_model / "config.json").read_text())
    system = [{"role": "system", "content": "Be brief."}, *row(8, "Blue.")[col.MESSAGES]]
    path = write(tmp_path / "s.parquet", [row(8, "", **{col.MESSAGES: system}), row(9, "Blue.")], SMOOTHED)
    for weights in tiny_model.glob("*.safetensors"):
        (model / weights.name).symlink_to(weights)
    counts = render(Config(model=str(model)), path, None, tmp_path)
    assert counts["dropped_reasons"] == {"not_renderable": 1}
    assert (tmp_path / DROPPED_FILE).read_text().startswith("0008\tnot_renderable\tthe chat template rejects")


def test_the_store_is_the_same_whatever_the_blocks(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(number, f"Blue, with {number} drops of green.") for number in range(300)]
    stores = []
    for name, shuffled, block, in_process in (("here", rows, 7, 300), ("one", rows, 1000, 299), ("many", rows[::-1], 7, 299)):
        monkeypatch.setattr(tokens, "SMALLEST_BLOCK", block)
        monkeypatch.setattr(tokens, "ROWS_IN_PROCESS", in_process)
        path = write(tmp_path / name / "smoothed.parquet", shuffled, SMOOTHED, rows_per_group=50)
        render(config, path, None, tmp_path / name)
        stores.append(TokenStore.open(tmp_path / name / TOKENS_FOLDER, col.TRAIN, 4))
    here, *by_actors = stores
    files = {name: len(list((tmp_path / name / TOKENS_FOLDER).glob("*.arrow"))) for name in ("here", "one", "many")}
    assert files["here"] == files["one"] == 1 and files["many"] > 10
    for other in by_actors:
        assert list(here.ids) == list(other.ids) == [row[col.ID] for row in rows]
        assert (here.lengths == other.lengths).all() and (here.target_tokens == other.target_tokens).all()
        for ours, theirs in zip(here, other, strict=True):
            assert np.array_equal(ours.input_ids, theirs.input_ids) and np.array_equal(ours.labels, theirs.labels)
            assert (ours.alpha, ours.uncertainty_bin) == (theirs.alpha, theirs.uncertainty_bin)


def test_nothing_is_rendered_twice_unless_what_it_is_made_from_changes(
    config: Config, smoothed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = render(config, smoothed, None, tmp_path)
    (tmp_path / "tokens.part").mkdir()  # what a crash in the middle of another attempt would leave
    with monkeypatch.context() as patched:
        patched.setattr(tokens, "_summaries", None)
        assert render(config, smoothed, None, tmp_path) == first
    shorter = config.model_copy(update={"train": TrainConfig(max_length=32)})
    assert render(shorter, smoothed, None, tmp_path)["train_tokens"] < first["train_tokens"]
    assert json.loads((tmp_path / TOKENS_FOLDER / "rendered.json").read_text())["counts"]["train_rows"] == 2


@pytest.mark.parametrize("change", [{col.MESSAGES: [{"role": "user", "content": "Name."}]}, {col.SPLIT: "test"}])
def test_no_training_row_is_an_error_that_says_what_to_do(change: dict[str, Any], config: Config, tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet", [row(2, "Blue.", **change)], SMOOTHED)
    with pytest.raises(UserError, match="(?s)no training row is left.*dropped.*train.max_length"):
        render(config, path, None, tmp_path)


def test_a_file_without_alpha_is_an_error_that_names_it(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="(?s)lacks columns.*alpha"):
        render(config, write(tmp_path / "s.parquet", [row(1, "Blue.")], ROWS), None, tmp_path)
