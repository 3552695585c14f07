"""The SQLite store of an output folder is made whole or not at all."""

from pathlib import Path

import pytest

from ual_ray.config import TrackingConfig
from ual_ray.tracking.tracker import Tracker


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
