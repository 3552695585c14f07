"""What a job takes along: the configuration and the data, and nothing that points back at the submitter's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray.config import load
from ual_ray.errors import UserError
from ual_ray.submit import entrypoint, pack


def test_the_data_travels_and_the_paths_change(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    data = tmp_path / "here" / "rows.jsonl"
    data.write_text("{}")
    pack(load(None, [f"data.path={data}", "output=/shared/out", "train.epochs=5"]), tmp_path / "there")
    assert (tmp_path / "there" / "rows.jsonl").read_text() == "{}"
    sent = load(tmp_path / "there" / "config.yaml")
    assert (sent.data.path, sent.runtime.address, sent.output, sent.train.epochs) == ("rows.jsonl", "auto", "/shared/out", 5)
    assert entrypoint(sent).endswith('run "$here/config.yaml" "data.path=$here/rows.jsonl"')
    assert str(tmp_path) not in (tmp_path / "there" / "config.yaml").read_text()


def test_data_on_shared_storage_stays_where_it_is(tmp_path: Path) -> None:
    sent = pack(load(None, ["data.path=/shared/rows.parquet", "output=/shared/out"]), tmp_path)
    assert sent.data.path == "/shared/rows.parquet"
    assert "data.path" not in entrypoint(sent)


@pytest.mark.parametrize("override", ["engine.arguments={hf_token: abc}", "tracking.uri='http://me:pw@host'", "model=./mine"])
def test_secrets_and_paths_of_this_machine_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="secret|path of this machine"):
        pack(load(None, ["output=/shared/out", override]), tmp_path)


def test_a_relative_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an absolute path"):
        pack(load(None, ["output=runs/x"]), tmp_path)
