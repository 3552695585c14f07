"""A changed bit or a missing end of what training writes is an error that names the file, never another model."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest
import torch
from damage import damages, each_damage, write
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from ual_ray import columns as col
from ual_ray.config.files import SUMS_FILE, read_sums, sums_of, write_sums
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import write_table
from ual_ray.train.checkpoint import Checkpoints, newest_checkpoint
from ual_ray.train.export import ADAPTER_WEIGHTS, CARD, Export, export, export_adapter
from ual_ray.train.lora import add_adapters
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.progress import Progress
from ual_ray.train.token_store import TokenStore, check_store
from ual_ray.train.tokenize import TOKENS_FOLDER, render
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_copy_of_a_model_that_lacks_a_file_is_refused_and_one_with_another_card_is_not(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / CARD).write_text("# My own card")
    assert model_fingerprint(str(copy)) == model_fingerprint(str(model))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"got: tokenizer\.json of checksums\.sha256 is missing"):
        model_fingerprint(str(copy))
    # As one of an earlier version or of others.
    (copy / SUMS_FILE).unlink()
    assert model_fingerprint(str(copy)) != model_fingerprint(str(model))


def test_the_list_is_one_that_other_tools_read(model: Path) -> None:
    import subprocess

    found = subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILE], cwd=model, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.count(": OK\n") == len(read_sums(model))


@pytest.mark.slow
def test_adapters_are_checked_too(family_folder: Any, tmp_path: Path) -> None:
    from ual_ray.config import LoraConfig

    model = empty_model(str(family_folder("llama")))
    add_adapters(model, LoraConfig(rank=2))
    load_weights(model, str(family_folder("llama")), torch.device("cpu"))
    export_adapter(SmoothedCausalLM(model), str(family_folder("llama")), folder := tmp_path / "adapter")
    for _ in each_damage(folder / ADAPTER_WEIGHTS):
        with pytest.raises(UserError, match=ADAPTER_WEIGHTS):
            model_fingerprint(str(folder))


# --- checkpoints ---

FILES = (".metadata", "__0_0.distcp", "progress.json", SUMS_FILE)
STORAGES = ["local", "other"]


def storage(kind: str, folder: Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """Get this machine's file system, or one that torch knows nothing of."""
    local = pyarrow.fs.LocalFileSystem()
    return (local, str(folder)) if kind == "local" else (pyarrow.fs.SubTreeFileSystem(str(folder.parent), local), folder.name)


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(4, 3)
    return model, torch.optim.AdamW(model.parameters())


