"""Prompts in MLflow's registry: a version per text, linked from the run, in a real local store."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking._model_registry.client import ModelRegistryClient
from tracked import Network, tracker_of

from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators import make_estimators
from ual_ray.elicit.prompts import load_prompts
from ual_ray.judge.pairs import load_judge_prompts
from ual_ray.tracking.compat_mlflow import PROMPT_EXPERIMENTS, PromptClient, with_experiment
from ual_ray.tracking.prompts import PROMPT_PREFIX, log_prompt
from ual_ray.tracking.run import Run
from ual_ray.tracking.tracker import Tracker

ASK = (("user", "Rate {{response}}."),)
NAME = f"{PROMPT_PREFIX}.elicit.p_true"


def linked_from(run: Run, tracker: Tracker) -> list[str]:
    """The versions that the UI shows with a run."""
    linked = json.loads(tracker.client.get_run(run.id).data.tags["mlflow.linkedPrompts"])
    assert {prompt["name"] for prompt in linked} == {NAME}
    return [prompt["version"] for prompt in linked]


@pytest.mark.slow
def test_a_text_has_one_version_and_every_run_is_linked_to_its_own(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    client, linked = tracker.client, {}
    for number, template in enumerate([ASK, ASK, (("user", "Again: {{response}}"),), ASK]):
        with tracker.run(f"elicit {number}", tmp_path / str(number), {}) as run:
            run.prompt("elicit.p_true", template)
        linked[number] = linked_from(run, tracker)
    assert linked == {0: ["1"], 1: ["1"], 2: ["2"], 3: ["1"]}
    assert len(client.search_prompt_versions(NAME)) == 2
    assert client.get_prompt_version(NAME, 1).template == [{"role": "user", "content": "Rate {{response}}."}]
    assert client.get_prompt_version(NAME, 1).variables == {"response"}
    assert tracker.failures == 0


@pytest.mark.slow
def test_the_run_of_the_whole_lists_a_prompt_once(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("pipeline", tmp_path, {}) as parent:
        for seed in (0, 1):
            with tracker.run(f"judge {seed}", tmp_path / str(seed), {}, parent) as run:
                run.prompt("elicit.p_true", ASK)
    assert linked_from(run, tracker) == linked_from(parent, tracker) == ["1"]


@pytest.mark.slow
def test_the_experiment_lists_its_prompts_and_no_other_one_does(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("judge", tmp_path, {}) as run:
        run.prompt("judge.comparison", ASK)
    time.sleep(0.5)  # MLflow's own link would come from a thread
    found = tracker.client.search_prompts(f'experiment_id = "{tracker.experiment_id}"')
    assert [prompt.name for prompt in found] == [f"{PROMPT_PREFIX}.judge.comparison"]
    assert found[0].tags[PROMPT_EXPERIMENTS] == f",{tracker.experiment_id},"


def test_experiments_of_a_prompt_are_listed_once() -> None:
    assert with_experiment(None, "1") == ",1,"
    assert with_experiment(",1,", "1") is None
    assert with_experiment(",10,", "1") == ",10,1,"


@pytest.mark.slow
def test_a_prompt_waits_for_a_server_that_is_away_and_is_registered_once(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        network.loses_answers = True
        run.prompt("elicit.p_true", ASK)
        network.away = network.loses_answers = False
    assert tracker.close(30) == 0
    assert network.applied.count("prompt") == 2
    assert len(tracker.client.search_prompt_versions(NAME)) == 1
    assert linked_from(run, tracker) == ["1"]


@pytest.mark.slow
def test_a_server_without_a_registry_costs_a_counted_warning(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: object, name: str) -> None:
        raise MlflowException("The 'get_prompt' API is not supported with the current registry.")

    monkeypatch.setattr("ual_ray.tracking.prompts.PromptClient.get_prompt", refuse)
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        run.prompt("elicit.p_true", ASK)
        run.metrics({"rows": 3})
    assert (tracker.failures, tracker.waiting) == (1, 0)
    assert "MLflow rejects 'prompt'" in caplog.text
    assert tracker.client.get_run(run.id).data.metrics == {"rows": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "owner", "call"),
    [
        (False, PromptClient, "register_prompt"),
        (False, ModelRegistryClient, "create_registered_model"),
        (False, ModelRegistryClient, "create_model_version"),
        (True, ModelRegistryClient, "create_model_version"),
        (False, PromptClient, "link_prompt_version_to_run"),
    ],
)
def test_two_pipelines_that_register_a_text_at_once_share_its_version(
    known: bool, owner: Any, call: str, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one does all of its work just before a call of the first one."""
    shutil.copy(empty_store, tmp_path / "m.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/m.db")
    mlflow.set_tracking_uri(client.tracking_uri)
    experiments = [client.create_experiment(name) for name in ("zeroth", "first", "second")]
    runs = [client.create_run(experiment).info.run_id for experiment in experiments]
    if known:
        log_prompt(client, runs[0], "elicit.p_true", [{"role": "user", "content": "{{response}} of before"}])
    turns, versions = [{"role": "user", "content": "Rate {{response}}."}], []
    original = getattr(owner, call)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        versions.append(log_prompt(client, runs[2], "elicit.p_true", turns))
        return original(*arguments, **named)

    monkeypatch.setattr(owner, call, interrupted)
    versions.append(log_prompt(client, runs[1], "elicit.p_true", turns))
    monkeypatch.undo()
    same = [found.version for found in client.search_prompt_versions(NAME) if found.template == turns]
    assert same == [1 + known]
    assert set(versions) == {str(1 + known)}
    for run in runs[1:]:
        linked = json.loads(client.get_run(run).data.tags["mlflow.linkedPrompts"])
        assert [prompt["version"] for prompt in linked] == [str(1 + known)]
    assert set(client.get_prompt(NAME).tags[PROMPT_EXPERIMENTS].strip(",").split(",")) >= set(experiments[1:])


@pytest.mark.slow
def test_secrets_in_a_prompt_are_masked(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted-secret-value")
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        run.prompt("elicit.p_true", (("user", "planted-secret-value {{response}}"),))
    assert tracker.client.get_prompt_version(NAME, 1).template == [{"role": "user", "content": "*** {{response}}"}]


def test_templates_are_what_the_estimators_ask(tmp_path: Path) -> None:
    examples = tmp_path / "examples.yaml"
    examples.write_text(yaml.safe_dump([{"instruction": "Two?", "response": "2", "verbalized_error": 0}]))
    prompts = load_prompts(None, str(examples))
    config = ElicitConfig(estimators=("verbalized_error", "p_true"), examples=str(examples), uncertainty="p_true")
    pair = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    values = {"instruction": "What?", "response": "That.", "lowest": "0", "highest": config.scale.split("-")[1]}
    for name, estimator in make_estimators(config).items():
        template = prompts.template(name)
        assert template is not None
        filled = [(role, _fill(text, values)) for role, text in template]
        assert filled == [*estimator.requests(pair)[0].prompt]  # type: ignore[arg-type, union-attr]
    assert prompts.template("self_consistency") is None


def test_the_judge_s_template_is_what_it_asks() -> None:
    prompts = load_judge_prompts()
    ((role, text),) = prompts.template
    filled = _fill(text, {"conversation": "Who?", "first": "I", "second": "You"})
    assert ((role, filled),) == prompts.compare([{"role": "user", "content": "Who?"}], "I", "You")


def _fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return text
