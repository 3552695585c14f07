"""The hub: data sets are read shard by shard, and what it refuses is explained."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import DataConfig
from ual_ray.data import hub as module
from ual_ray.data.hub import hub_commit
from ual_ray.data.peek import DataPeek
from ual_ray.data.reading import Piece, find_pieces, read_piece
from ual_ray.errors import UserError


def found(path: Path | str, **options: Any) -> list[Piece]:
    return find_pieces(DataConfig(path=str(path), **options))


def read(path: Path | str, **options: Any) -> list[Any]:
    return [row for piece in found(path, **options) for row in read_piece(piece)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the hub have every data set, of ten rows in three shards; returns what was asked of it."""
    import datasets

    asked: list[dict[str, Any]] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append({"path": path, **options})
        return datasets.Dataset.from_list([{"n": index} for index in range(10)]).to_iterable_dataset(num_shards=3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(module, "hub_commit", lambda name, revision: f"commit of {revision}")
    return asked


@pytest.mark.parametrize("name", ["owner/name-v1.1", "squad"])
def test_a_hub_name_is_read_shard_by_shard(name: str, hub: list[dict[str, Any]]) -> None:
    parts = found(name, split="test", revision="v2")
    assert [(piece.kind, piece.shards) for piece in parts] == [("hub", 3)] * 3
    rows = [[row["n"] for row in read_piece(pickle.loads(pickle.dumps(piece)))] for piece in parts]
    assert rows == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    expected = {"path": name, "name": None, "split": "test", "revision": "commit of v2", "streaming": True}
    assert hub == [expected] * 4
    assert [row["n"] for row in read(name, max_rows=5)] == [*range(5)]


def test_a_subset_goes_with_every_piece(hub: list[dict[str, Any]]) -> None:
    parts = found("openai/gsm8k", subset="main")
    assert [piece.subset for piece in parts] == ["main"] * 3
    assert [row["n"] for piece in parts for row in read_piece(pickle.loads(pickle.dumps(piece)))] == [*range(10)]
    assert [asked["name"] for asked in hub] == ["main"] * 4


def test_what_is_read_of_the_hub_is_named_for_mlflow(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"n": 1}')
    on_hub, on_disk = found("openai/gsm8k", subset="main", revision="v2"), found(tmp_path)
    seen = [DataPeek("alpaca", parts, None, [], complete=False).hub for parts in (on_hub, on_disk)]
    assert seen == [{"config_name": "main", "split": "train", "revision": "commit of v2"}, None]


def test_a_path_on_disk_comes_before_the_hub(hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "a.jsonl").write_bytes(b'{"a": 1}\n')
    monkeypatch.chdir(tmp_path)
    assert read("squad") == [{"a": 1}]
    assert hub == []


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (ConnectionError("Couldn't reach 'x/y' on the Hub (LocalEntryNotFoundError)"), "cannot be reached", "network"),
        ("Dataset 'x/y' doesn't exist on the Hub or cannot be accessed.", "neither here nor on the hub", "working directory"),
        ("Dataset 'x/y' is a gated dataset on the Hub. You must be authenticated", "denies access", "HF_TOKEN"),
        (ValueError("Bad split: dev. Available splits: ['train']"), "no such split", "set data.split"),
        (ValueError("Config name is missing.\nPlease pick one"), "several configurations", "data.subset=NAME"),
        (KeyError("odd"), "cannot be read", "download"),
    ],
)
def test_what_the_hub_refuses(error: Any, what: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    raised = datasets.exceptions.DatasetNotFoundError(error) if isinstance(error, str) else error

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(module, "hub_commit", lambda name, revision: revision)
    with pytest.raises(UserError, match=rf"(?s){what}.*x/y.*{fix}"):
        found("x/y", split="dev")


@pytest.fixture
def with_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder with two configurations stand for every data set of the hub, so that the errors are those of datasets."""
    import datasets

    card = {"configs": [{"config_name": name, "data_files": f"{name}.jsonl"} for name in ("main", "it's")]}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    for name in ("main", "it's"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"of": name}))
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: load(str(tmp_path), **{**options, "revision": None}))
    monkeypatch.setattr(module, "hub_commit", lambda name, revision: revision)


@pytest.mark.usefixtures("with_subsets")
def test_a_subset_is_read() -> None:
    assert read("x/y", subset="main") == [{"of": "main"}]
    assert read("x/y", subset="it's") == [{"of": "it's"}]


@pytest.mark.usefixtures("with_subsets")
@pytest.mark.parametrize(
    ("subset", "what"),
    [(None, "several configurations.*x/y, split train"), ("no", "no such configuration.*x/y, subset no, split train")],
)
def test_the_subsets_are_listed_where_one_is_needed(subset: str | None, what: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)data\.subset.*{what}\n.*expected: main, it's\n.*data\.subset=main$"):
        found("x/y", subset=subset)


@pytest.mark.usefixtures("with_subsets")
def test_other_errors_name_the_subset() -> None:
    with pytest.raises(UserError, match=r"(?s)data\.split.*no such split.*x/y, subset main, split dev"):
        found("x/y", subset="main", split="dev")


def test_a_hub_that_goes_away_while_it_is_read(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(self: Any) -> Iterator[Any]:
        yield {"n": 0}
        raise ConnectionError("gone")

    (piece, *_) = found("x/y")
    monkeypatch.setattr(datasets.IterableDataset, "__iter__", fail)
    with pytest.raises(UserError, match=r"(?s)cannot be reached.*gone"):
        [*read_piece(piece)]


def test_the_commit_of_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Api:
        def dataset_info(self, name: str, revision: str | None, timeout: float) -> Any:
            assert timeout <= 5
            if name == "away":
                raise ConnectionError
            return type("Info", (), {"sha": "c" * 40})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub_commit("x/y", "main") == "c" * 40
    assert hub_commit("x/y", "d" * 40) == "d" * 40
    assert hub_commit("away", "main") == "main"
    assert hub_commit("away", None) is None
