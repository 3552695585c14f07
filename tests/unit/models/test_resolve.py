"""Model names: what can be refused in milliseconds, and parameters counted from headers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from ual_ray.errors import UserError
from ual_ray.models import resolve
from ual_ray.models.resolve import (
    DEMO_NAME,
    cache_folder,
    check_found,
    check_model,
    model_fingerprint,
    parameter_count,
    resolve_model,
    stop_tokens,
)


def model_directory(folder: Path, weights: str = "model.safetensors") -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, folder / weights)
    return folder


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "~/no/such", "one/two/three"])
def test_a_directory_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)elicit\.model: the directory does not exist.*{name}.*'demo'"):
        check_model(name, "elicit.model")


def test_a_hub_name_that_is_neither_in_the_cache_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"(?s)judge\.model: the hub gives no such model.*got: nobody/none: .*HF_TOKEN"):
        check_found("nobody/none", "judge.model")


def test_a_hub_name_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    check_found("owner/cached", "model")


@pytest.mark.parametrize("name", ["two words", "-x", "a/b?", "ends."])
def test_a_name_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(UserError, match=r"(?s)elicit\.model is neither a directory nor a name that the hub can have.*got: "):
        check_model(name, "elicit.model")


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_hub_names_are_left_to_the_hub(name: str) -> None:
    check_model(name)
    assert resolve_model(name) == name
    assert parameter_count(name) is None


@pytest.mark.parametrize(("shards", "present", "expected"), [(1, 1, 6), (2, 2, 12), (2, 1, None), (0, 0, None)])
def test_a_model_in_the_hubs_cache_is_counted_where_all_of_it_is_there(
    shards: int, present: int, expected: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--cached" / "snapshots" / "0a"
    folder.mkdir(parents=True)
    (refs := folder.parents[1] / "refs").mkdir()
    (refs / "main").write_text("0a")
    (folder / "config.json").write_text("{}")
    names = ["model.safetensors"] if shards == 1 else [f"model-{n}.safetensors" for n in range(shards)]
    for name in names[:present]:
        save_file({name: np.zeros((2, 3), np.float32)}, folder / name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))
    assert parameter_count("owner/cached") == expected
    assert parameter_count("no name/of a hub") is None
    for damaged in ("{", "[]", "{}"):
        (folder / "model.safetensors.index.json").write_text(damaged)
        with nullcontext() if shards == 1 else pytest.raises(UserError, match=r"(?s)index\.json.*hub's cache"):
            assert parameter_count("owner/cached") == expected


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"(?s)model: the directory has no config\.json.*{tmp_path}"):
        check_model(str(tmp_path))


@pytest.mark.parametrize("present", ["pytorch_model.bin", "model-00001-of-00002.safetensors"])
def test_a_directory_without_weights(present: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / present).touch()
    with pytest.raises(UserError, match="(?s)has no weights.*model.safetensors") as error:
        check_model(str(tmp_path))
    assert present in str(error.value)


def test_a_file_is_not_a_model_directory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(UserError, match="not a directory"):
        check_model(str(path))


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00001-of-00001.safetensors"])
def test_a_whole_directory_is_accepted(weights: str, tmp_path: Path) -> None:
    model_directory(tmp_path, weights)
    if weights != "model.safetensors":
        (tmp_path / "model.safetensors.index.json").write_text("{}")
    check_model(str(tmp_path))
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def with_embedding(folder: Path, name: str, rows: int, config: dict[str, object], file: str = "model.safetensors") -> str:
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: np.zeros((rows, 2), np.float16), "model.layers.0.mlp.weight": np.zeros((900, 2), np.float16)}
    save_file(weights, folder / file)
    return str(folder)


LLAMA = "model.embed_tokens.weight"
VOCABULARY: dict[str, object] = {"vocab_size": 700}


@pytest.mark.parametrize("check", [check_model, check_found, lambda name, key: resolve_model(name)])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, VOCABULARY) for name in (LLAMA, "transformer.wte.weight", "gpt_neox.embed_in.weight")),
        ("model.language_model.embed_tokens.weight", {"vocab_size": 5, "text_config": VOCABULARY}),
        (LLAMA, {**VOCABULARY, "text_config": {}}),
    ],
)
def test_a_vocabulary_larger_than_the_embedding_is_refused(
    name: str, config: dict[str, object], check: Callable[[str, str], object], tmp_path: Path
) -> None:
    """A token between the two has no embedding, and the weights cannot be loaded."""
    with pytest.raises(UserError, match=r"(?s)model: the embedding in the weights is smaller.*600 rows.*700.*fix: "):
        check(with_embedding(tmp_path, name, 600, config), "model")


@pytest.mark.parametrize(
    ("name", "rows", "config"),
    [
        *((LLAMA, 700, VOCABULARY), (LLAMA, 704, VOCABULARY), ("a.weight", 600, VOCABULARY)),
        *((LLAMA, 600, {}), (LLAMA, 600, {"vocab_size": None})),
    ],
)
def test_an_embedding_that_has_all_or_is_not_known_is_accepted(
    name: str, rows: int, config: dict[str, object], tmp_path: Path
) -> None:
    check_model(with_embedding(tmp_path, name, rows, config))


def test_the_embedding_is_found_in_any_file_also_in_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_embedding(tmp_path, LLAMA, 600, VOCABULARY, "model-00002-of-00002.safetensors")
    save_file({"model.norm.weight": np.zeros(2, np.float16)}, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {LLAMA: "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(UserError, match="smaller than the vocabulary"):
        check_model(str(tmp_path))
    there = {"config.json", "model.safetensors.index.json"}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file) if file in there else None
    )
    with pytest.raises(UserError, match=r"elicit\.model: the embedding in the weights is smaller"):
        check_found("owner/cached", "elicit.model")


@pytest.mark.parametrize("content", [b"", b"\x80", b"\xff" * 9, b"\x05" + bytes(7) + b"{...}", b"\2" + bytes(7) + b"[]"])
def test_damaged_weights_are_named(content: bytes, tmp_path: Path) -> None:
    model = with_embedding(tmp_path, LLAMA, 700, VOCABULARY)
    (tmp_path / "model.safetensors").write_bytes(content)
    for read in (check_model, parameter_count):
        with pytest.raises(UserError, match=r"(?s)weights is damaged.*model\.safetensors.*fix: download it again"):
            read(model)


def test_home_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tiny").mkdir()
    model_directory(tmp_path / "tiny")
    assert resolve_model("~/tiny") == str(tmp_path / "tiny")


def test_parameters_are_counted_over_all_files(tmp_path: Path) -> None:
    model_directory(tmp_path, "model-00001-of-00002.safetensors")
    assert parameter_count(str(tmp_path)) == 3 * 4 + 5
    save_file(
        {"c": np.zeros((2, 2, 2), np.float32), "scalar": np.zeros((), np.float32)},
        tmp_path / "model-00002-of-00002.safetensors",
        metadata={"format": "pt"},
    )
    assert parameter_count(str(tmp_path)) == 3 * 4 + 5 + 8 + 1


def test_a_directory_without_weights_has_no_count(tmp_path: Path) -> None:
    assert parameter_count(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"UAL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/ual_ray"),
        ({}, "/home/x/.cache/ual_ray"),
    ],
)
def test_the_cache_folder(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UAL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/x", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_a_converted_demo_is_found_and_not_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAL_CACHE", str(tmp_path))
    (tmp_path / DEMO_NAME).mkdir()
    model_directory(tmp_path / DEMO_NAME)
    assert resolve_model("demo") == str(tmp_path / DEMO_NAME)
    assert parameter_count("demo") == 17


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    model_directory(tmp_path)
    before = model_fingerprint(str(tmp_path))
    (tmp_path / "notes.txt").write_text("no part of the model")
    assert model_fingerprint(str(tmp_path)) == before
    for name in ("config.json", "chat_template.jinja", "tokenizer.model", "vocab.txt", "merges.txt"):
        (tmp_path / name).write_text("{}")
        assert model_fingerprint(str(tmp_path)) != before, name
        before = model_fingerprint(str(tmp_path))


@pytest.mark.parametrize(("kept_bytes", "cache"), [(0, "cache"), (0, "a file"), (1 << 30, "cache")], ids=str)
def test_downloads_of_one_model_are_one_and_changed_weights_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, cache: str
) -> None:
    """A cache that cannot be written changes nothing but the time."""
    (tmp_path / "a file").touch()
    monkeypatch.setenv("UAL_CACHE", str(tmp_path / cache))
    monkeypatch.setattr(resolve, "KEPT_BYTES", kept_bytes)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    model_directory(first)
    shutil.copytree(first, second)
    weights = second / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    before = model_fingerprint(str(first))
    assert model_fingerprint(str(second)) == before, "other times, the same content"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(1, 1))
    assert model_fingerprint(str(second)) != before, "another last byte, with the size and time of before"


def test_a_large_file_is_read_once_by_all_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resolve, "KEPT_BYTES", 0)
    (tmp_path / "model").mkdir()
    model_directory(tmp_path / "model")
    before = model_fingerprint(str(tmp_path / "model"))

    def read(*_: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(resolve, "hash_once", read)
    assert model_fingerprint(str(tmp_path / "model")) == before
    os.utime(tmp_path / "model" / "model.safetensors", ns=(1, 1))
    with pytest.raises(AssertionError, match="read again"):
        model_fingerprint(str(tmp_path / "model"))


def test_the_fingerprint_of_a_hub_name_is_the_name() -> None:
    assert model_fingerprint("org/model") == "org/model"


@pytest.mark.parametrize(
    ("given", "found"), [(2, {2}), ([2, 7], {2, 7}), (None, set()), ("</s>", set()), ([[1], 3], {3}), ({"id": 1}, set())]
)
def test_tokens_at_which_generation_stops_are_numbers(given: object, found: set[int], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": given}))
    assert stop_tokens(str(tmp_path)) == found
