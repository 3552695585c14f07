"""The parts of the loop that need no ranks: random numbers by step, the choice of a checkpoint, the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train.checkpoint import Saved
from ual_ray.train.export import model_card
from ual_ray.train.loop import choose, resume, seed_generators
from ual_ray.train.progress import Progress

START = Progress("plan", 7)


class Kept:
    """Stands for the checkpoints of a run; remembers what was checked and loaded."""

    def __init__(self, *progress: Progress) -> None:
        self._saved = [Saved(one, f"folder {one.step}") for one in progress]
        self.checked: list[int] = []
        self.loaded: list[tuple[int, bool]] = []

    def saved(self) -> list[Saved]:
        return self._saved

    def newest(self) -> Saved | None:
        return self._saved[-1] if self._saved else None

    def check(self, saved: Saved) -> None:
        self.checked.append(saved.progress.step)

    def load(self, saved: Saved, model: Any, optimizer: Any = None) -> None:
        self.loaded.append((saved.progress.step, optimizer is not None))


def at(step: int, plan: str = "plan", best_step: int | None = None) -> Progress:
    return Progress(plan, 7, step=step, best_step=best_step)


def draw(seed: int, step: int, rank: int) -> list[float]:
    seed_generators(seed, step, rank)
    return torch.rand(4).tolist()


def test_random_numbers_follow_from_seed_step_and_rank() -> None:
    first = draw(0, 5, 1)
    torch.rand(100)
    assert draw(0, 5, 1) == first
    others = [draw(1, 5, 1), draw(0, 6, 1), draw(0, 5, 0), draw(0, 1, 5)]
    assert first not in others
    assert len({tuple(values) for values in others}) == 4


def test_it_goes_on_from_the_newest() -> None:
    model: Any = None
    kept = Kept(at(10), at(20))
    checkpoints: Any = kept
    assert resume(checkpoints, model, model, START) == at(20)
    assert kept.loaded == [(20, False)]
    empty: Any = Kept()
    assert resume(empty, model, model, START) is START


@pytest.mark.parametrize("other", [at(10, plan="another"), Progress("plan", 8, step=10)])
def test_it_does_not_go_on_with_other_rows(other: Progress) -> None:
    checkpoints: Any = Kept(other)
    model: Any = None
    with pytest.raises(UserError, match="of another training run"):
        resume(checkpoints, model, model, START)


@pytest.mark.parametrize(
    ("export", "best_step", "step", "loaded"),
    [("last", 10, 20, []), ("best", 10, 10, [(10, False)]), ("best", 20, 20, [])],
)
def test_the_weights_that_leave(export: str, best_step: int | None, step: int, loaded: list[tuple[int, bool]]) -> None:
    kept = Kept(at(10, best_step=best_step), at(20, best_step=best_step))
    checkpoints: Any = kept
    model: Any = None
    config = TrainConfig(export=export)  # type: ignore[arg-type]
    progress, origin = choose(checkpoints, model, at(20, best_step=best_step), config)
    assert (progress.step, origin) == (step, f"folder {step}")
    assert kept.loaded == loaded and kept.checked == [at for at, _ in loaded]


def test_the_card_says_where_a_model_comes_from() -> None:
    progress = Progress("plan", 7, step=40, samples=1234, tokens=56789)
    card = model_card("a/model", TrainConfig(), progress, {"ual_ray.arm": "ual"}, {"nll": 1.23456, "epoch": 1})
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == "a/model"
    assert "uncertainty-aware-learning" in yaml.safe_load(header)["tags"]
    for words in ("step 40", "1,234 samples", "56,789 tokens", "| ual_ray.arm | ual |", "| nll | 1.235 |", "| learning_rate |"):
        assert words in body
    assert "num_workers" not in body, "where it was trained is not what it is"


@pytest.mark.parametrize(
    ("model", "named"),
    [("demo", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("gpt2", "gpt2"), ("own/model", None), ("/gone/model", None)],
)
def test_the_card_links_to_a_model_of_the_hub_alone(
    model: str, named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub refuses a card whose base model is a directory."""
    monkeypatch.chdir(tmp_path)
    Path("own/model").mkdir(parents=True)
    header = model_card(model, TrainConfig(), START, {}, {}).split("---\n")[1]
    assert yaml.safe_load(header).get("base_model") == named


def test_a_card_without_lineage_has_no_empty_table() -> None:
    assert "Lineage" not in model_card("a/model", TrainConfig(), START, {}, {})
