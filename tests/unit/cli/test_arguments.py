"""The configuration that a command reads from its options, and the completion of keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.cli.arguments import complete_key, load
from ual_ray.config.load import load as load_config
from ual_ray.errors import UserError


@pytest.mark.parametrize("text", ["answers #2.jsonl", "2024", "a: b.jsonl", "[x].jsonl", "null", 'müller\'s "rows".csv', "a,b"])
def test_an_argument_is_taken_as_the_text_it_is(text: str) -> None:
    assert load(None, None, {"data.path": text}).data.path == text


@pytest.mark.slow
@given(st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc"), exclude_characters="$\\/.~"), min_size=1))
def test_any_text_is_taken_as_it_is(text: str) -> None:
    assert load(None, None, {"data.path": text}).data.path == text


def test_arguments_and_overrides_win_over_the_file_and_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("data: {path: file.jsonl}\nseed: 1\ntrain: {epochs: 5}\n")
    with pytest.raises(UserError, match=r"data\.path is given twice"):
        load(tmp_path / "my.yaml", ["data.path=override.jsonl", "seed=2"], {"data.path": "argument.jsonl"})
    config = load(tmp_path / "my.yaml", ["seed=2"], {"data.path": "argument.jsonl"})
    assert (config.data.path, config.seed, config.train.epochs) == ("argument.jsonl", 2, 5)


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    config = load(None, ["data.path=rows.jsonl", "model=somebody/model", "train.storage=here", "judge.model=demo"])
    assert config.data.path == str(tmp_path / "rows.jsonl")
    assert (config.model, config.judge.model, config.train.storage) == ("somebody/model", "demo", str(tmp_path / "here"))
    assert load(None, ["train.storage=s3://bucket/runs"]).train.storage == "s3://bucket/runs"


@pytest.mark.parametrize("key", ["output", "data.path", "model", "train.storage", "evaluate.benchmarks.gsm8k.path"])
@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a" * 5000, "a" * 300, '"a\\0b"'])
def test_a_path_that_cannot_be_is_an_error_with_its_key(key: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"(?s){key} cannot be a path here.*got: "):
        load(None, [f"{key}={name}"])


def test_settings_of_an_accelerate_file_replace_its_name(tmp_path: Path) -> None:
    file = tmp_path / "fsdp.yaml"
    file.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_activation_checkpointing: true}\n")
    train = load(None, [f"train.accelerate_config={file}"]).train
    assert (train.accelerate_config, train.activation_checkpointing) == (None, True)


def test_keys_are_completed_and_valid() -> None:
    assert complete_key("train.ep") == ["train.epochs="]
    assert {"arms.ual.map=", "evaluate.benchmarks.gsm8k.path=", "seed="} <= set(complete_key(""))
    config = load_config()
    for item in complete_key("train."):
        value = getattr(config.train, item.removeprefix("train.").split(".")[0].rstrip("="))
        assert value is not None or load_config(None, [f"{item}null"]) == config