@pytest.fixture(params=STORAGES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Save steps 1 and 2; return the kind of storage and the folder."""
    checkpoints = Checkpoints(*storage(request.param, tmp_path / "whole"), keep=2)
    for step in (1, 2):
        checkpoints.save(*small(), Progress("plan", 7, step=step, best_step=1))
    checkpoints.wait()
    return request.param, tmp_path / "whole"


def step_folder(root: Path, step: int) -> Path:
    (folder,) = root.glob(f"step-0000000{step}-*")
    return folder


def opened(kind: str, root: Path) -> Checkpoints:
    return Checkpoints(*storage(kind, root), keep=2)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_it_is_named(
    name: str, saved: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, whole = saved
    assert {file.name for file in step_folder(whole, 2).iterdir()} == {*FILES}
    for number, content in enumerate(damages((step_folder(whole, 2) / name).read_bytes(), seed=len(name))):
        root = Path(shutil.copytree(whole, tmp_path / str(number)))
        (damaged := step_folder(root, 2) / name).write_bytes(content)
        caplog.clear()
        found = opened(kind, root).newest()
        assert found is not None and found.progress.step == 1
        assert f"removing {storage(kind, root)[1]}/{damaged.parent.name}, which is damaged: " in caplog.text
        # A list that is damaged differs from a file that is not.
        assert name == SUMS_FILE or f"which is damaged: {name} " in caplog.text
        # It must not be taken for the newest when it is step 2's turn again.
        assert [folder.name for folder in root.iterdir()] == [step_folder(root, 1).name]


def test_a_checkpoint_that_lacks_a_file_is_damaged(saved: tuple[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    kind, root = saved
    (step_folder(root, 2) / "__0_0.distcp").unlink()
    found = opened(kind, root).newest()
    assert found is not None and found.progress.step == 1 and "__0_0.distcp of checksums.sha256 is missing" in caplog.text


@pytest.mark.slow
def test_without_an_intact_checkpoint_all_are_named_and_none_is_removed(saved: tuple[str, Path]) -> None:
    kind, root = saved
    for step in (1, 2):
        file = step_folder(root, step) / "__0_0.distcp"
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="(?s)no checkpoint is intact.*step-00000002-.*step-00000001-.*from a copy, or remove"):
        opened(kind, root).newest()
    assert len([*root.glob("*/progress.json")]) == 2


def test_a_storage_that_does_not_answer_is_no_damage(saved: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> str:
        raise OSError("timed out")

    kind, root = saved
    monkeypatch.setattr("ual_ray.train.checkpoint.digest_of", away)
    with pytest.raises(UserError, match=r"(?s)step-00000002-\w+ cannot be read.*timed out"):
        opened(kind, root).newest()
    assert len([*root.glob("*/progress.json")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_a_checkpoint_of_an_earlier_version_is_taken_unless_its_progress_is_damaged(
    saved: tuple[str, Path], *, cut: bool
) -> None:
    kind, root = saved
    (step_folder(root, 2) / SUMS_FILE).unlink()
    file = step_folder(root, 2) / "progress.json"
    file.write_bytes(file.read_bytes()[: 20 if cut else None])
    found = opened(kind, root).newest()
    assert found is not None and found.progress.step == (1 if cut else 2)


@pytest.mark.slow
def test_what_is_asked_for_by_name_is_refused_when_it_is_damaged(saved: tuple[str, Path], tmp_path: Path) -> None:
    kind, root = saved
    checkpoints = opened(kind, root)
    first, second = checkpoints.saved()
    (file,) = root.glob("step-00000001-*/*.distcp")
    for content in damages(file.read_bytes(), flips=3):
        write(file, content)
        with pytest.raises(UserError, match=r"(?s)step-00000001-\w+ is damaged.*__0_0\.distcp"):
            checkpoints.check(first)
    checkpoints.check(second)
    # Of another training, the newest is taken.
    other = tmp_path / "training"
    shutil.copytree(root, other / "checkpoints")
    chosen = newest_checkpoint(other)
    (chosen / ".metadata").write_bytes(b"")
    with pytest.raises(
        UserError, match=f"(?s){re.escape(str(chosen))} is damaged.*metadata does not match.*or remove it: the newest"
    ):
        checkpoints.load_other(str(chosen), *small())


class Forged:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["metadata", "numbers"])
def test_a_forged_checkpoint_runs_no_code(saved: tuple[str, Path], tmp_path: Path, where: str) -> None:
    kind, root = saved
    folder, mark = step_folder(root, 2), tmp_path / "was here"
    if where == "metadata":
        (folder / ".metadata").write_bytes(pickle.dumps(Forged(mark)))
    else:
        file, at = folder / "__0_0.distcp", pickle.loads((folder / ".metadata").read_bytes())
        place = next(info for index, info in at.storage_data.items() if index.fqn.endswith(".lr"))
        torch.save(Forged(mark), forged := io.BytesIO())
        place.offset, place.length = file.stat().st_size, len(forged.getvalue())
        file.write_bytes(file.read_bytes() + forged.getvalue())
        (folder / ".metadata").write_bytes(pickle.dumps(at))
    write_sums(folder, sums_of([folder / name for name in read_sums(folder)]))
    checkpoints = opened(kind, root)
    newest = checkpoints.newest()
    assert newest is not None and newest.progress.step == 2
    with pytest.raises((UserError, CheckpointException), match="mkdir"):
        checkpoints.load(newest, *small())
    assert not mark.exists()


class OlderPickler(pickle.Pickler):
    """Pickles members of an enumeration as Python 3.11.0 to 3.11.3 do, and in place of one what is given."""

    def __init__(self, file: Any, instead: tuple[Any, str] | None = None) -> None:
        super().__init__(file)
        self.instead = instead

    def reducer_override(self, value: Any) -> Any:
        return (getattr, self.instead or (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


@pytest.mark.slow
def test_checkpoints_of_older_pythons_are_read(saved: tuple[str, Path]) -> None:
    kind, root = saved
    folder = step_folder(root, 2)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    checkpoints = opened(kind, root)
    for instead in (None, (Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "__class__")):
        OlderPickler(written := io.BytesIO(), instead).dump(metadata)
        assert b"getattr" in written.getvalue()
        (folder / ".metadata").write_bytes(written.getvalue())
        write_sums(folder, sums_of([folder / name for name in read_sums(folder)]))
        newest = checkpoints.newest()
        assert newest is not None and newest.progress.step == 2
        with pytest.raises((UserError, CheckpointException), match="is not of a checkpoint") if instead else nullcontext():
            checkpoints.load(newest, *small())


# --- rendered rows ---


def smoothed(file: Path) -> Path:
    """Write rows of training and of validation, with texts."""
    chats = [
        [{"role": "user", "content": f"Colour {n}?"}, {"role": "assistant", "content": "Blue. " * (n % 5 + 1)}]
        for n in range(20)
    ]
    splits = [col.VALIDATION if n % 5 == 0 else col.TRAIN for n in range(20)]
    values = {col.ID: [*map(str, range(20))], col.SPLIT: splits, col.ALPHA: [0.1] * 20}
    write_table(pa.table(values).append_column(col.MESSAGES, pa.array(chats, col.MESSAGES_TYPE)), file)
    return file


@pytest.fixture
def rendered(tmp_path: Path, family_folder: Any) -> tuple[Any, Path]:
    """Render rows; return a function that renders them again unless they are there, and the folder of the tokens."""
    rows, config = smoothed(tmp_path / "smoothed.parquet"), load(None, [f"model={family_folder('llama')}"])

    def again() -> dict[str, Any]:
        return render(config, rows, rows, tmp_path / "out")

    again()
    return again, tmp_path / "out" / TOKENS_FOLDER


@pytest.mark.slow
def test_rendered_rows_are_checked_before_they_are_mapped(rendered: tuple[Any, Path]) -> None:
    """A changed offset of Arrow's would end the process."""
    _, folder = rendered
    check_store(folder)
    files = sorted(folder.iterdir())
    assert {file.suffix for file in files} == {".arrow", ".json", ".sha256"} and len(files) == 4
    for seed, file in enumerate(files):
        for _ in each_damage(file, seed=seed):
            with pytest.raises(UserError) as caught:
                check_store(folder)
            assert file.name in str(caught.value) and str(folder) in str(caught.value)
    check_store(folder)


@pytest.mark.slow
def test_damaged_rendered_rows_are_rendered_again(rendered: tuple[Any, Path], caplog: pytest.LogCaptureFixture) -> None:
    again, folder = rendered
    counts, before = again(), {file.name: file.read_bytes() for file in folder.iterdir()}
    assert "again" not in caplog.text
    for name, content in before.items():
        caplog.clear()
        write(folder / name, content[:-2])
        assert again() == counts
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert f"{folder}" in caplog.text and name in caplog.text


@pytest.mark.slow
def test_rendered_rows_of_an_earlier_version_are_taken_as_they_are(rendered: tuple[Any, Path]) -> None:
    again, folder = rendered
    (folder / SUMS_FILE).unlink()
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again()
    check_store(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == times


@pytest.mark.slow
def test_alphas_and_weights_of_an_arm_are_checked(rendered: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = rendered
    ids = [*map(str, range(20))]
    write_table(pa.table({col.ID: ids, col.ALPHA: [n / 40 for n in range(20)], col.LOSS_WEIGHT: [1.5] * 20}), tmp_path / "arm")

    def numbers() -> list[tuple[float, float]]:
        return [(sample.alpha, sample.weight) for sample in TokenStore.open(folder, col.TRAIN, arm=tmp_path / "arm")]

    before, refused = numbers(), 0
    for _ in each_damage(tmp_path / "arm", flips=200):
        try:
            assert numbers() == before
        except UserError as error:
            refused += 1
            assert f"{tmp_path / 'arm'} cannot be read" in str(error)
    assert refused > 50
