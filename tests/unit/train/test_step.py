"""What a training states about its rows: how many were dropped, truncated, or end in no end of turn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from ual_ray import columns as col
from ual_ray.config.files import REGISTERED, REGISTERED_FILE
from ual_ray.config.load import load
from ual_ray.errors import DivergedError, UserError
from ual_ray.parquet import write_table
from ual_ray.run.step import LINEAGE_CONTINUED, LINEAGE_MIXTURE, Place, Session
from ual_ray.tracking.run import STEPS_FILE
from ual_ray.tracking.run_file import RUN_FILE
from ual_ray.train import stage, step
from ual_ray.train import tokenize as tokens
from ual_ray.train.progress import STOP_FILE
from ual_ray.train.step import _line, train_step

METRICS = {
    **{"steps": 9, "train_rows": 128, "dropped_rows": 0, "truncated_rows": 0, "endless_rows": 0},
    **{"last": {"step": 9.0, "nll": 1.5}, "exported": {"step": 9.0}, "median_tokens_per_second": 1000.0},
}


def summary(**counts: Any) -> dict[str, Any]:
    return {name: 0 for name in tokens.COUNTED} | {"dropped": [], tokens.SUMS: {}} | counts


def test_truncated_rows_are_counted_over_all_blocks_and_stated(tmp_path: Path) -> None:
    blocks = [summary(train_rows=100, truncated_rows=97), summary(train_rows=28, validation_rows=7, truncated_rows=27)]
    counts = tokens._count(iter(blocks), tmp_path / "dropped.txt")
    assert (counts["train_rows"], counts["validation_rows"], counts["truncated_rows"], counts["dropped_rows"]) == (
        128,
        7,
        124,
        0,
    )
    text = _line(METRICS | counts)
    assert "128 rows; 0 rows dropped; 124 truncated at train.max_length, without their end of turn; training NLL" in text


def test_what_a_training_writes_is_known_to_force() -> None:
    named = {tokens.TOKENS_FOLDER, tokens.DROPPED_FILE, STOP_FILE, stage.RUN_NAME_FILE, stage.TRACES_FOLDER}
    assert named | {RUN_FILE, STEPS_FILE} <= {*step.WRITTEN}


def test_force_trains_again_and_keeps_what_others_wrote_into_its_folder(runs: Runs) -> None:
    runs.place = Place(runs.place.root, keyed=False)
    root = runs.step(trial=False).folder
    (root / "evaluate").mkdir()
    (root / col.METRICS_FILE).write_text("of the training before")
    runs.step(trial=False, force=True, learning_rate=1e-5)
    assert runs.trained == 2 and (root / "evaluate").is_dir() and not (root / col.METRICS_FILE).exists()


def test_whole_rows_are_not_called_truncated() -> None:
    assert "truncated" not in _line(METRICS) and "WARNING" not in _line(METRICS)
    assert "WARNING: the chat template does not end a reply with a token" in _line(METRICS | {"endless_rows": 128})


def test_a_token_without_an_embedding_in_any_block_ends_the_step_before_training(tmp_path: Path) -> None:
    outside = [{"id": "a", "reason": tokens.NO_EMBEDDING, "error": "token 700 is outside of the model's vocabulary"}]
    with pytest.raises(UserError, match="(?s)the tokenizer is larger than the model's embedding.*1 row: token 700"):
        tokens._count(iter([summary(train_rows=1), summary(dropped=outside)]), tmp_path / "dropped.txt")


def test_settings_that_need_validation_rows_are_refused_where_all_of_these_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = [{"id": "v", "reason": tokens.OVERLONG, "error": ""}]
    monkeypatch.setattr(tokens, "_made_from", lambda *_: "these rows")
    monkeypatch.setattr(tokens, "_summaries", lambda *_: iter([summary(train_rows=50, dropped=dropped)]))
    rows = tmp_path / "rows.parquet"
    tokens.render_all(load(None, []), rows, rows, tmp_path)
    best = load(None, ["train.export=best", "train.early_stopping=2"])
    with pytest.raises(UserError, match=r"(?s)early_stopping, train\.export=best: no validation row.*1 overlong.*max_length"):
        tokens.render_all(best, rows, rows, tmp_path)


class Runs:
    """Counts trainings and registrations in place of Ray and MLflow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.trained = 0
        self.registered: list[str] = []
        self.uploaded: list[bool] = []
        self.error: Exception | None = None
        self.smoothed, self.place = folder / "smoothed.parquet", Place(folder / "train")
        write_table(pa.table({col.ID: ["a"], col.ALPHA: [0.1], col.LOSS_WEIGHT: [1.0]}), self.smoothed)
        monkeypatch.setattr(step, "_train_and_log", self.train)
        monkeypatch.setattr(step, "model_fingerprint", lambda _: "m")
        monkeypatch.setattr(Session, "connect", lambda _: None)
        monkeypatch.setattr(Session, "tracked", self.tracked)

    def train(self, _: Any, __: Any, ___: Any, ____: str, _____: Any, ______: Any, folder: Path, *_______: Any) -> Any:
        self.trained += 1
        if self.error is not None:
            raise self.error
        (folder / col.MODEL_FOLDER).mkdir()
        return dict(METRICS)

    @contextmanager
    def tracked(self, _: str, __: Path, tags: Any) -> Iterator[Runs]:
        self.tags = dict(tags)
        yield self

    def model(self, _: Path, name: str, *__: Any, upload: bool) -> str:
        self.registered.append(name)
        self.uploaded.append(upload)
        return "7"

    def step(self, *, register: bool = False, trial: bool = True, force: bool = False, **train: Any) -> Any:
        config = load(None, [f"train.{key}={value}" for key, value in train.items()])
        session = Session(config, Console(file=io.StringIO()), None, frozenset({"train"}) if force else frozenset())
        return train_step(session, "ual", self.smoothed, None, self.place, register=register, trial=trial)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    return Runs(monkeypatch, tmp_path)


