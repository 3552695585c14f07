"""A whole training of a tiny model by one rank in this process: its metrics, its export, and its resumption."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest
import torch
from driver_only import DRIVER, elsewhere
from safetensors.torch import load_file
from training_metrics import without_clock

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.parquet import write_table
from ual_ray.run.metrics_log import read_metrics
from ual_ray.train import loop, optimizer_step
from ual_ray.train.checkpoint import newest_checkpoint
from ual_ray.train.export import CARD
from ual_ray.train.metrics import SKIPPED
from ual_ray.train.progress import STOP_FILE
from ual_ray.train.tokenize import Render

SETTINGS: dict[str, Any] = {
    **{"num_workers": 1, "dtype": "float32", "max_length": 64, "global_batch_size": 4, "micro_batch_size": 2, "epochs": 2},
    **{"validate_every": 3, "checkpoint_every": 2},
}
SOURCES_FILE = "sources.parquet"
MIXTURE = {"chat": 1.0, "math": 3.0}
WORDS = ("blue", "green", "colour", "sky")


pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, family_folder: Any) -> Path:
    """Render twelve rows for training and four for validation."""
    folder = tmp_path_factory.mktemp("tokens")
    rows = []
    for number in range(16):
        reply = " ".join(WORDS[: 1 + number % 4])
        chat = [{"role": "user", "content": f"Name a colour {number}."}, {"role": "assistant", "content": reply}]
        split = col.VALIDATION if number % 4 == 3 else col.TRAIN
        rows.append({col.ID: str(number), col.SPLIT: split, col.MESSAGES: chat, col.ALPHA: 0.1 * (number % 3)})
    schema = [(col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE), (col.ALPHA, pa.float64())]
    render = Render(str(family_folder("llama")), TrainConfig(**SETTINGS), False, folder)
    (summary,) = render(pa.Table.from_pylist(rows, pa.schema(schema))).to_pylist()
    assert summary["dropped"] == []
    names = ["math" if number % 8 == 0 else "chat" for number in range(16)]
    write_table(pa.table({col.ID: [str(number) for number in range(16)], col.SOURCE: names}), folder / SOURCES_FILE)
    return folder


def train(
    tokens: Path, model: Path, out: Path, arm: Path | None = None, first: Path | None = None, **changes: Any
) -> loop.Outcome:
    out.mkdir(exist_ok=True)
    files = {"arm": arm, "first": first, "sources": tokens / SOURCES_FILE if "mixture" in changes else None}
    own = {name: str(file) for name, file in files.items() if file}
    job = loop.TrainingJob(TrainConfig(**SETTINGS | changes), str(model), str(tokens), str(out), seed=3, **own)
    return loop.train_worker(job, torch.device("cpu"), pyarrow.fs.LocalFileSystem(), str(out / "checkpoints"))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / col.MODEL_FOLDER / "model.safetensors")


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}, "export": "best"}])
@pytest.mark.slow
def test_a_rank_of_another_machine_reads_and_writes_by_the_driver_alone(
    changes: dict[str, Any], tokens: Path, family_folder: Any, tmp_path: Path
) -> None:
    train(tokens, family_folder("llama"), tmp_path / "here", mixture=MIXTURE, **changes)
    driver, storage = tmp_path / "driver", pyarrow.fs.LocalFileSystem()
    shutil.copytree(tokens, driver / "tokens")
    (driver / "out").mkdir()
    paths = {name: str(DRIVER / name) for name in ("tokens", f"tokens/{SOURCES_FILE}", "out")}
    job = loop.TrainingJob(TrainConfig(**SETTINGS | {"mixture": MIXTURE} | changes), str(family_folder("llama")),
                           paths["tokens"], paths["out"], seed=3, sources=paths[f"tokens/{SOURCES_FILE}"])  # fmt: skip
    outcome = loop.train_worker(
        job, torch.device("cpu"), storage, str(tmp_path / "storage"), output=elsewhere(driver, tmp_path / "copies")
    )
    assert outcome.ending == "finished"
    assert not [file for file in driver.rglob("*.part")]
    assert [*map(without_clock, read_metrics(driver / "out" / col.METRICS_FILE))] == [
        *map(without_clock, read_metrics(tmp_path / "here" / col.METRICS_FILE))
    ]
    for folder in (col.MODEL_FOLDER, col.ADAPTER_FOLDER) if changes else (col.MODEL_FOLDER,):
        names = {file.name for file in (tmp_path / "here" / folder).iterdir()}
        assert {file.name for file in (driver / "out" / folder).iterdir()} == names
        for name in names - {CARD}:  # which tells the speed
            assert (driver / "out" / folder / name).read_bytes() == (tmp_path / "here" / folder / name).read_bytes(), name

    (driver / "out" / STOP_FILE).touch()
    stopped = loop.train_worker(
        replace(job, seed=4),
        torch.device("cpu"),
        storage,
        str(tmp_path / "stopped"),
        output=elsewhere(driver, tmp_path / "copies"),
    )
    assert (stopped.ending, stopped.step) == ("stopped", 1)


@pytest.mark.slow
def test_it_trains_measures_and_exports(tokens: Path, family_folder: Any, tmp_path: Path) -> None:
    outcome = train(tokens, family_folder("llama"), tmp_path / "out")
    assert (outcome.ending, outcome.step, outcome.exported) == ("finished", 6, 6)
    lines = read_metrics(tmp_path / "out" / col.METRICS_FILE)
    assert [line["step"] for line in lines] == list(range(7))
    assert lines[-1]["nll"] < lines[1]["nll"]
    for line in lines[1:]:
        parts = [line[f"seconds/{purpose}"] for purpose in ("step", "data", "validation", "checkpoint")]
        assert 0 < sum(parts) <= line["seconds/total"] and line["goodput"] == pytest.approx(parts[0] / line["seconds/total"])
        assert line["lowest_rank_peak_memory_gib"] == line["peak_memory_gib"] > 0.01
    assert [line["step"] for line in lines[1:] if line["seconds/validation"]] == [3, 6]
    # After steps 2 and 4, and after 3, the best so far: counted with the next step.
    assert [line["step"] for line in lines[1:] if line["seconds/checkpoint"]] == [3, 4, 5]
    assert {line.get("slowest_rank_over_median") for line in lines[2:]} == {1.0}, "one rank is its own median"
    before = load_file(family_folder("llama") / "model.safetensors")
    assert not any(torch.equal(value, before[name]) for name, value in weights(tmp_path / "out").items())


def test_a_validation_takes_as_many_tokens_as_allowed_and_training_takes_all(tokens: Path, group: None) -> None:
    def sizes(most: int | None) -> list[int]:
        job = loop.TrainingJob(TrainConfig(**SETTINGS, validation_tokens=most), "", str(tokens), "", seed=0)
        return [len(loop.Data(job, split).store) for split in (col.TRAIN, col.VALIDATION)]

    assert [sizes(most) for most in (None, 10_000, 1)] == [[12, 4], [12, 4], [12, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "refused"), [("gpt2", True), ("opt", True), ("llama", False)])
def test_rows_beyond_a_models_table_of_positions_are_refused(
    tokens: Path, family_folder: Any, tmp_path: Path, family: str, refused: bool
) -> None:
    model = shutil.copytree(family_folder(family), tmp_path / family)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"n_positions": 12, "max_position_embeddings": 12}))
    if not refused:  # positions that are computed have no end
        assert train(tokens, model, tmp_path / "out", max_steps=1).ending == "finished"
        return
    with pytest.raises(UserError, match=r"(?s)table of positions.*at most 12.*train\.max_length=12"):
        train(tokens, model, tmp_path / "out", max_steps=1)


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"mixture": MIXTURE, "lora": {"rank": 2, "dropout": 0.3}},
        {"mixture": MIXTURE, "packing": True, "global_batch_size": 1, "max_steps": 6},
    ],
)
def whole(
    request: pytest.FixtureRequest, tokens: Path, family_folder: Any, tmp_path_factory: pytest.TempPathFactory, group: None
) -> tuple[dict[str, Any], Path]:
    """Train without a stop: changed settings, and what the training left."""
    out = tmp_path_factory.mktemp("whole")
    train(tokens, family_folder("llama"), out, **request.param)
    return request.param, out


# Within an epoch, at its edge, and when all is done but the export.
@pytest.mark.parametrize("stop_after", [4, 3, 6])
@pytest.mark.slow
def test_resumed_it_is_the_same_to_the_last_bit(
    tokens: Path,
    family_folder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: tuple[dict[str, Any], Path],
    stop_after: int,
) -> None:
    (changes, expected), halves = whole, tmp_path / "halves"
    take = loop.Training.take

    def take_and_stop(training: loop.Training, step: Any, progress: Any) -> Any:
        if progress.step == stop_after - 1:
            (halves / "stop").touch()
        return take(training, step, progress)

    monkeypatch.setattr(loop.Training, "take", take_and_stop)
    stopped = train(tokens, family_folder("llama"), halves, **changes)
    assert (stopped.ending, stopped.step) == ("stopped", stop_after)
    monkeypatch.setattr(loop.Training, "take", take)
    (halves / "stop").unlink()
    finished = train(tokens, family_folder("llama"), halves, **changes)
    assert (finished.ending, finished.step) == ("finished", 6)
    one, two = ([without_clock(line) for line in read_metrics(out / col.METRICS_FILE)] for out in (expected, halves))
    assert one == two
    assert all(torch.equal(value, weights(halves)[name]) for name, value in weights(expected).items())


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "progress.json"])
@pytest.mark.slow
def test_resumed_from_the_checkpoint_before_a_damaged_one_it_is_the_same(
    tokens: Path, family_folder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    model, one, two = family_folder("llama"), tmp_path / "one", tmp_path / "two"
    train(tokens, model, one, keep_checkpoints=2)
    shutil.copytree(one / "checkpoints", two / "checkpoints")
    file = newest_checkpoint(two) / name
    file.write_bytes(file.read_bytes()[:-3] + b"123")
    train(tokens, model, two, keep_checkpoints=2)
    assert str(file.parent) in caplog.text and "which is damaged" in caplog.text
    assert [line["step"] for line in read_metrics(two / col.METRICS_FILE)] == [5, 6]
    assert all(torch.equal(value, weights(two)[key]) for key, value in weights(one).items())


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.slow
def test_adapters_leave_alone_and_merged_if_they_may(tokens: Path, family_folder: Any, tmp_path: Path, merge: bool) -> None:
    train(tokens, family_folder("llama"), tmp_path / "out", lora={"rank": 2, "merge": merge}, export_dtype="bfloat16")
    assert (tmp_path / "out" / col.ADAPTER_FOLDER / "adapter_config.json").is_file()
    assert (tmp_path / "out" / col.MODEL_FOLDER).exists() == merge
    assert not merge or {value.dtype for value in weights(tmp_path / "out").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "changes", [{"global_batch_size": 5}, {"packing": True, "global_batch_size": 2}, {"lora": {"rank": 2}}]
)
@pytest.mark.slow
def test_uneven_micro_batches_change_nothing(tokens: Path, family_folder: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    # Of twelve rows, five to a step, an epoch's last step has two; five are split into micro-batches of 1, 2 or 3.
    for micro in (5, 1, 2, 3):
        train(tokens, family_folder("llama"), tmp_path / str(micro), micro_batch_size=micro, **changes)
    whole, expected = weights(tmp_path / "5"), read_metrics(tmp_path / "5" / col.METRICS_FILE)
    for micro in (1, 2, 3):
        found = read_metrics(tmp_path / str(micro) / col.METRICS_FILE)
        assert [line.get("tokens") for line in found] == [line.get("tokens") for line in expected]
        losses = [[line["smoothed_loss"] for line in lines[1:]] for lines in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for name, value in weights(tmp_path / str(micro)).items():
            torch.testing.assert_close(value, whole[name], rtol=2e-3, atol=2e-5, msg=f"{micro} {name}")


def own_numbers(folder: Path, alpha: float, weight: float) -> Path:
    """Write an arm that gives all rows the same alpha and weight."""
    ids = [str(number) for number in range(16)]
    write_table(pa.table({col.ID: ids, col.ALPHA: [alpha] * 16, col.LOSS_WEIGHT: [weight] * 16}), folder / "arm.parquet")
    return folder / "arm.parquet"


@pytest.mark.slow
def test_weights_of_zero_train_nothing(tokens: Path, family_folder: Any, tmp_path: Path) -> None:
    arm = own_numbers(tmp_path, 0.1, 0.0)
    assert train(tokens, family_folder("llama"), tmp_path / "out", arm).ending == "finished"
    lines = read_metrics(tmp_path / "out" / col.METRICS_FILE)[1:]
    assert {(line["smoothed_loss"], line["grad_norm"]) for line in lines} == {(0.0, 0.0)}
    before = load_file(family_folder("llama") / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "out").items())


@pytest.mark.parametrize("alpha", [0.0, 1 - 1e-9])
@pytest.mark.slow
def test_alpha_at_its_bounds(tokens: Path, family_folder: Any, tmp_path: Path, alpha: float) -> None:
    arm = own_numbers(tmp_path, alpha, 1.0)
    assert train(tokens, family_folder("llama"), tmp_path / "out", arm, learning_rate=1e-2).ending == "finished"
    first, *_, last = read_metrics(tmp_path / "out" / col.METRICS_FILE)[1:]
    assert last["smoothed_loss"] == pytest.approx(last["nll"] + last["smoothing"], rel=1e-6)
    assert last["mean_alpha"] == pytest.approx(alpha) and bool(last["smoothing"]) == bool(alpha)
    # Also near 1, where the target is nearly the uniform distribution.
    assert last["smoothed_loss"] < first["smoothed_loss"]


@pytest.mark.parametrize("poisoned", [1, 2])
@pytest.mark.slow
def test_a_skipped_update_leaves_no_trace(
    tokens: Path, family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: int
) -> None:
    backward, calls = optimizer_step.backward, list[int]()

    def poison(model: Any, *arguments: Any) -> Any:
        sums = backward(model, *arguments)
        calls.append(1)
        if len(calls) == poisoned:
            next(parameter.grad for parameter in model.parameters()).fill_(float("nan"))
        return sums

    monkeypatch.setattr(optimizer_step, "backward", poison)
    # Also not by a checkpoint of an optimizer that has not updated anything yet.
    for name, every in (("seldom", None), ("often", 1)):
        calls.clear()
        done = train(tokens, family_folder("llama"), tmp_path / name, skip_non_finite=1, checkpoint_every=every, max_steps=3)
        assert done.ending == "finished"
        lines = read_metrics(tmp_path / name / col.METRICS_FILE)
        assert [line["step"] for line in lines if SKIPPED in line] == [poisoned]
    often = weights(tmp_path / "often")
    assert all(torch.equal(value, often[key]) and value.isfinite().all() for key, value in weights(tmp_path / "seldom").items())


@pytest.mark.slow
def test_updates_that_were_skipped_before_a_stop_count(
    tokens: Path, family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = loop.Training.take

    def poison(training: loop.Training, step: Any, progress: Any) -> Any:
        if progress.step == 1 and (tmp_path / "stopped").exists():
            (tmp_path / "stopped" / STOP_FILE).touch()
        if progress.step not in (1, 2):
            return take(training, step, progress)
        weight = next(training.model.parameters()).data
        kept = weight.clone()
        weight.fill_(float("inf"))
        try:
            return take(training, step, progress)
        finally:
            weight.copy_(kept)

    monkeypatch.setattr(loop.Training, "take", poison)
    at_once = train(tokens, family_folder("llama"), tmp_path / "at once", skip_non_finite=1)
    assert (at_once.ending, at_once.step) == ("non_finite", 2)
    stopped = train(tokens, family_folder("llama"), tmp_path / "stopped", skip_non_finite=1)
    assert (stopped.ending, stopped.step) == ("stopped", 2)
    (tmp_path / "stopped" / STOP_FILE).unlink()
    for name in ("at once", "stopped"):
        again = train(tokens, family_folder("llama"), tmp_path / name, skip_non_finite=1)
        assert (again.ending, again.step) == ("non_finite", 2)
        assert train(tokens, family_folder("llama"), tmp_path / name, skip_non_finite=2).ending == "finished"
    one, two = weights(tmp_path / "at once"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
def test_it_continues_only_from_adapters_of_the_same_kind(tokens: Path, family_folder: Any, tmp_path: Path) -> None:
    adapters, model, short = {"rank": 2, "alpha": 4}, family_folder("llama"), {"max_steps": 2}
    train(tokens, model, tmp_path / "first", lora=adapters, **short)
    first = newest_checkpoint(tmp_path / "first")
    train(tokens, model, tmp_path / "same", lora=adapters | {"dropout": 0.1}, first=first, learning_rate=1e-3, **short)
    before, after = (read_metrics(tmp_path / name / col.METRICS_FILE) for name in ("first", "same"))
    assert after[0]["validation_nll"] == before[-1]["validation_nll"]
    # Each would be a model that differs from the one that was trained.
    for changes, words in (
        ({"target_modules": ("q_proj",)}, "24 weights that the model does not have, or not trains"),
        ({"alpha": 8}, r"adapters of lora\.alpha / lora\.rank = 2, here it is 4"),
        ({"rank": 1, "alpha": 2}, "Size mismatch"),
        ({"rank": None}, "weights that the model does not have, or not trains"),
    ):
        with pytest.raises(UserError, match=words):
            train(tokens, model, tmp_path / "other", lora=adapters | changes, first=first, **short)
