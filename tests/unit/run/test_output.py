"""The output folder: stages that are done stay done, and nobody works in another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.run.output import Workspace
from ual_ray.run.stage_cache import KEPT_FILES, newest, point_to, run_stage, stage_digest


def work(calls: list[int]) -> Any:
    def do() -> dict[str, Any]:
        calls.append(1)
        return {"answer": 42}

    return do


def test_a_stage_is_done_once_per_digest(tmp_path: Path) -> None:
    calls: list[int] = []
    first = run_stage(tmp_path / "a", {"x": 1}, work(calls))
    again = run_stage(tmp_path / "a", {"x": 1}, work(calls))
    assert (first.reused, again.reused, again.metrics, len(calls)) == (False, True, {"answer": 42}, 1)
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
    run_stage(tmp_path / "a", {"x": {"map": "rank", "y": 0}, "same": 2, "api_key": "before"}, work([]))
    with pytest.raises(UserError, match="(?s)another configuration.*got: x.map: 'rank' there, 'none' now\n"):
        run_stage(tmp_path / "a", {"x": {"map": "none", "y": 0}, "same": 2, "api_key": "after"}, work([]))


def test_the_digest_depends_on_values_alone() -> None:
    assert stage_digest({"a": 1, "b": (1, 2)}) == stage_digest({"b": [1, 2], "a": 1})
    assert stage_digest({"a": 1}) != stage_digest({"a": 2})


def test_an_output_belongs_to_its_data_by_content_and_to_its_model(tmp_path: Path) -> None:
    data, moved = tmp_path / "rows.jsonl", tmp_path / "elsewhere" / "rows.jsonl"  # the name is the rows' source
    moved.parent.mkdir()
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


def test_force_empties_what_the_stage_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    run_stage(folder, {"x": 1}, work([]))
    (folder / "rows").mkdir()
    (folder / "rows" / "old.parquet").write_text("old")
    for name in KEPT_FILES:
        (folder / name).write_text("kept")
    left: list[str] = []

    def again() -> dict[str, Any]:
        left.extend(file.name for file in folder.iterdir())
        return {}

    run_stage(folder, {"x": 2}, again, force=True)
    assert sorted(left) == sorted([*KEPT_FILES, "started.json"])


@pytest.mark.parametrize("after", range(4))
def test_a_stage_that_is_emptied_when_it_is_killed_is_not_done_and_can_be_emptied_again(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, unlink, removed = tmp_path / "a", Path.unlink, list[str]()
    run_stage(folder, {"x": 1}, work([]))
    for name in ("answers", "zeros"):
        (folder / name).write_text("of the old one")

    def killed(path: Path, **options: Any) -> None:
        if len(removed) == after:
            raise KeyboardInterrupt
        removed.append(path.name)
        unlink(path, **options)

    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        kill.setattr(Path, "unlink", killed)
        run_stage(folder, {"x": 1}, work([]), force=True)
    left = {file.name for file in folder.iterdir()}
    assert "done.json" not in left or {"answers", "zeros"} <= left, "done without its files"
    done = run_stage(folder, {"x": 2}, work([]), force=True)
    assert not done.reused and {file.name for file in folder.iterdir()} == {"started.json", "done.json"}


def test_force_does_not_empty_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="was not made by this stage"):
        run_stage(tmp_path, {"x": 1}, work([]), force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_force_in_a_folder_of_several_removes_what_the_stage_wrote_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    def writes() -> dict[str, Any]:
        for name in ("model", "tokens.part"):
            (tmp_path / name).mkdir()
        return {}

    run_stage(tmp_path, {"x": 1}, writes, written=["model", "tokens"])
    (tmp_path / "evaluate").mkdir()  # by another stage, after this one
    left: list[str] = []

    def again() -> dict[str, Any]:
        left.extend(file.name for file in tmp_path.iterdir())
        return {}

    done = run_stage(tmp_path, {"x": 2}, again, force=True, written=["model", "tokens"])
    assert not done.reused and sorted(left) == ["evaluate", "started.json", "thesis.tex"]


@pytest.mark.parametrize("force", [False, True])
def test_a_stage_does_not_replace_what_it_did_not_write(force: bool, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("of the model that is to be trained")
    with pytest.raises(UserError, match="(?s)did not write.*model|was not made by this stage"):
        run_stage(tmp_path, {"x": 1}, work([]), force=force, written=["model", "tokens"])
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_the_newest_part_is_remembered(tmp_path: Path) -> None:
    assert newest(tmp_path) == tmp_path
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        point_to(tmp_path, tmp_path / name)
        assert newest(tmp_path) == tmp_path / name


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml"])
def test_an_output_that_ual_did_not_make_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"(?s)not empty and was not made by ual.*{name}"):
        Workspace(tmp_path).check_owner(Config())


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="output is not a directory"):
        Workspace(tmp_path / "out").check_owner(Config())


def test_an_output_that_is_new_or_holds_a_log_is_anybodys(tmp_path: Path) -> None:
    Workspace(tmp_path / "new").check_owner(Config())
    with Workspace(tmp_path).held():
        Workspace(tmp_path).log_file.write_text("chatter")
        Workspace(tmp_path).check_owner(Config())


def test_a_folder_that_cannot_be_written_is_the_users_error() -> None:
    refused = pytest.raises(UserError, match=r"(?s)output /proc/ual cannot be written.*expected: a writable directory")
    with refused, Workspace(Path("/proc/ual")).held():
        pass
