"""A folder of another machine: copies of what is read, what is written and sent, and functions that are called there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ual_ray.run import folder as folders
from ual_ray.run.folder import HERE, FolderElsewhere, append


class There:
    """Stands for the actor: functions are called at once, and remembered by name."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.called.append(function.__name__)
        return function(*arguments)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> There:
    monkeypatch.setattr(folders, "CHUNK", 3)
    return There()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "driver" / "run"


@pytest.fixture
def elsewhere(there: There, root: Path, tmp_path: Path) -> FolderElsewhere:
    root.mkdir(parents=True)
    return FolderElsewhere(there, root, tmp_path / "worker" / "copies")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_that_this_machine_sees_is_used_as_it_is(root: Path) -> None:
    root.mkdir(parents=True)
    assert HERE.fetched(root) == root and HERE.fetched_model("org/name") == "org/name"
    with HERE.writing(root / "a") as path:
        assert path == root / "a"
    HERE.call(append, root / "a", "one")
    HERE.call(append, root / "a", " two")
    assert (root / "a").read_text() == "one two"


def test_what_is_read_is_copied_once_and_again_where_it_changed(elsewhere: FolderElsewhere, there: There, root: Path) -> None:
    tokens = {"a.arrow": b"0123456789", "below/b.arrow": b"", "c.arrow": b"abc"}
    for name, content in tokens.items():
        (root / "tokens" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tokens" / name).write_bytes(content)
    (root / "tokens" / "d.arrow.part").write_bytes(b"half")
    copy = elsewhere.fetched(root / "tokens")
    assert not copy.is_relative_to(root) and contents(copy) == tokens
    assert os.stat(copy / "a.arrow").st_mtime_ns == os.stat(root / "tokens" / "a.arrow").st_mtime_ns

    there.called.clear()
    assert elsewhere.fetched(root / "tokens") == copy
    assert there.called == ["versions"]

    (root / "tokens" / "c.arrow").unlink()
    (root / "tokens" / "a.arrow").write_bytes(b"9876543210")
    os.utime(root / "tokens" / "a.arrow", ns=(1, 1))
    assert contents(elsewhere.fetched(root / "tokens")) == {"a.arrow": b"9876543210", "below/b.arrow": b""}
    assert contents(elsewhere.fetched(root / "tokens" / "a.arrow").parent) == contents(copy), (
        "a file of it is in the same place"
    )


def test_a_file_that_is_gone_is_gone_here_too(elsewhere: FolderElsewhere, root: Path) -> None:
    (root / "rows.parquet").write_bytes(b"rows")
    copy = elsewhere.fetched(root / "rows.parquet")
    assert copy.read_bytes() == b"rows"
    (root / "rows.parquet").unlink()
    assert not elsewhere.fetched(root / "rows.parquet").exists()


def test_models_of_the_output_are_fetched_and_others_are_named_as_before(elsewhere: FolderElsewhere, root: Path) -> None:
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    found = elsewhere.fetched_model(str(root / "model"))
    assert found != str(root / "model") and contents(Path(found)) == {"config.json": b"{}"}
    for name in ("demo", "org/name", "/models/base"):
        assert elsewhere.fetched_model(name) == name


def test_a_file_that_changes_while_it_is_copied_is_an_error(
    elsewhere: FolderElsewhere, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").write_bytes(b"0123456789")
    monkeypatch.setattr(folders, "read_chunk", lambda path, start: b"01" if start == 9 else b"012")
    with pytest.raises(OSError, match="has 11 bytes in place of 10: it changed while it was copied"):
        elsewhere.fetched(root / "a")
    assert contents(elsewhere.copies).keys() & {"a"} == set()


def test_what_is_written_is_sent_when_it_is_whole_and_removed_here(elsewhere: FolderElsewhere, root: Path) -> None:
    with elsewhere.writing(root / "model.part" / "shard") as file:
        file.write_bytes(b"0123456789")
        assert not (root / "model.part").exists()
    with elsewhere.writing(root / "model.part") as folder:
        (folder / "below").mkdir(parents=True)
        (folder / "config.json").write_bytes(b"{}")
        (folder / "below" / "empty").touch()
    assert contents(root) == {"model.part/shard": b"0123456789", "model.part/config.json": b"{}", "model.part/below/empty": b""}
    assert contents(elsewhere.copies) == {}
    with elsewhere.writing(root / "nothing"):
        pass
    assert not (root / "nothing").exists()


def test_nothing_is_sent_where_the_writing_fails(elsewhere: FolderElsewhere, root: Path) -> None:
    with pytest.raises(ValueError, match="no"), elsewhere.writing(root / "shard") as file:
        file.write_bytes(b"half")
        raise ValueError("no")
    assert contents(root) == contents(elsewhere.copies) == {}


def test_a_file_that_arrives_in_part_does_not_get_its_name(
    elsewhere: FolderElsewhere, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "shard").write_bytes(b"before")
    write = folders.write_chunk
    monkeypatch.setattr(folders, "write_chunk", lambda path, start, content: write(path, start, b"" if start == 9 else content))
    with pytest.raises(OSError, match="in place of 10"), elsewhere.writing(root / "shard") as file:
        file.write_bytes(b"0123456789")
    assert (root / "shard").read_bytes() == b"before"