def test_a_trial_is_registered_only_when_it_is_chosen_and_then_once(runs: Runs) -> None:
    runs.step()
    runs.step()
    assert (runs.trained, runs.registered) == (1, [])
    for _ in range(2):
        done = runs.step(register=True, trial=False)
        assert done.reused and (runs.trained, runs.registered) == (1, ["ual-ual"])
    assert (done.folder / REGISTERED_FILE).exists()


def test_a_training_that_is_no_trial_is_registered_in_its_own_run(runs: Runs) -> None:
    assert runs.step(register=True, trial=False).metrics[REGISTERED] == "7"
    runs.step(register=True, trial=False)
    runs.step()
    assert (runs.trained, runs.registered) == (1, ["ual-ual"])


@pytest.mark.slow
def test_a_trial_that_diverged_is_not_trained_again_until_something_changes(runs: Runs) -> None:
    runs.error = DivergedError("the loss is nan", fix="another rate")
    for _ in range(2):
        with pytest.raises(DivergedError, match="the loss is nan"):
            runs.step()
    assert runs.trained == 1
    for changed in ({"learning_rate": 1e-5}, {"skip_non_finite": 3}):
        with pytest.raises(DivergedError):
            runs.step(**changed)
    assert runs.trained == 3
    runs.error = None
    runs.step(force=True)
    assert runs.trained == 4
    runs.step()
    assert runs.trained == 4, "finished now, and no longer known as diverged"


def test_other_errors_of_a_trial_are_not_remembered(runs: Runs) -> None:
    runs.error = UserError("the disk is full")
    for _ in range(2):
        with pytest.raises(UserError, match="full"):
            runs.step()
    assert runs.trained == 2


def test_a_training_that_is_no_trial_is_repeated_after_it_diverged(runs: Runs) -> None:
    runs.error = DivergedError("the loss is nan", fix="look at the rows")
    for _ in range(2):
        with pytest.raises(DivergedError):
            runs.step(trial=False)
    assert runs.trained == 2


