"""The output folder: stages that are done stay done, and nobody works in another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import Config, load
from ual_ray.errors import UserError
from ual_ray.workspace import Workspace, run_stage, stage_digest


def work(calls: list[int]) -> Any:
    def do() -> dict[str, Any]:
        calls.append(1)
        return {"answer": 42}

    return do


def test_a_stage_is_done_once_per_digest(tmp_path: Path) -> None:
    calls: list[int] = []
    first = run_stage(tmp_path / "a", {"x": 1}, work(calls))
    again = run_stage(tmp_path / "a", {"x": 1}, work(calls))
    assert (first.reused, again.reused, again.figures, len(calls)) == (False, True, {"answer": 42}, 1)
    assert run_stage(tmp_path / "a", {"x": 1}, work(calls), force=True).reused is False


def test_an_interrupted_stage_finds_what_it_left(tmp_path: Path) -> None:
    def interrupted() -> dict[str, Any]:
        (tmp_path / "a" / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "a", {"x": 1}, interrupted)
    calls: list[int] = []
    assert run_stage(tmp_path / "a", {"x": 1}, work(calls)).reused is False
    assert (tmp_path / "a" / "half.txt").read_text() == "half"


def test_a_folder_of_another_configuration_is_refused_and_names_the_difference(tmp_path: Path) -> None:
    run_stage(tmp_path / "a", {"x": 1, "same": 2}, work([]))
    with pytest.raises(UserError, match="(?s)another configuration.*different: x\n"):
        run_stage(tmp_path / "a", {"x": 3, "same": 2}, work([]))


def test_the_digest_depends_on_values_alone() -> None:
    assert stage_digest({"a": 1, "b": (1, 2)}) == stage_digest({"b": [1, 2], "a": 1})
    assert stage_digest({"a": 1}) != stage_digest({"a": 2})


def test_an_output_belongs_to_its_data_by_content_and_to_its_model(tmp_path: Path) -> None:
    data, moved = tmp_path / "rows.jsonl", tmp_path / "moved.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    moved.write_bytes(data.read_bytes())
    workspace = Workspace(tmp_path / "out")
    workspace.claim(load(None, [f"data.path={data}"]))
    workspace.check_owner(load(None, [f"data.path={moved}", "train.epochs=7"]))
    moved.write_text('{"instruction": "a", "output": "other"}\n')
    for overrides in ([f"data.path={moved}"], [f"data.path={data}", "model=other/model"]):
        with pytest.raises(UserError, match="belongs to another configuration"):
            workspace.check_owner(load(None, overrides))


def test_the_configuration_in_force_is_written_down(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.claim(load(None, ["train.epochs=7"]))
    assert load(tmp_path / "config.yaml").train.epochs == 7
    assert json.loads((tmp_path / "owner.json").read_text())["model"] == Config().model


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        Workspace(tmp_path / "out").held(),
        pytest.raises(UserError, match="another run is working"),
        Workspace(tmp_path / "out").held(),
    ):
        pass
    with Workspace(tmp_path / "out").held():
        pass
