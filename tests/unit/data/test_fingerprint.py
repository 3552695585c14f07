"""Fingerprints: of the content and not of the place, cheap where the data is large or far away."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ual_ray.config import DataConfig
from ual_ray.data import fingerprint as module
from ual_ray.data.fingerprint import fingerprint


def data_folder(folder: Path, content: bytes = b'{"a": 1}\n') -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(content)
    (folder / "sub" / "b.jsonl").write_bytes(b'{"b": 1}\n')
    return folder


def print_of(path: Path) -> str:
    return fingerprint(DataConfig(path=str(path)))


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    first = data_folder(tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "deep" / "second"))
    os.utime(second / "a.jsonl", (1, 1))
    (second / "README.md").write_text("not read")
    assert print_of(first) == print_of(second)
    assert print_of(first / "a.jsonl") == print_of(second / "a.jsonl")
    assert print_of(first / "a.jsonl") == fingerprint(DataConfig(path=(first / "a.jsonl").as_uri()))


def test_the_fingerprint_changes_with_content_and_names(tmp_path: Path) -> None:
    first = data_folder(tmp_path / "first")
    before = print_of(first)
    (first / "a.jsonl").write_bytes(b'{"a": 2}\n')
    changed = print_of(first)
    (first / "a.jsonl").rename(first / "c.jsonl")
    assert len({before, changed, print_of(first), fingerprint(DataConfig())}) == 4


def test_the_fingerprint_of_large_data_reads_their_ends_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HASHED_WHOLE", 10)
    monkeypatch.setattr(module, "SAMPLE", 4)
    path = tmp_path / "a.jsonl"
    seen = set()
    for content in (b"begin.....end.", b"begin.....END.", b"BEGIN.....end.", b"begin......end."):
        path.write_bytes(content)
        os.utime(path, (1, 1))
        seen.add(print_of(path))
    os.utime(path, (2, 2))
    assert len({*seen, print_of(path)}) == 5


def test_the_fingerprint_of_a_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hub_commit", lambda name, revision: f"commit of {revision}")
    options = [{}, {"path": "x/z"}, {"split": "test"}, {"revision": "v2"}, {"subset": "main"}, {"subset": "test"}]
    prints = [fingerprint(DataConfig(**{"path": "x/y", **option})) for option in options]
    assert len(set(prints)) == len(options)
    assert prints[0] == fingerprint(DataConfig(path="x/y", split="train"))
