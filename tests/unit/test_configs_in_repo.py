"""Every configuration in the repository is legal."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray.config.load import dump, load

FOLDER = Path(__file__).parents[2] / "jobs" / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_there_is_one() -> None:
    assert CONFIGS, f"{FOLDER} holds no *.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_loads_and_survives_dump(path: Path, tmp_path: Path) -> None:
    config = load(path)
    (tmp_path / "again.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "again.yaml") == config


def test_no_two_write_to_the_same_folder() -> None:
    outputs = [load(path).output for path in CONFIGS]
    assert len(set(outputs)) == len(outputs)
