"""Which outputs the driver's machine alone has, and what follows from it for tasks, folders and checkpoints."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pytest

from ual_ray.config.files import URI_FILE, WORKING_FOLDERS
from ual_ray.errors import UserError
from ual_ray.parquet import write_table
from ual_ray.run import machines
from ual_ray.run.folder import HERE, FolderElsewhere
from ual_ray.run.machines import Place, file_source


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder of a URI."""
    monkeypatch.setenv("UAL_CACHE", str(tmp_path))
    root = tmp_path / WORKING_FOLDERS / "0123" / "first"
    root.mkdir(parents=True)
    (root.parent / URI_FILE).write_text("s3://bucket/first")
    return root


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Collect the actors that are started."""
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(machines, "on_this_node", lambda *arguments, **options: made.append((*arguments, options["name"])))
    return made


def kept(monkeypatch: pytest.MonkeyPatch, place: Place, node: str) -> None:
    """Have an actor, as a process of a node sees it."""
    monkeypatch.setattr(machines, "_caller", lambda: (SimpleNamespace(), place))
    monkeypatch.setattr(machines.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node))


def test_the_working_folder_of_a_uri_is_reached_by_an_actor(output: Path, started: list[tuple[Any, ...]]) -> None:
    machines.keep_here(output)
    assert started == [(machines.Caller, output, "s3://bucket/first", machines.NAME)]
    assert machines.keep_here(output.parents[2] / "shared" / "run") is None and len(started) == 1


def test_a_client_outside_of_the_cluster_is_refused(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines.ray.util.client.ray, "is_connected", lambda: True)
    with pytest.raises(UserError, match=r"(?s)outside of the cluster.*ual submit"):
        machines.keep_here(output)
    assert machines.keep_here(output.parents[2] / "shared" / "run") is None


def test_without_the_actor_all_machines_see_the_folder() -> None:
    assert machines.output_folder() is HERE
    assert machines.here() == {} and machines.checkpoints_uri() is None


def test_a_process_of_the_drivers_machine_uses_the_folder_and_others_reach_it(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(output, "s3://bucket/first", "node-a")
    kept(monkeypatch, place, "node-a")
    assert machines.output_folder() is HERE
    kept(monkeypatch, place, "node-b")
    found = machines.output_folder()
    assert isinstance(found, FolderElsewhere) and found.root == output
    assert not found.copies.is_relative_to(output.parents[1]), "it may be the working folder of a command of that machine"
    assert machines.here() == {"num_cpus": 0, "label_selector": {"ray.io/node-id": "node-a"}}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/first/", "s3://bucket/first-checkpoints"),
        ("s3://bucket/first?region=eu-west-1", "s3://bucket/first-checkpoints?region=eu-west-1"),
    ],
)
def test_checkpoints_lie_beside_the_output(uri: str, expected: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(monkeypatch, Place(output, uri, "node-a"), "node-a")
    assert machines.checkpoints_uri() == expected


def test_files_are_read_with_a_task_each(tmp_path: Path) -> None:
    for number in range(3):
        write_table(pa.table({"id": [f"{number}a", f"{number}b"], "split": ["train", "test"]}), tmp_path / f"{number}.parquet")
    source = file_source(tmp_path, ["id"], pyarrow.compute.field("split") == "test")
    tasks = source.get_read_tasks(parallelism=100)
    assert [pa.concat_tables(task()).to_pydict() for task in tasks] == [{"id": [f"{number}b"]} for number in range(3)]
    (nothing, *_) = file_source(tmp_path, ["id"], pyarrow.compute.field("split") == "none").get_read_tasks(100)
    assert pa.concat_tables(nothing()).to_pydict() == {"id": []}


@pytest.mark.parametrize(
    ("blind", "refused"),
    [
        ([], []),
        (["10.0.0.3"], ["10.0.0.3"]),
        (["10.0.0.2", "10.0.0.3"], ["10.0.0.2", "10.0.0.3"]),
        (["10.0.0.4"], []),  # dead
        (["10.0.0.5"], []),  # gets no work
    ],
)
def test_a_folder_that_a_machine_does_not_see_is_refused(
    blind: list[str], refused: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        {"NodeID": f"10.0.0.{number}", "NodeManagerAddress": f"10.0.0.{number}", "Alive": number != 4, "Resources": resources}
        for number, resources in enumerate([{"CPU": 2.0}, {"CPU": 2.0}, {"GPU": 1.0}, {"CPU": 2.0}, {"memory": 9.0}], 1)
    ]
    asked: list[str] = []

    def sees(node: str, file: str) -> bool:
        asked.append(node)
        return Path(file).is_file() and node not in blind

    monkeypatch.setattr(machines.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(machines, "_sees", lambda node, file: (node, sees(node, file)))
    monkeypatch.setattr(machines, "_seen", lambda answer: answer[1])
    monkeypatch.setattr(machines.ray, "wait", lambda answers, **_: (answers, []))
    if refused:
        with pytest.raises(UserError, match=f"(?s)not on storage.*{tmp_path} on {', '.join(refused)}\n.*s3://"):
            machines.check_shared(tmp_path)
    else:
        machines.check_shared(tmp_path)
    assert asked == ["10.0.0.1", "10.0.0.2", "10.0.0.3"] and not [*tmp_path.iterdir()]


def test_a_cluster_of_one_machine_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"NodeID": "1", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(machines.ray, "nodes", lambda: [one])
    machines.check_shared(tmp_path)


@pytest.mark.slow
def test_a_file_may_appear_late(tmp_path: Path) -> None:
    late = tmp_path / "late"
    timer = threading.Timer(0.5, late.touch)
    timer.start()
    assert machines._appears(str(late), 20)
    assert not machines._appears(str(tmp_path / "never"), 0.3)
    timer.join()
