"""Models that are registered once, and the champion among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.models import Model
from tracked import Network, runs_of, tracker_of

from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError
from ual_ray.tracking.models import CANDIDATE, CHAMPION, _card, champion_of
from ual_ray.tracking.run_file import logged_model
from ual_ray.tracking.tracker import Tracker, default_uri


@pytest.mark.slow
def test_the_champion_is_the_run_s_own_version(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    client = tracker.client
    client.create_registered_model("ual-ual")
    with tracker.run("train ual", tmp_path / "one", {}) as one, tracker.run("train ual 2", tmp_path / "two", {}) as two:
        for run in (one, one, two):
            client.create_model_version("ual-ual", str(tmp_path), run_id=run.id)
    uri = default_uri(tmp_path)
    assert champion_of(uri, "ual-ual", None, one.id, {"ual_ray.promoted_by": "a reason"}) == "2"
    champion = client.get_model_version_by_alias("ual-ual", CHAMPION)
    assert (str(champion.version), champion.tags["ual_ray.promoted_by"]) == ("2", "a reason")
    assert champion_of(uri, "ual-ual", "3", None, {}) == "3"
    assert str(client.get_model_version_by_alias("ual-ual", CHAMPION).version) == "3"
    for version, run_id in ((None, "no such run"), ("9", one.id), (None, None)):
        with pytest.raises(UserError, match="no registered version"):
            champion_of(uri, "ual-ual", version, run_id, {})


@pytest.mark.slow
def test_a_model_is_registered_once_whatever_the_network_does(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ual_ray.tracking.models._store", lambda *_: "m-1")
    sources: list[str] = []

    def create(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: str, source: str, **more: Any) -> Any:
            sources.append(source)
            return real(name, str(tmp_path), **{**more, "model_id": None})

        return call

    tracker = tracker_of(tmp_path)
    client = tracker.client
    monkeypatch.setattr(client, "create_model_version", create(client.create_model_version))
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("---\ntags: [a]\n---\n# A card\n")
    with tracker.run("train", tmp_path, {}) as run:
        network.loses_answers = True
        assert run.model(model, "ual-sft", {"ual_ray.arm": "sft"}) is None
        network.away = network.loses_answers = False
    assert tracker.close(30) == 0
    assert network.applied.count("model") == 2 and sources == ["models:/m-1"]
    version = client.get_model_version_by_alias("ual-sft", CANDIDATE)
    assert (version.description, version.tags["ual_ray.arm"], version.run_id) == ("# A card", "sft", run.id)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do without the files of models; return the ids of the logged models that were uploaded."""
    ids: list[str] = []

    def upload(*, model_id: str, **_: Any) -> None:
        MlflowClient().finalize_logged_model(model_id, "READY")
        ids.append(model_id)

    monkeypatch.setattr("ual_ray.tracking.models.Model.log", upload)
    return ids


ARMS = {"sft": 0.5, "ual": 0.4}
QUESTIONS, MORE = ("gsm8k", "0123"), ("arc", "4567")


def log_arms(tracker: Tracker, out: Path) -> None:
    """Train two arms and measure them and the untrained model on two data sets, as a pipeline does."""
    (out / "untrained").mkdir()
    uri = redact_uri(tracker.uri)
    with tracker.run("pipeline", out, {}) as parent:
        for arm in ARMS:
            folder = out / arm / "model"
            folder.mkdir(parents=True)
            with tracker.run(f"train {arm}", out / arm, {}, parent) as run:
                run.dataset(f"smoothed {arm}", folder, arm, 3, "training")
                run.model(folder, f"ual-{arm}", {}, title=f"{arm}, seed 1", params={"arm": arm, "seed": 1})
        for name, nll in {"base": 0.9, **ARMS}.items():
            model = out / ("untrained" if name == "base" else f"{name}/model")
            with tracker.run(f"evaluate {name}", out / f"evaluate {name}", {}, parent) as run:
                for at, dataset in enumerate((QUESTIONS, MORE)):
                    run.dataset(dataset[0], out, dataset[1], 3, "evaluation")
                    values = {f"{dataset[0]}.nll.overall": nll * (-1) ** at}
                    run.metrics(values, model=logged_model(str(model), name, "digest of it", uri), dataset=dataset)


def ranked(tracker: Tracker, metric: str, dataset: tuple[str, str]) -> list[str]:
    name, digest = dataset
    by = {"field_name": f"metrics.{metric}", "ascending": True, "dataset_name": name, "dataset_digest": digest}
    return [model.name for model in tracker.client.search_logged_models([tracker.experiment_id], order_by=[by])]


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.slow
def test_models_are_ranked_by_benchmark(tmp_path: Path, network: Network, uploads: list[str], away: bool) -> None:
    tracker = tracker_of(tmp_path)
    network.away = away
    log_arms(tracker, tmp_path)
    network.away = False
    assert (tracker.close(60), tracker.failures, len(uploads)) == (0, 0, 2)
    assert ranked(tracker, "gsm8k.nll.overall", QUESTIONS) == ["ual, seed 1", "sft, seed 1", "base"]
    assert ranked(tracker, "arc.nll.overall", MORE) == ["base", "sft, seed 1", "ual, seed 1"]
    found = {model.name: model for model in tracker.client.search_logged_models([tracker.experiment_id])}
    assert set(found) == {"base", "sft, seed 1", "ual, seed 1"}, "an evaluation finds the model of its training"
    assert found["ual, seed 1"].params == {"arm": "ual", "seed": "1"}
    runs = runs_of(tracker)
    (metric,) = [metric for metric in found["ual, seed 1"].metrics or [] if metric.key == "gsm8k.nll.overall"]
    assert (metric.value, metric.run_id) == (0.4, runs["evaluate ual"].info.run_id)
    assert (metric.dataset_name, metric.dataset_digest) == QUESTIONS


