"""Checkpoints of one process: whole or not there, the newest and the best kept, on any file system of pyarrow."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import torch
from torch import nn

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.preflight import check_train
from ual_ray.train import checkpoint
from ual_ray.train.checkpoint import Checkpoints, Saved, newest_checkpoint, outdated
from ual_ray.train.progress import Progress


@pytest.fixture(params=["local", "other"])
def filesystem(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """Get this machine's file system, and one that torch knows nothing of, each with a folder in it."""
    local = pyarrow.fs.LocalFileSystem()
    if request.param == "local":
        return local, str(tmp_path / "checkpoints")
    return pyarrow.fs.SubTreeFileSystem(str(tmp_path), local), "checkpoints"


def trained(steps: int = 2, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def progress(step: int, best_step: int | None = None) -> Progress:
    return Progress("plan", 7, step=step, samples=step * 4, tokens=step * 100, best_loss=1.5, best_step=best_step)


def names(root: Path) -> list[str]:
    return sorted(folder.name.rpartition("-")[0] for folder in root.iterdir())


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.slow
def test_what_is_saved_comes_back_to_the_last_bit(group: None, filesystem: Any, tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoints = Checkpoints(*filesystem, keep=1)
    checkpoints.save(model, optimizer, progress(2))
    (saved,) = checkpoints.saved()
    assert saved.progress == progress(2)
    other, other_optimizer = trained(seed=1)
    Checkpoints(*filesystem, keep=1).load(saved, other, other_optimizer)
    assert equal(dict(other.state_dict()), dict(model.state_dict()))
    assert equal(other_optimizer.state_dict(), optimizer.state_dict())
    weights_only, untouched = trained(seed=2)
    before = {key: value.clone() for key, value in untouched.state_dict()["state"][0].items()}
    checkpoints.load(saved, weights_only)
    assert equal(dict(weights_only.state_dict()), dict(model.state_dict()))
    assert equal(untouched.state_dict()["state"][0], before)


def test_the_thread_that_writes_a_checkpoint_calls_no_gpu(
    group: None, filesystem: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread starts with GPU 0 as its device: a call there would take memory for every rank of a node on that one.
    model, optimizer = trained()
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("current_stream", "stream", "synchronize", "current_device"):
        monkeypatch.setattr(
            torch.cuda, name, lambda *_, name=name: called.append(f"{name} in {threading.current_thread().name}")
        )
    checkpoints = Checkpoints(*filesystem, keep=1)
    try:
        checkpoints.save(model, optimizer, progress(2))
        checkpoints.wait()
    finally:
        assert not [call for call in called if "MainThread" not in call]
    assert list(tmp_path.glob("checkpoints/*/progress.json"))


def test_what_is_saved_without_a_copy_is_written_when_training_goes_on(group: None, tmp_path: Path) -> None:
    model, optimizer = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoints = Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path / "checkpoints"), keep=1, copies=False)
    checkpoints.save(model, optimizer, progress(2))
    assert list(tmp_path.glob("checkpoints/*/progress.json"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    (saved,) = checkpoints.saved()
    other, _ = trained(seed=1)
    checkpoints.load(saved, other)
    assert equal(dict(other.state_dict()), before)


def test_another_training_gives_weights_and_moments_and_no_settings(group: None, tmp_path: Path) -> None:
    model, optimizer = trained()
    Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path / "old" / "checkpoints"), keep=1).save(model, optimizer, progress(2))
    other, _ = trained(seed=1)
    own = torch.optim.AdamW(other.parameters(), lr=0.5, betas=(0.8, 0.9), weight_decay=0.3)
    checkpoints = Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path / "new" / "checkpoints"), keep=1)
    first = wait_for_checkpoint(tmp_path / "old")
    checkpoints.load_other(str(first), other, own)
    assert equal(dict(other.state_dict()), dict(model.state_dict()))
    assert equal(own.state_dict()["state"], optimizer.state_dict()["state"])
    (group_of_own,) = own.param_groups
    assert (group_of_own["lr"], group_of_own["betas"], group_of_own["weight_decay"]) == (0.5, (0.8, 0.9), 0.3)

    larger = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    with pytest.raises(UserError, match=r"train\.continue_from: the checkpoint does not fit the model"):
        checkpoints.load_other(str(first), larger, torch.optim.AdamW(larger.parameters()))
    part = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False))
    with pytest.raises(UserError, match=r"1 weight that the model does not have, or not trains, such as 1\.bias"):
        checkpoints.load_other(str(first), part, torch.optim.AdamW(part.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("used", [True, False], ids=["some weights are used", "every update was skipped"])
def test_weights_that_no_step_has_used_are_resumed_without_moments(used: bool, group: None, tmp_path: Path) -> None:
    """Such as a vision tower in training on texts: AdamW makes moments of a weight at its first gradient."""
    local = pyarrow.fs.LocalFileSystem()

    def make(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 2)])
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: Any, optimizer: torch.optim.Optimizer, layers: range) -> None:
        for layer in layers:
            model[layer](torch.ones(1, model[layer].in_features)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make(0)
    step(model, optimizer, range(used))
    saving = Checkpoints(local, str(tmp_path / "old" / "checkpoints"), keep=1)
    saving.save(model, optimizer, progress(1))
    (saved,) = saving.saved()
    (resumed, moments), (continued, others) = make(1), make(2)
    saving.load(saved, resumed, moments)
    Checkpoints(local, str(tmp_path / "new" / "checkpoints"), keep=1).load_other(saved.folder, continued, others)
    for one, own in ((model, optimizer), (resumed, moments), (continued, others)):
        step(one, own, range(2))
    for one, own in ((resumed, moments), (continued, others)):
        assert equal(dict(one.state_dict()), dict(model.state_dict()))
        assert equal(own.state_dict()["state"], optimizer.state_dict()["state"])


def wait_for_checkpoint(training: Path) -> Path:
    for _ in range(200):
        if list(training.glob("checkpoints/*/progress.json")):
            break
        time.sleep(0.05)
    return newest_checkpoint(training)


def test_the_newest_whole_checkpoint_is_found_or_named_as_missing(tmp_path: Path) -> None:
    for name in ("step-00000010-aa", "step-00000200-bb", "step-00000300-cc"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.continue_from holds no checkpoint"):
        newest_checkpoint(tmp_path)
    for name in ("step-00000010-aa", "step-00000200-bb"):
        (tmp_path / "checkpoints" / name / "progress.json").touch()
    assert newest_checkpoint(tmp_path).name == "step-00000200-bb"
    with pytest.raises(UserError, match="holds no checkpoint"):
        check_train(TrainConfig(continue_from=str(tmp_path / "nothing")))


def test_training_goes_on_while_it_is_written(group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    gate, real = threading.Event(), Checkpoints._commit

    def slowly(*arguments: Any) -> None:
        assert gate.wait(20)
        real(*arguments)

    monkeypatch.setattr(Checkpoints, "_commit", slowly)
    checkpoints = Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path), keep=1)
    checkpoints.save(model, optimizer, progress(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not list(tmp_path.glob("*/progress.json")), "it does not count before it is whole"
    gate.set()
    (saved,) = checkpoints.saved()
    other, _ = trained(seed=1)
    checkpoints.load(saved, other)
    assert equal(dict(other.state_dict()), expected), "the weights at the time of the save"


@pytest.mark.slow
def test_the_newest_and_the_best_stay(group: None, filesystem: Any, tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoints = Checkpoints(*filesystem, keep=2)
    for step, best_step in ((10, 10), (20, 20), (30, 20), (40, 20), (50, 20)):
        checkpoints.save(model, optimizer, progress(step, best_step))
    assert [saved.progress.step for saved in checkpoints.saved()] == [20, 40, 50]
    assert names(tmp_path / "checkpoints") == ["step-00000020", "step-00000040", "step-00000050"]


@pytest.mark.slow
def test_half_a_checkpoint_does_not_count_and_is_removed(group: None, filesystem: Any, tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoints = Checkpoints(*filesystem, keep=3)
    for step in (10, 20):
        checkpoints.save(model, optimizer, progress(step))
    whole = checkpoints.saved()
    next((tmp_path / "checkpoints").glob("step-00000020-*/progress.json")).unlink()
    (tmp_path / "checkpoints" / "somebody else's").mkdir()
    again = Checkpoints(*filesystem, keep=3)
    assert again.saved() == whole[:1]
    assert names(tmp_path / "checkpoints") == ["", "step-00000010"], "what is not ours stays"


@pytest.mark.slow
def test_a_save_that_fails_is_told_of(group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError("no space left on device")

    model, optimizer = trained()
    checkpoints = Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path), keep=1)
    checkpoints.save(model, optimizer, progress(1))
    checkpoints.wait()
    monkeypatch.setattr(checkpoint.json, "dumps", full)
    checkpoints.save(model, optimizer, progress(2))
    with pytest.raises(OSError, match="no space left"):
        checkpoints.wait()
    monkeypatch.undo()
    assert [saved.progress.step for saved in Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path), keep=1).saved()] == [1]


def test_frozen_and_tied_weights_are_not_saved_twice_or_at_all(group: None, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([model[0].weight])
    state = checkpoint._state(model, optimizer)
    assert list(state["model"]) == ["0.weight"]
    checkpoints = Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path), keep=1)
    checkpoints.save(model, optimizer, progress(1))
    before = model[2].weight.clone()
    checkpoints.load(checkpoints.saved()[0], model, optimizer)
    assert torch.equal(model[2].weight, before)
    assert model[1].weight is model[0].weight


def test_the_choice_of_what_goes_is_a_function() -> None:
    saved = [Saved(progress(step, best_step=20), str(step)) for step in (10, 20, 30, 40)]
    assert [old.progress.step for old in outdated(saved, 1, 20)] == [10, 30]
    assert [old.progress.step for old in outdated(saved, 3, 20)] == [10]
    assert outdated([], 1, None) == []
    assert [old.progress.step for old in outdated(saved, 1, None)] == [10, 20, 30]


@pytest.mark.slow
def test_what_progress_says_is_plain_json(group: None, tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoints = Checkpoints(pyarrow.fs.LocalFileSystem(), str(tmp_path), keep=1)
    checkpoints.save(model, optimizer, progress(3, 2))
    checkpoints.wait()
    (file,) = tmp_path.glob("*/progress.json")
    assert json.loads(file.read_text()) == vars(progress(3, 2))
