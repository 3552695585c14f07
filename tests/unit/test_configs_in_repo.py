"""Every configuration in the repository is legal."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray.benchmarks import make_benchmarks
from ual_ray.config import Config
from ual_ray.config.load import dump, load
from ual_ray.evaluate.questions import check

FOLDER = Path(__file__).parents[2] / "jobs" / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_there_is_one() -> None:
    assert CONFIGS, f"{FOLDER} holds no *.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_loads_and_survives_dump(path: Path, tmp_path: Path) -> None:
    config = load(path)
    (tmp_path / "again.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "again.yaml") == config


@pytest.mark.slow
def test_no_two_write_to_the_same_folder() -> None:
    outputs = [load(path).output for path in CONFIGS]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=lambda path: path.name if path else "defaults")
def test_the_context_holds_the_answers_that_its_benchmarks_ask_for(path: Path | None) -> None:
    config = load(path)
    check(config.evaluate.benchmarks, config.engine.max_model_len)


def test_by_default_answers_to_gsm8k_are_as_long_as_people_use() -> None:
    assert make_benchmarks(Config().evaluate.benchmarks)["gsm8k"].max_new_tokens == 1024


def test_the_demo_asks_for_short_answers() -> None:
    asked = {name: load(FOLDER / name).evaluate.benchmarks["gsm8k"].max_new_tokens for name in ("demo.yaml", "tiny.yaml")}
    assert all(length and length <= 160 for length in asked.values()), asked
