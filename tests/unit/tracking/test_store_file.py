"""The SQLite store of an output folder is made whole or not at all."""

import re
from pathlib import Path

import pytest

from ual_ray.config import TrackingConfig
from ual_ray.errors import UserError
from ual_ray.tracking.tracker import Tracker


@pytest.mark.slow
def test_a_store_that_was_interrupted_while_it_was_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        kill.setattr(Path, "hardlink_to", killed)
        Tracker(TrackingConfig(), tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    with Tracker(TrackingConfig(), tmp_path) as tracker:
        assert tracker.experiment_id
    assert (tmp_path / "mlflow.db").is_file() and not [*tmp_path.glob("*.part")]


@pytest.mark.slow
def test_a_store_that_another_command_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Path.hardlink_to

    def late(path: Path, target: Path) -> None:
        monkeypatch.setattr(Path, "hardlink_to", link)
        with Tracker(TrackingConfig(experiment="theirs"), tmp_path) as other:
            assert other.experiment_id
        link(path, target)

    monkeypatch.setattr(Path, "hardlink_to", late)
    with Tracker(TrackingConfig(), tmp_path) as tracker:
        assert tracker.client.get_experiment_by_name("theirs") is not None
    assert not [*tmp_path.glob("*.part")]


def test_a_store_is_made_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, target: Path) -> None:
        raise PermissionError("hard links are not supported")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", refused)
        Tracker(TrackingConfig(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    with Tracker(TrackingConfig(), tmp_path) as found:
        assert found.experiment_id


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50%", "ä b#c&d'e\"f", "%zz"])
def test_the_store_is_in_its_folder_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "note.txt").write_text("hello")
    with Tracker(TrackingConfig(), folder) as tracker, tracker.run("report", folder, {}) as run:
        run.artifact(folder / "note.txt")
        assert tracker.client.get_run(str(run.id)).info.run_name == "report"
    assert tracker.complaint() is None
    assert (folder / "mlflow.db").is_file() and [file.parent.name for file in folder.glob("*/*/*/note.txt")] == ["artifacts"]
    assert [place.name for place in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "found"), [("lr?1", "'?'"), ("a%20b", "'%20'"), ("%3F", "'%3F'"), ("a%3fb/run", "'%3f'")])
def test_a_folder_that_is_another_one_in_the_stores_address_is_refused(tmp_path: Path, name: str, found: str) -> None:
    """SQLite would open a file of another folder, or none after MLflow tried for 100 s."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=f"in a folder of this name(?s:.*){re.escape(found)}(?s:.*)tracking.uri"):
        Tracker(TrackingConfig(), folder)
    assert not [*folder.iterdir()] and len([*tmp_path.iterdir()]) == 1
