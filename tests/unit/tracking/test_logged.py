"""What a run holds of what it is given: parameters, tags, metric names, tables and plots, as MLflow takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tracked import Network, runs_of, tracker_of

from ual_ray.tracking.run import LONGEST_PARAM, flatten, legal_names


@pytest.mark.slow
def test_parameters_beyond_what_one_request_takes_and_changed_ones(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    many = {f"p{n}": n for n in range(250)}
    with tracker.run("train", tmp_path, {}) as run:
        run.params({**many, "api_key": "sesame"})
        run.params({"p1": 7, "new": 1})
    found = tracker.client.get_run(run.id).data
    assert found.params == {**{key: str(n) for key, n in many.items()}, "api_key": "***", "new": "1"}
    assert found.tags["now.p1"] == "7" and "now.p2" not in found.tags
    assert tracker.failures == 0


@pytest.mark.slow
def test_keys_that_mlflow_refuses_cost_no_parameter_and_no_tag(tmp_path: Path, network: Network) -> None:
    """Sources of train.mixture are named by the data."""
    weights = {"alpaca (v2)": 0.1, "alpaca _v2_": 0.2, "reddit[/r/x]": 0.3, "x" * 300: 0.4}
    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as run:
        run.params({"train": {"mixture": weights, "learning_rate": 1e-5}})
        run.params({"train": {"mixture": {**weights, "x" * 300: 0.5}}})
        run.tags({f"verdict.{'a' * 150}-vs-{'b' * 150}": "better", "ual_ray.arm": "ual"})
    found = tracker.client.get_run(run.id).data
    assert tracker.failures == 0
    assert sorted(found.params.values()) == ["0.1", "0.2", "0.3", "0.4", "1e-05"]
    assert found.params["train.mixture.alpaca _v2_"] == "0.1" and found.params["train.mixture.reddit_/r/x_"] == "0.3"
    assert [value for key, value in found.tags.items() if key.startswith("now.")] == ["0.5"]
    assert "better" in found.tags.values() and found.tags["ual_ray.arm"] == "ual"


@pytest.mark.slow
def test_a_parameter_is_as_long_as_mlflow_takes_and_shows_its_cut(tmp_path: Path, network: Network) -> None:
    whole, long = "x" * 5000 + "end", "y" * 9000
    tracker = tracker_of(tmp_path)
    for _ in range(2):  # opened again, it has no other value
        with tracker.run("train", tmp_path, {}) as run:
            run.params({"whole": whole, "long": long})
    found = tracker.client.get_run(run.id).data
    assert (found.params["whole"], found.params["long"]) == (whole, "y" * (LONGEST_PARAM - 1) + "…")
    assert not [key for key in found.tags if key.startswith("now.")]


def test_a_secret_within_a_list_is_masked(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("train", tmp_path, {}) as run:
        run.params(
            {"engine": {"extra_body": {"tools": [{"api_key": "planted", "name": "x"}]}}, "path": Path("http://me:planted@h")}
        )
    params = runs_of(tracker)["train"].data.params
    assert params == {"engine.extra_body.tools": "[{'api_key': '***', 'name': 'x'}]", "path": "http:/***@h"}


@pytest.mark.slow
def test_several_tables_are_listed_and_a_second_of_one_name_replaces_it(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("report", tmp_path, {}) as run:
        for value in (1, 2):
            run.table({"x": [value]}, "tables/a.json")
        run.table({"y": [3]}, "b.json")
    listed = json.loads(tracker.client.get_run(run.id).data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == ["tables/a.json", "b.json"]
    read = json.loads(Path(tracker.client.download_artifacts(run.id, "tables/a.json")).read_text())
    assert read == {"columns": ["x"], "data": [[2]]}


@pytest.mark.slow
def test_the_environment_and_the_commit(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ual_ray.config.environment.commit_tags", lambda: {"mlflow.source.git.commit": "abc"})
    tracker = tracker_of(tmp_path)
    with tracker.run("pipeline", tmp_path, {}) as run:
        run.environment()
    assert tracker.client.get_run(run.id).data.tags["mlflow.source.git.commit"] == "abc"
    found = json.loads(Path(tracker.client.download_artifacts(run.id, "environment.json")).read_text())
    assert found["packages"]["mlflow"] and found["python"]


def test_a_plot_that_cannot_be_drawn_is_counted(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("report", tmp_path, {}) as run:
        run.plot(Figure(), "plot.of_no_kind")
    assert tracker.failures == 1
    assert tracker.client.get_run(run.id).info.status == "FINISHED"


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": [3]}) == {"a.b.c": 1, "a.d": 2, "e": [3]}


@pytest.mark.parametrize(
    "key",
    ["https://example.org/wiki", "a//b", "/a", "a/", "../a", "a/./b", "reddit[/r/x]", "x" * 400, "être/ü", "/", "a b\n"]
    + ["..a", "https://example.org/" + "x" * 230 + "/wiki", "a/" * 200, "x" * 248 + "/../y"],
)
def test_every_key_makes_a_metric_name_that_mlflow_takes(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    names = legal_names([key, "a/b", "a_b", key + " ", "https:/example.org/wiki"])
    assert len(set(names)) == 5
    for name in names:
        _validate_metric_name(name)
        assert len(name) <= 250
