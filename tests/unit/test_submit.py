"""What a job takes along: the configuration and the data, and nothing that points back at the submitter's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray.config import load
from ual_ray.errors import UserError
from ual_ray.submit import pack


def test_the_data_travels_and_the_paths_change(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    data = tmp_path / "here" / "rows.jsonl"
    data.write_text("{}")
    pack(load(None, [f"data.path={data}", "output=/shared/out", "train.epochs=5"]), tmp_path / "there")
    assert (tmp_path / "there" / "rows.jsonl").read_text() == "{}"
    sent = load(tmp_path / "there" / "config.yaml")
    assert (sent.data.path, sent.runtime.address, sent.output, sent.train.epochs) == ("rows.jsonl", "auto", "/shared/out", 5)
    assert str(tmp_path) not in (tmp_path / "there" / "config.yaml").read_text()


def test_a_relative_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="relative path"):
        pack(load(None, ["output=runs/x"]), tmp_path)
