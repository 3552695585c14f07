"""A changed bit or a missing end of what training writes is an error that names the file, never another model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import each_damage

from ual_ray.config.checksums import SUMS_FILE, read_sums
from ual_ray.errors import UserError
from ual_ray.models.resolve import model_fingerprint
from ual_ray.train.export import ADAPTER_WEIGHTS, CARD, Export, export, export_adapter
from ual_ray.train.lora import add_adapters
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.weights import empty_model, load_weights

pytestmark = pytest.mark.usefixtures("group")


# --- exported models ---


def exported(folder: Path, source: Path, shard_bytes: int = 30_000) -> Path:
    model = empty_model(str(source))
    load_weights(model, str(source), torch.device("cpu"))
    export(SmoothedCausalLM(model), Export(str(source), "# card", shard_bytes=shard_bytes), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, family_folder: Any, group: None) -> Path:
    """Export a model in several files."""
    return exported(tmp_path_factory.mktemp("model") / "model", family_folder("llama_untied"))


def test_every_file_of_an_exported_model_is_checked(model: Path) -> None:
    before, files = model_fingerprint(str(model)), sorted(model.iterdir())
    assert {file.name for file in files} - read_sums(model).keys() == {SUMS_FILE, CARD}
    assert len([*model.glob("*.safetensors")]) > 3
    for seed, file in enumerate(file for file in files if file.name != CARD):
        for _ in each_damage(file, seed=seed):
            with pytest.raises(UserError) as caught:
                model_fingerprint(str(model))
            assert file.name in str(caught.value) and str(model) in str(caught.value) and "remove" in str(caught.value)
    assert model_fingerprint(str(model)) == before


def test_a_copy_of_a_model_that_lacks_a_file_is_refused_and_one_with_another_card_is_not(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / CARD).write_text("# My own card")
    assert model_fingerprint(str(copy)) == model_fingerprint(str(model))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"got: tokenizer\.json is missing"):
        model_fingerprint(str(copy))
    # As one of an earlier version or of others.
    (copy / SUMS_FILE).unlink()
    assert model_fingerprint(str(copy)) != model_fingerprint(str(model))


def test_the_list_is_one_that_other_tools_read(model: Path) -> None:
    import subprocess

    found = subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILE], cwd=model, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.count(": OK\n") == len(read_sums(model))


def test_adapters_are_checked_too(family_folder: Any, tmp_path: Path) -> None:
    from ual_ray.config import LoraConfig

    model = empty_model(str(family_folder("llama")))
    add_adapters(model, LoraConfig(rank=2))
    load_weights(model, str(family_folder("llama")), torch.device("cpu"))
    export_adapter(SmoothedCausalLM(model), str(family_folder("llama")), folder := tmp_path / "adapter")
    for _ in each_damage(folder / ADAPTER_WEIGHTS):
        with pytest.raises(UserError, match=ADAPTER_WEIGHTS):
            model_fingerprint(str(folder))
