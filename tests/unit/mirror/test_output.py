"""Which folder a command gets for a path or a URI, and what is refused."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from ual_ray.errors import UserError
from ual_ray.mirror import output as outputs
from ual_ray.mirror import remote as remotes
from ual_ray.mirror.remote import Remote, open_remote
from ual_ray.mirror.transfer import Mirror
from ual_ray.run.terminal import absolute


def test_a_path_and_a_file_uri_are_folders_of_this_machine(tmp_path: Path) -> None:
    for place in (tmp_path / "run", str(tmp_path / "run"), f"file://{tmp_path}/run"):
        found = outputs.open_output(place)
        assert (found.root, found.remote) == (tmp_path / "run", None)
        with found.held() as root:
            assert root == tmp_path / "run" and not root.exists()
    assert outputs.local_input(f"file://{tmp_path}", "x") == outputs.local_input(str(tmp_path), "x") == tmp_path


def test_every_uri_has_a_folder_of_its_own_named_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UAL_CACHE", str(tmp_path))
    uris = ["s3://a/run", "s3://b/run", "s3://a/run?region=x", "s3://a/run/"]
    folders = [outputs.working_folder(Remote(uri, LocalFileSystem(), "x")) for uri in uris]
    assert len({*folders}) == 3 and folders[0] == folders[3]
    assert all(folder.name == "run" and folder.is_relative_to(tmp_path) for folder in folders)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s4://bucket/run", "unsupported URI scheme"),
        ("http://host/run", "unsupported URI scheme"),
        ("s3://bucket:not a port", "not a usable URI"),
        ("s3://key:a-secret@bucket/run", "a password or a key is refused"),
        ("abfs://container:a-secret@account.dfs.core.windows.net/run", "a password or a key is refused"),
        ("abfs://account.blob.core.windows.net/c/run?client_secret=a-secret", "a password or a key is refused"),
        ("abfs://account.blob.core.windows.net/c/run?sv=1&sig=a-secret", "a password or a key is refused"),
        ("file:///", "names no folder"),
    ],
)
def test_a_uri_that_cannot_be_an_output_is_refused_without_its_secret(uri: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        open_remote(uri)
    assert "a-secret" not in str(refused.value) and uri.partition("://")[0] in str(refused.value)


@pytest.mark.parametrize("uri", ["abfs://container@account.dfs.core.windows.net/run", "gs://anonymous@bucket/run"])
def test_a_uri_with_a_container_or_a_user_and_no_password_is_opened(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "FileSystem", SimpleNamespace(from_uri=lambda uri: (None, "container/run")))
    assert open_remote(uri).root == "container/run"


@pytest.mark.parametrize("uri", ["abfs://container@account.dfs.core.windows.net/run", "abfss://c@a.net/run", "s3://bucket/run"])
def test_an_output_is_named_with_its_container(uri: str) -> None:
    output = outputs.Output(Path("/cache/run"), Remote(uri, LocalFileSystem(), "x"))
    assert output.name("report", "index.html") == f"{uri}/report/index.html"


def test_a_file_system_that_does_not_answer_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "ANSWER_SECONDS", 0.2)
    silent = threading.Event()
    monkeypatch.setattr(remotes, "FileSystem", SimpleNamespace(from_uri=lambda uri: silent.wait(30)))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"(?s)no answer within.*AWS_ACCESS_KEY_ID"):
        open_remote("s3://bucket/run")
    silent.set()
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_an_input_is_fetched_without_models_and_mlflow_or_mlflow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Remote("hdfs://bucket/run", LocalFileSystem(), str(tmp_path / "there"))
    of_mlflow = ("mlflow.db", "mlflow-artifacts/1/x")
    with Mirror(there, tmp_path / "here" / "run").held(print):
        for name in ("owner.json", "elicit/key/rows/a.parquet", "arms/a/train/key/model/w", *of_mlflow):
            (tmp_path / "here" / "run" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "here" / "run" / name).write_bytes(b"")
    monkeypatch.setattr(outputs, "open_remote", lambda uri, key: there)
    monkeypatch.setattr(outputs, "LocalFileSystem", type("Other", (), {}))

    def fetched(**options: Any) -> set[str]:
        root = outputs.local_input("hdfs://bucket/run", "x", **options)
        return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}

    assert fetched() == {"owner.json", "elicit/key/rows/a.parquet"}
    assert fetched(with_store=True) == {*of_mlflow}


def test_names_that_lead_out_of_the_folder_are_not_fetched(tmp_path: Path) -> None:
    class Info:
        def __init__(self, path: str) -> None:
            self.path, self.size, self.type = path, 1, remotes.FileType.File

    class Hostile:
        type_name = "s3"

        def get_file_info(self, selector: Any) -> list[Info]:
            return [Info("bucket/run/a"), Info("bucket/run/../../etc/passwd"), Info("bucket/run/b/../../../x")]

    assert Remote("s3://bucket/run", Hostile(), "bucket/run").files() == {"a": 1}


def test_commands_that_take_paths_alone_refuse_a_uri() -> None:
    with pytest.raises(UserError, match=r"(?s)a URI is not possible here.*s3://"):
        absolute(Path("s3://bucket/run"))
