"""What a run says about its surroundings, in checkouts made for the test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ual_ray.config.environment import COMMIT, OWN_COMMIT, commit_tags, environment, git_commit, source_tags


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with one commit."""
    (tmp_path / "file").write_text("one")
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "file"], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def test_the_commit_and_whether_files_differ_from_it(checkout: Path) -> None:
    commit = git_commit(checkout)
    assert commit is not None and len(commit) == 40
    (checkout / "untracked").write_text("a result")
    assert git_commit(checkout) == commit
    (checkout / "file").write_text("two")
    assert git_commit(checkout) == f"{commit}-dirty"


def test_no_checkout_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(Path.cwd()) is None


def test_the_tags_are_the_working_directory_s_and_our_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    tags = commit_tags()
    assert tags[COMMIT] == git_commit(checkout)
    assert tags.get(OWN_COMMIT) == git_commit(Path(__file__).parent)


def test_an_installed_package_does_not_take_the_commit_around_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = checkout / "site-packages" / "ual_ray" / "environment.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr("ual_ray.config.environment.__file__", str(installed))
    assert OWN_COMMIT not in commit_tags()


def test_versions() -> None:
    found = environment()
    assert {"ual_ray", "ray", "torch", "mlflow"} <= found["packages"].keys()
    assert found["cpus"] > 0 and found["python"].startswith("3.")


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("ual_ray.config.environment.getpass.getuser", nameless)
    assert source_tags()["mlflow.user"].isdigit()