@pytest.mark.slow
def test_the_run_of_the_whole_shows_data_sets_and_models(tmp_path: Path, network: Network, uploads: list[str]) -> None:
    tracker = tracker_of(tmp_path)
    log_arms(tracker, tmp_path)
    runs = runs_of(tracker)
    inputs = {entry.dataset.name for entry in runs["pipeline"].inputs.dataset_inputs}
    assert inputs == {"gsm8k", "arc", "smoothed sft", "smoothed ual"}
    assert {output.model_id for output in runs["pipeline"].outputs.model_outputs} == set(uploads)
    evaluation = tracker.client.get_run(runs["evaluate ual"].info.run_id)
    assert [model.model_id for model in evaluation.inputs.model_inputs] == [uploads[1]]
    assert evaluation.data.metrics == {"gsm8k.nll.overall": 0.4, "arc.nll.overall": -0.4}


@pytest.mark.slow
def test_a_logged_model_whose_registration_was_lost_is_not_uploaded_again(
    tmp_path: Path, network: Network, uploads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ual_ray.tracking import models

    register = models._register

    def fail_once(*arguments: Any) -> str:
        monkeypatch.setattr(models, "_register", register)
        raise ConnectionError("nobody there")

    monkeypatch.setattr(models, "_register", fail_once)
    tracker = tracker_of(tmp_path)
    (tmp_path / "model").mkdir()
    with tracker.run("pipeline", tmp_path, {}) as parent, tracker.run("train", tmp_path / "train", {}, parent) as run:
        assert run.model(tmp_path / "model", "ual-sft", {}) is None
    assert (tracker.close(30), tracker.failures, len(uploads)) == (0, 0, 1)
    assert uploads[0] in str(tracker.client.get_model_version_by_alias("ual-sft", CANDIDATE).source)
    assert [output.model_id for output in runs_of(tracker)["pipeline"].outputs.model_outputs] == uploads


@pytest.mark.slow
def test_an_uploaded_model_names_its_version_and_has_no_metric_of_before_its_training(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: str, mlflow_model: Model, **_: Any) -> None:
        Path(path).mkdir()
        mlflow_model.save(f"{path}/MLmodel")

    monkeypatch.setattr("mlflow.transformers.save_model", save)
    tracker = tracker_of(tmp_path)
    (tmp_path / "model").mkdir()
    with tracker.run("train", tmp_path, {}) as run:
        run.metrics({"validation_nll": 6.0}, step=0)
        run.metrics({"validation_nll": 2.0}, step=9)
        assert run.model(tmp_path / "model", "ual-sft", {}) == "1"
        assert run.model(tmp_path / "model", "ual-sft", {}) == "2"
    models = tracker.client.search_logged_models([tracker.experiment_id])
    assert [model.metrics for model in models] == [None, None]
    assert {model.tags["mlflow.modelVersions"] for model in models} == {
        f'[{{"name": "ual-sft", "version": "{version}"}}]' for version in (1, 2)
    }
    outputs = tracker.client.get_run(run.id).outputs.model_outputs
    assert sorted(output.model_id for output in outputs) == sorted(model.model_id for model in models)


@pytest.mark.slow
def test_names_that_mlflow_refuses_are_changed(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("evaluate", tmp_path, {}) as run:
        run.metrics({"nll": 1.0}, model=logged_model("org/model-1.5", "model-1.5", "digest", tracker.uri))
    (found,) = tracker.client.search_logged_models([tracker.experiment_id])
    assert (found.name, tracker.failures) == ("model-1_5", 0)


def test_a_long_card_is_cut_to_what_a_database_holds(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x" * 9000)
    card = _card(tmp_path) or ""
    assert len(card) == 5000 and card.endswith("x…")
    assert _card(tmp_path / "nothing") is None


def test_a_card_is_shown_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted-secret-value")
    (tmp_path / "README.md").write_text("# A card\n\nFrom s3://me:planted@bucket with planted-secret-value.\n")
    assert _card(tmp_path) == "# A card\n\nFrom s3://***@bucket with ***."


@pytest.mark.slow
def test_a_model_may_stay_where_it_is(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    folder = tmp_path / "arm" / "model"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# A card\n")
    (folder / "model.safetensors").write_bytes(b"0" * 1_000_000)
    with tracker.run("train", tmp_path / "arm", {}) as run:
        assert run.model(folder, "ual-sft", {"ual_ray.arm": "sft"}, params={"arm": "sft"}, upload=False) == "1"
    client = tracker.client
    version = client.get_model_version_by_alias("ual-sft", CANDIDATE)
    assert (version.description, version.tags["ual_ray.arm"], version.run_id) == ("# A card", "sft", run.id)
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert model.tags["ual_ray.model_folder"] == str(folder) and model.params == {"arm": "sft"}
    assert [output.model_id for output in client.get_run(run.id).outputs.model_outputs] == [model.model_id]
    assert version.source.endswith(model.model_id) or version.model_id == model.model_id
    stored = [file for file in tmp_path.rglob("*.safetensors") if file.parent != folder]
    assert stored == [] and (folder / "model.safetensors").exists()
