"""Weights in and out, without ranks: loaded as `from_pretrained` loads them, exported so that it loads them again."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from driver_only import DRIVER, elsewhere
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ual_ray.config import LoraConfig
from ual_ray.config.files import SUMS_FILE, damage_in
from ual_ray.errors import UserError
from ual_ray.train import export as exporting
from ual_ray.train import weights
from ual_ray.train.export import Export, export, export_adapter, repeated_parameters
from ual_ray.train.lora import ADAPTER, adapted_layers, add_adapters
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.weights import empty_model, load_weights

CPU = torch.device("cpu")
WRITE = exporting._write

pytestmark = pytest.mark.usefixtures("group")


def load(folder: Path, rank: int | None = None) -> SmoothedCausalLM:
    model = empty_model(str(folder))
    if rank:
        add_adapters(model, LoraConfig(rank=rank))
    load_weights(model, str(folder), CPU)
    return SmoothedCausalLM(model.eval())


def equal(ours: Any, theirs: Any) -> None:
    expected = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    found = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    assert set(found) == set(expected)
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def test_what_is_loaded_is_what_transformers_loads(any_family: str, family_folder: Any) -> None:
    equal(load(family_folder(any_family)).model, AutoModelForCausalLM.from_pretrained(family_folder(any_family)))


@pytest.mark.slow
def test_what_is_exported_is_what_was_loaded(any_family: str, family_folder: Any, tmp_path: Path) -> None:
    folder = family_folder(any_family)
    export(load(folder), Export(str(folder), "# card"), tmp_path / "out")
    equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(folder))
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt2", "phi3"])
def test_adapters_are_merged_as_peft_merges_them(family: str, family_folder: Any, tmp_path: Path) -> None:
    folder = family_folder(family)
    model = load(folder, rank=3)
    for _, layer in adapted_layers(model):
        layer.lora_B[ADAPTER].weight.data.normal_(std=0.1)
    ids = torch.arange(4, 20)[None]
    export(model, Export(str(folder), "# card"), tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(exported(ids).logits, model.logits(ids), rtol=1e-4, atol=1e-4)
    before = load_file(folder / "model.safetensors")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(before)


@pytest.mark.slow
def test_large_models_are_written_in_several_files(family_folder: Any, tmp_path: Path) -> None:
    folder, out = family_folder("llama_untied"), tmp_path / "out"
    export(load(folder), Export(str(folder), "# card", shard_bytes=30_000), out)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files][0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for file in files:
        tensors = load_file(file)
        assert {name for name, home in index["weight_map"].items() if home == file.name} == set(tensors)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 30_000
    assert index["metadata"]["total_size"] == sum(t.nbytes for f in files for t in load_file(f).values())
    equal(AutoModelForCausalLM.from_pretrained(out), AutoModelForCausalLM.from_pretrained(folder))
    # What was exported can be trained again.
    equal(load(out).model, AutoModelForCausalLM.from_pretrained(folder))


def test_an_older_export_is_replaced_whole(family_folder: Any, tmp_path: Path) -> None:
    folder, out = family_folder("llama"), tmp_path / "out"
    out.mkdir()
    (out / "stale").touch()
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "half").touch()
    export(load(folder), Export(str(folder), "# card"), out)
    names = {file.name for file in out.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"} <= names
    assert not names & {"stale", "half"}
    assert not (tmp_path / "out.part").exists()


def test_the_generation_config_of_the_source_leaves_with_the_model(family_folder: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(family_folder("llama"), source)
    model = load(source)
    # As Llama 2 had it: transformers reads it, and refuses to save it.
    settings = {"do_sample": False, "temperature": 0.6, "eos_token_id": 1}
    (source / "generation_config.json").write_text(json.dumps(settings))
    export(model, Export(str(source), "# card"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == settings
    (source / "generation_config.json").unlink()
    export(model, Export(str(source), "# card"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 1


def test_what_prepares_images_leaves_with_the_model(family_folder: Any, tmp_path: Path) -> None:
    """An engine loads Gemma 3 with its processor, also where all prompts are texts."""
    from transformers import AutoImageProcessor

    source = shutil.copytree(family_folder("llama"), tmp_path / "source")
    (source / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 7}}'
    )
    (source / "processor_config.json").write_text('{"processor_class": "Gemma3Processor", "image_seq_length": 256}')
    export(load(source), Export(str(source), "# card"), tmp_path / "out")
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size == {"shortest_edge": 7}
    assert not damage_in(tmp_path / "out") and not (tmp_path / "out" / "video_preprocessor_config.json").exists()


def test_a_tied_head_is_the_embeddings_second_name(family_folder: Any) -> None:
    assert repeated_parameters(load(family_folder("llama"))) == {"model.lm_head.weight"}
    assert repeated_parameters(load(family_folder("llama_untied"))) == set()


@pytest.fixture
def broken(family_folder: Any, tmp_path: Path) -> Any:
    """Copy a model with other weights in it."""

    def copy(change: Any) -> str:
        shutil.copytree(family_folder("llama_untied"), tmp_path / "copy")
        file = tmp_path / "copy" / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
        return str(tmp_path / "copy")

    return copy


def test_missing_weights_are_refused(broken: Any) -> None:
    path = broken(lambda tensors: {name: value for name, value in tensors.items() if "q_proj" not in name})
    with pytest.raises(UserError, match="layers.0.self_attn.q_proj.weight is missing"):
        load_weights(empty_model(path), path, CPU)


def test_weights_of_another_shape_are_refused(broken: Any) -> None:
    path = broken(lambda tensors: tensors | {"lm_head.weight": torch.zeros(7, 32)})
    with pytest.raises(UserError, match="lm_head.weight"):
        load_weights(empty_model(path), path, CPU)


def test_weights_of_the_body_alone_fill_a_tied_model(family_folder: Any, tmp_path: Path) -> None:
    shutil.copytree(family_folder("llama"), tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    save_file({name.removeprefix("model."): value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    equal(load(tmp_path / "copy").model, AutoModelForCausalLM.from_pretrained(family_folder("llama")))
    assert [name for name, _ in adapted_layers(load(tmp_path / "copy", rank=2).model)]


def test_a_model_whose_weights_are_rearranged_is_refused(family_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "rearranged_weights", lambda model: ["Chunk(qkv)"])
    with pytest.raises(UserError, match=r"(?s)cannot be read in shards.*Chunk"):
        load(family_folder("llama"))


def test_safetensors_only(family_folder: Any, tmp_path: Path) -> None:
    shutil.copytree(family_folder("llama"), tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "copy" / "pytorch_model.bin")
    path = str(tmp_path / "copy")
    with pytest.raises(UserError, match="safetensors"):
        load_weights(empty_model(path), path, CPU)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_alone_are_loaded_by_peft(family: str, family_folder: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = family_folder(family)
    model = load(folder, rank=3)
    for _, layer in adapted_layers(model):
        layer.lora_B[ADAPTER].weight.data.normal_(std=0.1)
    export_adapter(model, str(folder), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(4, 20)[None]
    plain = base(ids).logits
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(ids).logits, model.logits(ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, model.logits(ids), atol=1e-2)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (3, str(folder))


@pytest.mark.slow
def test_an_export_in_bfloat16_is_the_rounded_model(any_family: str, family_folder: Any, tmp_path: Path) -> None:
    folder, out = family_folder(any_family), tmp_path / "out"
    export(load(folder), Export(str(folder), "# card", "bfloat16"), out)
    exported = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert exported.dtype == torch.bfloat16
    # What an engine in bfloat16 makes of float32 weights.
    equal(exported, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))


@pytest.mark.parametrize(("family", "kept"), [("glm4_moe", 1), ("ernie4_5_moe", 4)])
def test_weights_that_are_float32_in_any_precision_are_exported_so(
    family: str, kept: int, family_folder: Any, tmp_path: Path
) -> None:
    folder = family_folder(family)
    export(load(folder), Export(str(folder), "# card", "bfloat16"), tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    exact = [name for name, value in after.items() if value.dtype == torch.float32]
    assert len(exact) == kept and all(torch.equal(after[name], before[name]) for name in exact)
    equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto"),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
    )


def test_adapters_are_merged_before_rounding(family_folder: Any, tmp_path: Path) -> None:
    folder = family_folder("llama")
    model = load(folder, rank=3)
    for _, layer in adapted_layers(model):
        layer.lora_B[ADAPTER].weight.data.normal_(std=0.01)
    for dtype in ("float32", "bfloat16"):
        export(model, Export(str(folder), "# card", dtype), tmp_path / dtype)
    whole, rounded = (load_file(tmp_path / dtype / "model.safetensors") for dtype in ("float32", "bfloat16"))
    assert all(torch.equal(rounded[name], value.bfloat16()) for name, value in whole.items())


class Interrupted(Exception):
    pass


def interrupt(model: SmoothedCausalLM, settings: Export, out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> list[str]:
    """Export, and be killed after some files; return their names."""
    written: list[str] = []

    def write(tensors: Any, file: Path) -> None:
        if len(written) == after:
            raise Interrupted
        WRITE(tensors, file)
        written.append(file.name)

    monkeypatch.setattr(exporting, "_write", write)
    with pytest.raises(Interrupted):
        export(model, settings, out)
    monkeypatch.setattr(exporting, "_write", WRITE)
    return written


def test_an_interrupted_export_goes_on(family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = family_folder("llama_untied"), tmp_path / "out"
    settings, model = Export(str(folder), "# card", origin="step-3-abc", shard_bytes=30_000), load(folder)
    written = interrupt(model, settings, out, monkeypatch, after=2)
    part = tmp_path / "out.part"
    before = {name: (part / name).stat().st_mtime_ns for name in written}
    assert len(before) == 2 and not out.exists()
    export(model, settings, out)
    assert {name: (out / name).stat().st_mtime_ns for name in written} == before
    assert not (out / "export.json").exists() and not part.exists()
    equal(AutoModelForCausalLM.from_pretrained(out), AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("damaged", ["model-00001-of-", "export.json", SUMS_FILE])
def test_an_interrupted_export_that_is_damaged_begins_again(
    damaged: str, family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = family_folder("llama_untied"), tmp_path / "out"
    settings, model = Export(str(folder), "# card", origin="step-3-abc", shard_bytes=30_000), load(folder)
    interrupt(model, settings, out, monkeypatch, after=2)
    (file,) = (tmp_path / "out.part").glob(f"{damaged}*")
    file.write_bytes(file.read_bytes()[:-9])
    export(model, settings, out)
    equal(AutoModelForCausalLM.from_pretrained(out), AutoModelForCausalLM.from_pretrained(folder))
    assert damage_in(out) == []


@pytest.mark.parametrize("changes", [{"origin": "step-4-abc"}, {"origin": None}, {"dtype": "bfloat16"}])
def test_files_of_other_weights_are_not_used(
    changes: Any, family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = family_folder("llama_untied"), tmp_path / "out"
    first = Export(str(folder), "# card", origin="step-3-abc", shard_bytes=30_000)
    trained = load(folder)
    interrupt(trained, first, out, monkeypatch, after=2)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    export(trained, replace(first, **changes), out)
    dtype = torch.bfloat16 if "dtype" in changes else torch.float32
    exported = dict(AutoModelForCausalLM.from_pretrained(out, dtype="auto").named_parameters())
    assert all(torch.equal(exported[name], value.to(dtype)) for name, value in trained.model.named_parameters())


class Ranks:
    """Stands for torch.distributed in threads, one per rank."""

    def __init__(self, count: int) -> None:
        self.count, self.local, self.shared = count, threading.local(), list[Any]()
        self.meeting, self.gathered = threading.Barrier(count, timeout=60), [None] * count
        self.files: dict[int, list[str]] = {rank: [] for rank in range(count)}

    def get_rank(self) -> int:
        return int(self.local.rank)

    def get_world_size(self) -> int:
        return self.count

    def barrier(self, group: Any = None) -> None:
        self.meeting.wait()

    def broadcast_object_list(self, values: list[Any], src: int = 0, group: Any = None) -> None:
        if self.get_rank() == src:
            self.shared = list(values)
        self.meeting.wait()
        values[:] = self.shared

    def all_gather_object(self, values: list[Any], value: Any, group: Any = None) -> None:
        self.gathered[self.get_rank()] = value
        self.meeting.wait()
        values[:] = self.gathered
        self.meeting.wait()

    def write(self, tensors: Any, file: Path) -> None:
        WRITE(tensors, file)
        self.files[self.get_rank()].append(file.name)


@pytest.mark.parametrize("on_other_machines", [(), (0, 1, 2), (0,), (1, 2)])
def test_every_rank_writes_its_own_files(
    on_other_machines: tuple[int, ...], family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, one, three = family_folder("llama_untied"), tmp_path / "one", tmp_path / "three"
    settings, model = Export(str(folder), "# card", shard_bytes=30_000), load(folder)
    export(model, settings, one)
    ranks = Ranks(3)
    monkeypatch.setattr(exporting, "dist", ranks)
    monkeypatch.setattr(exporting, "_write", ranks.write)

    def run(rank: int) -> None:
        ranks.local.rank = rank
        if rank in on_other_machines:
            export(model, settings, DRIVER / "three", output=elsewhere(tmp_path, tmp_path / f"copies {rank}"))
        else:
            export(model, settings, three)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    files = sorted(file.name for file in three.glob("*.safetensors"))
    assert len(files) > 3 and sorted(sum(ranks.files.values(), [])) == files
    assert [ranks.files[rank] for rank in range(3)] == [files[rank::3] for rank in range(3)]
    assert {path.name for path in one.iterdir()} == {path.name for path in three.iterdir()}
    for file in [*files, "model.safetensors.index.json", "config.json"]:
        assert (one / file).read_bytes() == (three / file).read_bytes(), file
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("copies")} == {"one", "three"}
    assert damage_in(three) == [] and not [file for file in tmp_path.glob("copies*/**/*") if file.is_file()]