def test_a_training_that_diverged_goes_on_where_it_was_when_updates_may_be_skipped(runs: Runs) -> None:
    runs.place = Place(runs.place.root, keyed=False)
    runs.error = DivergedError("the loss is nan", fix="skip updates")
    with pytest.raises(DivergedError):
        runs.step(trial=False)
    runs.error = None
    assert runs.step(trial=False, skip_non_finite=3).folder == runs.place.root
    assert runs.step(trial=False).reused, "nor do weights differ by what more might have been skipped"


@pytest.mark.parametrize(("kept", "uploaded"), [("upload", [True]), ("reference", [False])])
def test_models_are_uploaded_or_referenced(runs: Runs, kept: str, uploaded: list[bool]) -> None:
    done = runs.step()
    session = Session(load(None, [f"tracking.models={kept}"]), Console(file=io.StringIO()), None)
    step.register_model(session, "ual", runs.smoothed, done)
    assert runs.uploaded == uploaded


def test_models_that_are_not_kept_are_not_registered_later(runs: Runs) -> None:
    done = runs.step()
    session = Session(load(None, ["tracking.models=none"]), Console(file=io.StringIO()), None)
    step.register_model(session, "ual", runs.smoothed, done)
    assert runs.registered == [] and not (done.folder / REGISTERED_FILE).exists()


@pytest.mark.parametrize(
    ("weighted", "mixture", "trained"), [(False, "{}", 1), (True, "{}", 2), (False, "{dolly: 1, gsm8k: 2}", 2)]
)
def test_rows_that_do_not_count_alike_are_trained_again_where_they_were_validated_at_another_mean_alpha(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, weighted: bool, mixture: str, trained: int
) -> None:
    added = {col.LOSS_WEIGHT: [1.0]} if weighted else {}
    write_table(pa.table({col.ID: ["a"], col.ALPHA: [0.1], col.SOURCE: ["dolly"], **added}), runs.smoothed)
    runs.step(mixture=mixture)
    monkeypatch.setattr(step, "VALIDATION_VERSION", step.VALIDATION_VERSION + 1)
    runs.step(mixture=mixture)
    assert runs.trained == trained


def test_where_a_training_starts_is_in_the_lineage_and_counts(runs: Runs, tmp_path: Path) -> None:
    runs.step()
    assert LINEAGE_CONTINUED not in runs.tags
    for number in (2, 4):
        newest = tmp_path / "first" / "checkpoints" / f"step-0000000{number}-abc"
        newest.mkdir(parents=True)
        (newest / "progress.json").write_text("{}")
        for _ in range(2):
            runs.step(continue_from=str(tmp_path / "first"))
        assert runs.tags[LINEAGE_CONTINUED] == str(newest)
    assert runs.trained == 3


def test_adapters_are_continued_on_their_own_model_alone(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = {"lora.rank": 4}
    first = runs.step(**adapters).folder
    (first / "checkpoints" / "step-00000002-abc").mkdir(parents=True)
    (first / "checkpoints" / "step-00000002-abc" / "progress.json").write_text("{}")
    runs.step(continue_from=str(first), learning_rate=1e-5, **adapters)
    monkeypatch.setattr(step, "model_fingerprint", lambda _: "another")
    with pytest.raises(UserError, match="its adapters are of another model"):
        runs.step(continue_from=str(first), learning_rate=1e-6, **adapters)
    runs.step(continue_from=str(first), learning_rate=1e-6)
    assert runs.trained == 3


def test_a_mixture_is_in_the_lineage_and_makes_sources_count(runs: Runs) -> None:
    def with_source(name: str) -> None:
        numbers = {col.ALPHA: [0.1], col.LOSS_WEIGHT: [1.0]}
        write_table(pa.table({col.ID: ["a"], **numbers, col.SOURCE: [name]}), runs.smoothed)

    with_source("math")
    runs.step()
    assert LINEAGE_MIXTURE not in runs.tags
    with_source("maths")
    runs.step()
    assert runs.trained == 1, "without a mixture, names of sources do not count"
    runs.step(mixture="{maths: 2, chat: 0.5}")
    assert runs.trained == 2 and runs.tags[LINEAGE_MIXTURE] == "chat: 0.5, maths: 2"
    with_source("chat")
    runs.step(mixture="{maths: 2, chat: 0.5}")
    assert runs.trained == 3
