"""Trainings side by side: the same folders as one after another, models registered in order, as many as there is room for."""

from __future__ import annotations

import io
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.experiment import tuning
from ual_ray.experiment.tuning import train_seeds, trainings_at_once
from ual_ray.run import cluster
from ual_ray.run.step import Session

ARMS = "arms={sft: {map: none}, ual: {}}"
GIB = 2**30


class Lab:
    """Trains nothing, in random order; a training is a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root, self.random, self.lock = root, random.Random(0), threading.Lock()
        self.console = Console(file=io.StringIO(), width=200)
        self.trained: list[str] = []
        self.registered: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        monkeypatch.setattr(tuning, "smooth_arm", lambda session, arm, scored, tokens, home: home / arm)
        monkeypatch.setattr(tuning, "train_arm", self.train)
        monkeypatch.setattr(tuning, "register_arm", self.register)

    def train(self, session: Session, arm: str, smoothed: Path, *_: Any, register: bool) -> SimpleNamespace:
        assert not register and smoothed.name == arm
        title, started = f"{arm} {session.config.seed}", time.monotonic()
        session.connect()
        time.sleep(0.05 + self.random.random() / 5)
        with self.lock:
            self.spans[title] = (started, time.monotonic())
            self.trained.append(title)
        if title in self.fails:
            raise self.fails[title]
        return SimpleNamespace(folder=smoothed / f"trained-{session.config.seed}")

    def register(self, session: Session, arm: str, _: Path, done: SimpleNamespace) -> None:
        assert done.folder.name == f"trained-{session.config.seed}" and done.folder.parent.name == arm
        self.registered.append(f"{arm} {session.config.seed}")

    def run(self, *overrides: str) -> dict[int, Any]:
        config = load(None, [ARMS, "experiment.seeds=[3, 1, 2]", *overrides])
        shared = Session(config, self.console, None)
        sessions = {
            seed: Session(
                config.model_copy(update={"seed": seed}), self.console, None, cluster=shared.cluster, label=f"seed {seed}"
            )
            for seed in config.experiment.seeds
        }
        homes = {seed: self.root / f"seed-{seed}" for seed in sessions}
        return train_seeds(sessions, homes, self.root, self.root, self.root)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    def connect(session: Session) -> None:
        session.cluster.free = {"CPU": 4.0}

    monkeypatch.setattr(Session, "_connect", connect)
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    return Lab(monkeypatch, tmp_path)


ORDER = ["sft 3", "ual 3", "sft 1", "ual 1", "sft 2", "ual 2"]


def overlap(spans: dict[str, tuple[float, float]]) -> bool:
    ordered = sorted(spans.values())
    return any(later[0] < earlier[1] for earlier, later in zip(ordered, ordered[1:], strict=False))


@pytest.mark.slow
def test_side_by_side_gives_the_same_as_one_after_another(lab: Lab) -> None:
    one = lab.run("experiment.parallel=1")
    assert lab.trained == lab.registered == ORDER and not overlap(lab.spans)
    lab.trained.clear()
    lab.registered.clear()
    many = lab.run("experiment.parallel=3")
    assert overlap(lab.spans) and sorted(lab.trained) == sorted(ORDER)
    assert lab.registered == ORDER, "whichever training ends first"
    assert many == one and [*many] == [3, 1, 2] and [*many[1].trained] == ["sft", "ual"]
    assert "up to 3 side by side (experiment.parallel=3)" in lab.console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_failure_ends_it_after_those_that_run_and_all_failures_are_printed(lab: Lab) -> None:
    lab.fails = {"ual 3": UserError("no row is left"), "sft 1": UserError("no disk is left")}
    with pytest.raises(UserError, match="no row is left"):
        lab.run("experiment.parallel=3")
    printed = lab.console.file.getvalue()  # type: ignore[attr-defined]
    assert "train ual (seed 3) failed, no other one is started: no row is left" in printed
    assert set(lab.trained) < set(ORDER) and lab.registered == []


def test_what_is_finished_needs_no_cluster(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(session: Session, arm: str, smoothed: Path, *_: Any, register: bool) -> SimpleNamespace:
        return SimpleNamespace(folder=smoothed / f"trained-{session.config.seed}")

    monkeypatch.setattr(tuning, "train_arm", train)
    monkeypatch.setattr(Session, "connect", lambda _: pytest.fail("nothing is to be trained"))
    lab.run()
    assert lab.registered == ORDER


@pytest.mark.parametrize(
    ("nodes", "free", "overrides", "expected"),
    [
        ([4], {"CPU": 2.0}, ["train.num_workers=2"], 1),
        ([4], {"CPU": 2.0}, ["train.num_workers=1"], 2),
        ([10], {"CPU": 8.0}, ["train.num_workers=2"], 4),
        ([10], {"CPU": 8.0}, ["train.num_workers=2", "train.cpus_per_worker=3"], 1),
        ([10], {"CPU": 0.0}, ["train.num_workers=2"], 1),
        ([10], {}, ["train.num_workers=2"], 1),
        # Three cores of each node hold one worker of two.
        ([3, 3], {"CPU": 6.0}, ["train.num_workers=1", "train.cpus_per_worker=2"], 2),
        ([8], {"CPU": 8.0}, ["train.gpus_per_worker=1", "train.num_workers=2"], 1),
        ([64], {"CPU": 64.0, "GPU": 8.0}, ["train.gpus_per_worker=1", "train.num_workers=2"], 4),
        ([64], {"CPU": 64.0, "GPU": 3.0}, ["train.gpus_per_worker=1", "train.num_workers=2"], 1),
        ([8], {"CPU": 8.0}, ["train.num_workers=1", "experiment.parallel=20"], 20),
    ],
)
def test_auto_is_what_the_free_resources_hold(
    monkeypatch: pytest.MonkeyPatch, nodes: list[float], free: dict[str, float], overrides: list[str], expected: int
) -> None:
    alive = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": 8.0}} for cpus in nodes]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 99.0}}])
    session = Session(load(None, overrides), Console(file=io.StringIO()), None)
    session.cluster.free = free
    monkeypatch.setattr(tuning, "parameter_count", lambda _: None)
    assert trainings_at_once(session) == expected


def test_models_that_do_not_fit_into_memory_together_train_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 16.0}}])
    # float32 weights, gradients, two moments and a copy for the checkpoint: 28 bytes a parameter, and the process.
    monkeypatch.setattr(tuning, "parameter_count", lambda _: 500_000_000)
    session = Session(load(None, ["train.num_workers=1"]), Console(file=io.StringIO()), None)
    for gib, expected in ((16, 1), (2 * 2 * 14.6, 2), (1000, 16)):
        session.cluster.free = {"CPU": 16.0, "memory": gib * GIB}
        assert trainings_at_once(session) == expected


def test_a_local_cluster_counts_no_cores_that_it_has_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: {"CPU": 4.0, "memory": 1.0})
    assert cluster.free_resources(load(None, [])) == {"CPU": 2.0, "memory": 1.0}
    assert cluster.free_resources(load(None, ["runtime.address=auto"])) == {"CPU": 4.0, "memory": 1.0}


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_other_numbers_of_trainings_are_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"experiment\.parallel"):
        load(None, [f"experiment.parallel={value}"])
