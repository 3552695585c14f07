"""Tracking to a real SQLite store that is made to be away, to lose its answers, and to refuse."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE
from tracked import Network, runs_of, tracker_of

from ual_ray.config import TrackingConfig
from ual_ray.config.files import SPOOL_FOLDER
from ual_ray.errors import UserError
from ual_ray.run.side_by_side import side_by_side
from ual_ray.tracking.journal import Operation
from ual_ray.tracking.run_file import RUN_FILE
from ual_ray.tracking.store import Store, is_away
from ual_ray.tracking.tracker import MOST_ATTEMPTS, Tracker, catch_up


def log_everything(tracker: Tracker, out: Path) -> None:
    with tracker.run("parent", out, {"stage": "pipeline"}) as parent:
        parent.params({"a": {"b": 1}})
        with tracker.run("child", out / "child", {}, parent) as child:
            for step in range(1, 31):
                child.metrics({"nll": 1 / step}, step)
            child.plot(Figure(), "plots/empty.png")
            child.table({"model": ["base"], "nll": [1.5]}, "comparison.json")
            child.dataset("rows", out / "rows.jsonl", "abc", 3, "training")


def assert_everything(tracker: Tracker, before: int, after: int) -> None:
    """Find all of it, with time stamps between the two."""
    runs = runs_of(tracker)
    parent, child = runs["parent"], runs["child"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params == {"a.b": "1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    history = tracker.client.get_metric_history(child.info.run_id, "nll")
    assert [entry.step for entry in history] == list(range(1, 31))
    times = [entry.timestamp for entry in history]
    assert times == sorted(times) and before <= times[0] <= times[-1] <= after
    assert before <= parent.info.start_time <= parent.info.end_time <= after
    files = {file.path for file in tracker.client.list_artifacts(child.info.run_id)}
    assert files == {"plots", "comparison.json"}
    assert json.loads(child.data.tags["mlflow.loggedArtifacts"]) == [{"path": "comparison.json", "type": "table"}]
    assert child.inputs.dataset_inputs[0].dataset.digest == "abc"


def now() -> int:
    return int(time.time() * 1000)


@pytest.mark.slow
def test_a_store_that_answers_is_told_at_once(tmp_path: Path, network: Network) -> None:
    before = now()
    tracker = tracker_of(tmp_path)
    log_everything(tracker, tmp_path)
    assert_everything(tracker, before, now())
    assert (tracker.close(), tracker.failures, tracker.complaint()) == (0, 0, None)
    assert not (tmp_path / SPOOL_FOLDER).exists()


@pytest.mark.slow
def test_an_outage_is_kept_and_caught_up_in_order_with_its_time_stamps(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    before, network.away = now(), True
    log_everything(tracker, tmp_path)
    after = now()
    assert runs_of(tracker) == {} and tracker.waiting > 30 and tracker.failures == 0
    time.sleep(0.1)
    network.away = False
    assert tracker.close(30) == 0
    assert_everything(tracker, before, after)
    assert not list((tracker.spool.folder / "files").iterdir())


@pytest.mark.slow
def test_an_outage_in_the_middle_of_a_run(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as run:
        run.metrics({"nll": 3.0}, 1)
        network.away = True
        run.metrics({"nll": 2.0}, 2)
        assert run.last_step("nll") == 2, "the local record knows"
        network.away = False
        run.metrics({"nll": 1.0}, 3)
    tracker.close(30)
    run_id = runs_of(tracker)["train"].info.run_id
    assert [entry.value for entry in tracker.client.get_metric_history(run_id, "nll")] == [3.0, 2.0, 1.0]
    assert run.id == run_id


@pytest.mark.slow
def test_the_next_command_sends_what_an_earlier_one_left(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    network.away = True
    with tracker.run("train", tmp_path, {}) as run:
        run.metrics({"nll": 2.0}, 1)
        assert run.id == run.local_id
    left = tracker.close(0)
    assert left == 3
    complaint = tracker.complaint() or ""
    assert "3 operations wait in" in complaint and "ual sync" in complaint and SPOOL_FOLDER in complaint

    second = tracker_of(tmp_path)
    with second.run("train", tmp_path, {}) as again:
        assert again.local_id == run.local_id, "still away, it goes on with the same run"
        assert again.last_step("nll") == 1
    second.close(0)

    network.away = False
    with tracker_of(tmp_path) as third, third.run("train", tmp_path, {}) as last:
        last.metrics({"nll": 1.0}, 2)
    (found,) = runs_of(third).values()
    assert json.loads((tmp_path / RUN_FILE).read_text())["run_id"] == found.info.run_id == last.id
    assert [entry.step for entry in third.client.get_metric_history(last.id, "nll")] == [1, 2]
    assert found.info.status == "FINISHED"


@pytest.mark.slow
def test_catch_up_sends_it_without_a_command(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    network.away = True
    log_everything(tracker, tmp_path)
    left = tracker.close(0)
    network.away = False
    for near in (tmp_path / "scenario", tmp_path / "scenario" / "seed-0", tmp_path.parent):
        near.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"operations wait in another folder(?s:.*)`ual sync {tmp_path}`"):
            catch_up(near)
    done = catch_up(tmp_path, seconds=30)
    assert (done.sent, done.refused, done.waiting) == (left, 0, 0)
    assert set(runs_of(tracker)) == {"parent", "child"}
    assert catch_up(tmp_path).sent == 0
    with pytest.raises(UserError, match="the output folder does not exist"):
        catch_up(tmp_path / "nothing")


@pytest.mark.slow
def test_an_answer_that_is_lost_opens_no_second_run(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    network.loses_answers = True
    with tracker.run("train", tmp_path, {}):
        assert network.applied == ["open"] and network.away
        network.loses_answers = network.away = False
    assert tracker.close(30) == 0
    assert network.applied.count("open") == 2
    assert runs_of(tracker)["train"].info.status == "FINISHED"


@pytest.mark.slow
def test_a_refusal_is_counted_kept_and_does_not_block(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as run:
        run.metrics({"": 1.0})
        assert tracker.failures == 1
        network.away = True
        run.metrics({"": 1.0})
        run.metrics({"good": 1.0})
        network.away = False
    assert tracker.close(30) == 0
    assert tracker.failures == 2
    assert "2 operations failed" in (tracker.complaint() or "")
    refused = [json.loads(path.read_text()) for path in (tracker.spool.folder / "refused").iterdir()]
    assert len(refused) == 2 and all("Exception" in one["reason"] for one in refused)
    assert runs_of(tracker)["train"].data.metrics == {"good": 1.0}


@pytest.mark.slow
def test_an_operation_on_which_the_store_always_fails_is_given_up(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    network.fails_on = "tags"
    with tracker.run("train", tmp_path, {}) as run:
        run.tags({"a": 1})
        run.metrics({"nll": 1.0})
    assert tracker.close(60) == 0
    assert tracker.failures == 1 and MOST_ATTEMPTS > 1
    assert runs_of(tracker)["train"].data.metrics == {"nll": 1.0}


@pytest.mark.slow
def test_a_deleted_run_is_opened_anew(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as first:
        first.metrics({"nll": 2.0}, 7)
    tracker.client.delete_run(first.id)
    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as second:
        assert second.last_step("nll") == -1, "it gets all steps, not only those after the last one of the deleted run"
    assert second.id != first.id and set(runs_of(tracker)) == {"train"}
    assert tracker.failures == 0


def test_a_question_while_the_store_is_away_is_no_failure(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> None:
        raise ConnectionError

    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as run:
        run.metrics({"nll": 1.0}, 4)
        assert (run.last_step("nll"), run.last_step("never logged")) == (4, -1)
        monkeypatch.setattr(tracker.client, "get_metric_history", nobody)
        assert run.last_step("nll") == 4 and tracker.failures == 0


def test_a_typo_in_the_address_is_found_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrackingConfig(uri="http://me:sesame@127.0.0.1:9", catch_up_seconds=0)
    with pytest.raises(UserError, match="tracking.uri cannot be used") as error:
        Tracker(config, tmp_path)
    assert "sesame" not in str(error.value)
    started = time.monotonic()
    with Tracker(config, tmp_path, must_answer=False) as tracker, tracker.run("train", tmp_path, {}):
        pass
    assert tracker.waiting == 2
    with Tracker(config, tmp_path) as again:
        assert again.waiting == 2, "its address was right before"
    assert time.monotonic() - started < 60
    with pytest.raises(UserError, match="contains a password"):
        catch_up(tmp_path)


@pytest.mark.parametrize("applied", [False, True])
def test_an_interrupt_while_a_run_is_opened_leaves_none_running(
    applied: bool, tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, open_run = tracker_of(tmp_path), Store._open

    def interrupted(self: Store, operation: Operation, waited: bool) -> str:
        if applied:
            open_run(self, operation, waited)
        raise KeyboardInterrupt

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(Store, "_open", interrupted)
        with tracker.run("x", tmp_path / "x", {}):
            raise AssertionError("it was not opened")
    assert {name: run.info.status for name, run in runs_of(tracker).items()} == ({"x": "KILLED"} if applied else {})


@pytest.mark.slow
def test_ways_to_end(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    for error, status in ((ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")):
        with pytest.raises(error), tracker.run(status, tmp_path / error.__name__, {}) as run:
            raise error
        assert tracker.client.get_run(run.id).info.status == status


@pytest.mark.slow
def test_only_what_its_holder_left_open_is_ended_for_it(tmp_path: Path, network: Network) -> None:
    from ual_ray.tracking import HOLDER

    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as run:
        run.tags({HOLDER: "this:1"})
        other = tracker_of(tmp_path, must_answer=False)
        for holder, status in (("another:2", "RUNNING"), ("this:1", "KILLED")):
            other.end_abandoned(run.local_id, holder)
            assert tracker.client.get_run(run.id).info.status == status


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (MlflowException("API request failed with exception: connection refused"), True),
        (MlflowException("database is locked", TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("no such parameter", INVALID_PARAMETER_VALUE), False),
        (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), False),
        (ConnectionResetError(), True),
        (requests.ConnectTimeout(), True),
        (FileNotFoundError(), False),
        (TypeError(), False),
        (type("EndpointConnectionError", (Exception,), {})(), True),
    ],
)
def test_away_or_refused(error: Exception, away: bool) -> None:
    assert is_away(error) is away


@pytest.mark.parametrize(("status", "away"), [(500, True), (503, True), (429, True), (408, True), (400, False), (404, False)])
def test_answers_of_a_server(status: int, away: bool) -> None:
    response = requests.Response()
    response.status_code = status
    assert is_away(requests.HTTPError(response=response)) is away


def test_a_deleted_experiment_is_refused_at_the_start(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "m.db")
    uri = f"sqlite:///{tmp_path}/m.db"
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="(?s)was deleted.*gone.*restore"):
        Tracker(TrackingConfig(uri=uri, experiment="gone"), tmp_path)


@pytest.mark.slow
def test_two_pipelines_may_create_one_experiment(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    first, second = Store(uri, "shared", None), Store(uri, "shared", None)
    find = first.client.get_experiment_by_name

    def found_before_it_was_made(name: str) -> object:
        monkeypatch.undo()
        before = find(name)
        assert before is None and second.experiment_id
        return before

    monkeypatch.setattr(first.client, "get_experiment_by_name", found_before_it_was_made)
    assert first.experiment_id == second.experiment_id


@pytest.mark.slow
@pytest.mark.parametrize("away", [False, True])
def test_a_resumed_run_keeps_its_steps_together_when_its_experiment_has_another_name(
    tmp_path: Path, network: Network, away: bool
) -> None:
    with tracker_of(tmp_path) as tracker, tracker.run("pipeline", tmp_path, {}) as parent:
        pass
    own = tracker.experiment_id
    tracker.client.rename_experiment(own, "another name")
    with tracker_of(tmp_path) as resumed, resumed.run("pipeline", tmp_path, {}) as again:
        network.loses_answers = away
        with resumed.run("train", tmp_path / "train", {}, again) as child:
            network.loses_answers = False
            child.metrics({"nll": 1.0}, 1)
        network.away = False
        assert (resumed.close(30), resumed.failures, again.id) == (0, 0, parent.id)
    # What another process sends is found by its local id alone.
    local = Store(resumed.uri, "ual_ray", None)
    assert local.real_id(child.local_id) == child.id
    children = [run for run in resumed.client.search_runs([own]) if run.data.tags.get("mlflow.parentRunId") == parent.id]
    assert [run.data.metrics for run in children] == [{"nll": 1.0}]


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.slow
def test_runs_of_trainings_side_by_side_have_each_their_own_and_the_parent_has_all(
    tmp_path: Path, network: Network, away: bool
) -> None:
    tracker = tracker_of(tmp_path)
    network.away = away
    with tracker.run("parent", tmp_path, {}) as parent:

        def train(seed: int) -> None:
            with tracker.run(f"seed {seed}", tmp_path / f"{seed}", {"seed": f"{seed}"}, parent) as run:
                run.params({"seed": seed})
                for step in range(1, 4):
                    run.metrics({"nll": seed + step / 100}, step)
                    assert run.last_step("nll") == step
                run.table({"seed": [seed]}, "table.json")
                run.dataset("rows", tmp_path, f"digest {seed}", 3, "training")

        side_by_side({seed: partial(train, seed) for seed in range(3)}, lambda: 3, lambda *_: None, 10)
    network.away = False
    assert (tracker.close(60), tracker.failures) == (0, 0)
    runs = runs_of(tracker)
    for seed in range(3):
        run = runs[f"seed {seed}"]
        assert run.info.status == "FINISHED" and run.data.params == {"seed": f"{seed}"}
        assert run.data.tags["mlflow.parentRunId"] == runs["parent"].info.run_id
        history = tracker.client.get_metric_history(run.info.run_id, "nll")
        assert [entry.value for entry in history] == [seed + step / 100 for step in range(1, 4)]
    digests = {entry.dataset.digest for entry in runs["parent"].inputs.dataset_inputs}
    assert digests == {f"digest {seed}" for seed in range(3)}


@pytest.mark.parametrize("location", ["file:///proc/mlartifacts/7", "/proc/mlartifacts/7"])
def test_a_servers_folder_that_cannot_be_written_here_is_refused(location: str) -> None:
    """As servers with --no-serve-artifacts tell their clients: the lineage would lack files at the end."""
    store = Store("http://127.0.0.1:1", "mine", None)
    found = SimpleNamespace(experiment_id="7", lifecycle_stage="active", artifact_location=location)
    vars(store)["client"] = SimpleNamespace(get_experiment_by_name=lambda name: found)
    with pytest.raises(UserError, match="(?s)artifacts cannot be written.*mlartifacts.*--artifacts-destination"):
        store.experiment_id  # noqa: B018 - asks the store
    found.artifact_location = "mlflow-artifacts:/7"
    assert store.experiment_id == "7"
