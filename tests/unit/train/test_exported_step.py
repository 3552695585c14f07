"""Which step's weights leave a training, against plain torch that keeps those of every step: whatever is damaged on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.train import loop
from ual_ray.train.batches import StepPlan
from ual_ray.train.checkpoint import step_of
from ual_ray.train.job import Outcome
from ual_ray.train.progress import STOP_FILE
from ual_ray.train.token_store import Sample, TokenStore

SETTINGS: dict[str, Any] = {
    **{"num_workers": 1, "dtype": "float32", "max_length": 64, "global_batch_size": 2, "micro_batch_size": 2, "epochs": 2},
    **{"learning_rate": 0.03, "schedule": "constant", "warmup_share": 0.0, "validate_every": 1, "checkpoint_every": 1},
}
STEPS, ROWS, HELD_OUT = 8, 8, 3
# A rate at which the validation loss rises and falls.
BEST, PATIENCE, STOPPED_EARLY = 4, 2, 6

pytestmark = pytest.mark.usefixtures("group")

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random rows with alphas, and some for validation."""
    random, rows = np.random.default_rng(4), []
    for number in range(ROWS + HELD_OUT):
        ids, prompt = random.integers(10, 600, 20).tolist(), int(random.integers(1, 10))
        rows.append(
            {
                **{col.ID: f"{number:02}", col.SPLIT: col.TRAIN if number < ROWS else col.VALIDATION},
                **{col.ALPHA: 0.1 * (number % 4), col.TARGET_TOKENS: 20 - prompt},
                **{col.INPUT_IDS: ids, col.LABELS: [IGNORE_INDEX] * prompt + ids[prompt:]},
            }
        )
    folder = tmp_path_factory.mktemp("tokens")
    with pa.OSFile(str(folder / f"rows{col.TOKENS_SUFFIX}"), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
        writer.write_table(pa.Table.from_pylist(rows, col.TOKENS))
    return folder


@pytest.fixture(scope="module")
def source(family_folder: Any) -> Path:
    """Name the model that is trained."""
    return family_folder("llama_untied")


def loss_of(model: Any, sample: Sample, alpha: float) -> Tensor:
    """Sum the cross-entropy against (1 - alpha) one-hot + alpha / K over a sample's labels, of full logits."""
    labels = torch.tensor(sample.labels[1:]).long()
    logs = model(torch.tensor(sample.input_ids).long()[None]).logits[0, :-1].log_softmax(-1)[labels != IGNORE_INDEX]
    at_label = logs.gather(1, labels[labels != IGNORE_INDEX][:, None]).squeeze(1)
    return -((1 - alpha) * at_label + alpha * logs.mean(1)).sum()


@pytest.fixture(scope="module")
def steps(data: Path, source: Path) -> tuple[list[Weights], list[float]]:
    """Train in plain torch; return the weights after each number of steps, and their validation loss."""
    store, held_out = (TokenStore.open(data, split) for split in (col.TRAIN, col.VALIDATION))
    plan = StepPlan(store.lengths, store.target_tokens, TrainConfig(**SETTINGS), 3, 1)
    alpha = sum(row.alpha * int(count) for row, count in zip(store, store.target_tokens, strict=True))
    alpha /= int(store.target_tokens.sum())
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["learning_rate"], betas=(0.9, 0.95), weight_decay=0.0)
    weights, losses = list[Weights](), list[float]()

    def keep() -> None:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        with torch.no_grad():
            losses.append(sum(float(loss_of(model, row, alpha)) for row in held_out) / int(held_out.target_tokens.sum()))

    keep()
    for step in plan:
        rows = [store[row] for row in plan.rows(step)]
        (sum(loss_of(model, row, row.alpha) for row in rows) / plan.target_tokens(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        keep()
    return weights, losses


@pytest.mark.slow
def test_the_oracle_has_a_best_step_between_others(steps: tuple[list[Weights], list[float]]) -> None:
    _, losses = steps
    assert len(losses) == STEPS + 1
    assert 1 + int(np.argmin(losses[1:])) == BEST
    assert min(losses[1:BEST]) > losses[BEST] < min(losses[BEST + 1 : STOPPED_EARLY + 1])


Train = Callable[..., Outcome]


@pytest.fixture
def train(data: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train, or resume; stop_at: the last step before the driver is told to end. killed: while it exports."""
    take, export = loop.Training.take, loop.Training.write_model

    def run(stop_at: int | None = None, *, killed: bool = False, before_export: Any = None, **changes: Any) -> Outcome:
        def taken(training: Any, step: Any, progress: Any) -> Any:
            if progress.step + 1 == stop_at:
                (tmp_path / STOP_FILE).touch()
            return take(training, step, progress)

        def exported(*arguments: Any) -> Any:
            if killed:
                raise InterruptedError
            if before_export:
                before_export()
            return export(*arguments)

        monkeypatch.setattr(loop.Training, "take", taken)
        monkeypatch.setattr(loop.Training, "write_model", exported)
        (tmp_path / STOP_FILE).unlink(missing_ok=True)
        seed = changes.pop("seed", 3)
        job = loop.TrainingJob(TrainConfig(**SETTINGS | changes), str(source), str(data), str(tmp_path), seed)
        return loop.train_worker(job, torch.device("cpu"), pyarrow.fs.LocalFileSystem(), str(tmp_path / "checkpoints"))

    return run


@pytest.fixture(scope="module")
def left() -> dict[str, Path]:
    """Keep what trainings left that did not end, by their arguments: many tests begin with the same."""
    return {}


@pytest.fixture
def begin(train: Train, left: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Train until a step, or until it exports, and leave checkpoints, or a copy of those of a training that was the same."""

    def run(stop_at: int | None = None, **changes: Any) -> None:
        name = repr((stop_at, sorted(changes.items())))
        if name in left:
            shutil.copytree(left[name], tmp_path, dirs_exist_ok=True)
            return
        if stop_at is None:
            with pytest.raises(InterruptedError):
                train(killed=True, **changes)
        else:
            assert train(stop_at, **changes).ending == "stopped"
        left[name] = shutil.copytree(tmp_path, tmp_path_factory.mktemp("left"), dirs_exist_ok=True)

    return run


@pytest.fixture
def exported(steps: tuple[list[Weights], list[float]], tmp_path: Path) -> Callable[[], int]:
    """Tell the step whose weights were exported, by the weights."""

    def step() -> int:
        found = load_file(tmp_path / col.MODEL_FOLDER / "model.safetensors")
        away = [max(float((found[name] - value).abs().max()) for name, value in own.items()) for own in steps[0]]
        nearest, next_to = np.argsort(away)[:2]
        assert away[nearest] < 0.05 * away[next_to], away
        return int(nearest)

    return step


def checkpoint(root: Path, step: int) -> Path:
    (found,) = (folder for folder in (root / "checkpoints").glob("step-*") if step_of(folder.name) == step)
    return found


def garble(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-3])

    return change


DAMAGES: dict[str, Callable[[Path], Any]] = {
    **{name: garble(name) for name in ("progress.json", "__0_0.distcp", ".metadata", "checksums.sha256")},
    "no progress": lambda folder: (folder / "progress.json").unlink(),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"export": "best"}, BEST),
        ({"export": "last"}, STEPS),
        ({"export": "best", "early_stopping": PATIENCE}, BEST),
        ({"export": "last", "early_stopping": PATIENCE}, STOPPED_EARLY),
        ({"export": "best", "max_steps": 2}, 1),
        ({"export": "best", "validate_every": 3, "checkpoint_every": None}, 3),
    ],
)
@pytest.mark.slow
def test_it_is_the_step_that_was_asked_for(train: Train, exported: Any, changes: Any, expected: int) -> None:
    assert train(**changes).exported == expected
    assert exported() == expected
    # Again, from the checkpoints of a finished training.
    assert train(**changes).exported == expected == exported()


