"""Models: log a directory without loading it, with its lineage and model card, register it, find it for its metrics."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.transformers
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.models.utils import get_external_mlflow_model_spec

from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError
from ual_ray.formatting import shorten
from ual_ray.tracking.compat_mlflow import MODEL_VERSIONS, WITHOUT_FILES, with_version
from ual_ray.tracking.run import LONGEST_DESCRIPTION

CANDIDATE, CHAMPION = "candidate", "champion"
# A tag unique to one registration: finds a version again whose creation was not confirmed.
REGISTRATION = "ual_ray.registration"
# A tag that identifies a logged model, as `logged_model` in `run_file` does: metrics of other runs find it by this.
MODEL_ID = "ual_ray.model_id"
# A tag that names the directory of a model whose files are not in the store.
MODEL_FOLDER = "ual_ray.model_folder"
CARD = "README.md"
EXISTS = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


def log_model(
    client: MlflowClient,
    run_id: str,
    folder: str,
    name: str,
    tags: Mapping[str, str],
    registration: str,
    model: Mapping[str, str],
    params: Mapping[str, str],
    parents: Sequence[str],
    upload: bool = True,
    place: str | None = None,
) -> str:
    """Log a model directory, register it under `name` with the alias candidate, and return the version number.

    registration: unique to this call; what already has it is not made again. model: id and name of the logged model, an output
    of the run and of the runs `parents`. upload: with its files; otherwise a tag has its place (None: the directory).
    Raises MLflow's own errors, and FileNotFoundError when the directory no longer exists.
    """
    version, experiment = _registered(client, name, registration), client.get_run(run_id).info.experiment_id
    if version is None:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"the model directory {folder} does not exist")
        own = {**tags, REGISTRATION: registration, **({} if upload else {MODEL_FOLDER: place or folder})}
        model_id = _find_model(client, experiment, REGISTRATION, registration)
        model_id = model_id or _store(client, run_id, folder, model["name"], {**own, MODEL_ID: model["id"]}, params, upload)
        for parent in parents:
            _add_output(client, parent, model_id)
        version = _register(client, run_id, model_id, folder, name, own)
    client.set_registered_model_alias(name, CANDIDATE, version)
    if logged := _find_model(client, experiment, REGISTRATION, registration):
        listed = client.get_logged_model(logged).tags.get(MODEL_VERSIONS)
        if (more := with_version(listed, name, version)) is not None:
            client.set_logged_model_tags(logged, {MODEL_VERSIONS: more})
    return version


def measured_model(client: MlflowClient, run_id: str, model: Mapping[str, str]) -> str:
    """Find the logged model of this id, make one without files where there is none, and note it as an input of the run.

    Return MLflow's id of it. model: id and name.
    """
    experiment = client.get_run(run_id).info.experiment_id
    model_id = _find_model(client, experiment, MODEL_ID, model["id"])
    if model_id is None:
        tags = {MODEL_ID: model["id"], **WITHOUT_FILES}
        made: Any = client.create_logged_model(experiment, _legal(model["name"]), run_id, tags)
        model_id = str(client.finalize_logged_model(made.model_id, "READY").model_id)
    client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    return model_id


def champion_of(uri: str, name: str, version: str | None, run_id: str | None, tags: Mapping[str, str]) -> str:
    """Set the alias champion and the tags on a version (None: the newest of the run); return its number.

    Raises UserError when the store does not answer or has no such version.
    """
    client = MlflowClient(uri)
    try:
        found = client.search_model_versions(f"name='{name}'")
        matching = [x for x in found if (str(x.version) == version if version else run_id and x.run_id == run_id)]
        if not matching:
            raise UserError(
                f"no registered version of the model {name} belongs to this run",
                got=f"version {version}" if version else f"MLflow run {run_id}",
                expected=", ".join(sorted(str(x.version) for x in found)) or "none is registered",
                fix="send the waiting operations first: `ual sync`",
            )
        newest = str(max(int(x.version) for x in matching))
        for key, value in tags.items():
            client.set_model_version_tag(name, newest, key, value)
        client.set_registered_model_alias(name, CHAMPION, newest)
    except MlflowException as error:
        raise UserError(
            "the MLflow store cannot be used",
            got=f"{redact_uri(uri)}: {error}",
            fix="check that its server runs, then run the command again",
        ) from error
    return newest


def _registered(client: MlflowClient, name: str, registration: str) -> str | None:
    found = [x for x in client.search_model_versions(f"name='{name}'") if x.tags.get(REGISTRATION) == registration]
    return str(found[0].version) if found else None


def _find_model(client: MlflowClient, experiment: str, tag: str, value: str) -> str | None:
    """Find the newest logged model with a tag whose files, if it has any, are complete."""
    found = client.search_logged_models([experiment], f"tags.`{tag}` = '{value}'")
    ready = [model for model in found if model.status == LoggedModelStatus.READY]
    return str(max(ready, key=lambda model: model.creation_timestamp).model_id) if ready else None


def _add_output(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Note a logged model as an output of a run, which MLflow refuses to do twice."""
    outputs = client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _legal(name: str) -> str:
    """Replace the characters that MLflow refuses in the name of a logged model."""
    return re.sub(r"[/:.%\"']", "_", name)


def _store(
    client: MlflowClient, run_id: str, folder: str, name: str, tags: Mapping[str, str], params: Mapping[str, str], upload: bool
) -> str:
    """Log a model; without `upload` its files stay where they are, as of MLflow's `create_external_model`."""
    experiment = client.get_run(run_id).info.experiment_id
    own = {**tags, **({} if upload else WITHOUT_FILES)}
    # Created explicitly: with no active run in this thread MLflow would use its default experiment.
    model: Any = client.create_logged_model(experiment, _legal(name), run_id, own, dict(params))
    if upload:
        # Without a run: MLflow would give the model the run's metrics of step 0, which are of the model before training.
        Model.log(
            artifact_path=None,
            flavor=mlflow.transformers,
            name=_legal(name),
            run_id=None,
            model_id=model.model_id,
            transformers_model=folder,
            task="llm/v1/chat",
            # Without explicit requirements MLflow loads the model in a second process to infer them.
            pip_requirements=["transformers", "torch"],
            validate_serving_input=False,
        )
    else:
        with TemporaryDirectory() as described:
            # Without a description MLflow does not register it.
            get_external_mlflow_model_spec(model).save(Path(described, MLMODEL_FILE_NAME))
            client.log_model_artifacts(model.model_id, described)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    _add_output(client, run_id, str(model.model_id))
    return str(model.model_id)


def _register(client: MlflowClient, run_id: str, model_id: str, folder: str, name: str, tags: Mapping[str, str]) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in EXISTS:
            raise
    version = client.create_model_version(
        name, f"models:/{model_id}", run_id=run_id, tags=dict(tags), description=_card(Path(folder)), model_id=model_id
    )
    return str(version.version)


def _card(folder: Path) -> str | None:
    """Read the model card without its YAML header and without secrets."""
    if not (folder / CARD).is_file():
        return None
    text = re.sub(r"\A---\n.*?\n---\n", "", (folder / CARD).read_text(encoding="utf-8"), flags=re.DOTALL).strip()
    return shorten(redact_uri(text), LONGEST_DESCRIPTION)