@pytest.mark.parametrize(("export", "damage"), [*(("best", damage) for damage in DAMAGES), ("last", "__0_0.distcp")])
@pytest.mark.slow
def test_damage_to_the_newest_changes_nothing(
    train: Train, begin: Any, exported: Any, tmp_path: Path, damage: str, export: str
) -> None:
    settings = {"export": export, "keep_checkpoints": 2}
    expected = BEST if export == "best" else STEPS
    # Of the best, and of the end.
    for stop in (BEST, None):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        begin(stop, **settings)
        DAMAGES[damage](checkpoint(tmp_path, stop or STEPS))
        assert train(**settings).exported == expected == exported()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.slow
def test_damage_while_it_exports_never_exports_other_weights(train: Train, exported: Any, tmp_path: Path, damage: str) -> None:
    newest = train(export="best", before_export=lambda: DAMAGES[damage](checkpoint(tmp_path, STEPS)))
    assert newest.exported == BEST == exported()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.slow
def test_without_the_best_nothing_is_exported(train: Train, begin: Any, tmp_path: Path, damage: str) -> None:
    begin(export="best")
    DAMAGES[damage](checkpoint(tmp_path, BEST))
    with pytest.raises(UserError, match=f"step.0*{BEST}.*(?s:.)*restore it from a copy, or remove"):
        train(export="best")
    assert not (tmp_path / col.MODEL_FOLDER).exists()
    # The last weights are there all the same.
    assert train(export="last").exported == STEPS


@pytest.mark.slow
def test_without_a_finite_validation_there_is_no_best(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.Training, "validate", lambda training: {col.VALIDATION_LOSS: float("nan")})
    with pytest.raises(UserError, match="no validation had a finite loss"):
        train(export="best")
    assert not (tmp_path / col.MODEL_FOLDER).exists()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"seed": 4}, {"epochs": 3}, {"global_batch_size": 4}])
def test_checkpoints_of_another_training_are_refused(train: Train, begin: Any, changes: Any, tmp_path: Path) -> None:
    begin(BEST + 1, export="best")
    with pytest.raises(UserError, match="of another training run"):
        train(export="best", **changes)
    assert not (tmp_path / col.MODEL_FOLDER).exists()
