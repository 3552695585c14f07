"""MLflow's prompt registry: what the elicitor and the judge are asked, versioned by its text, and linked from the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ual_ray.tracking.compat_mlflow import PROMPT_EXPERIMENTS, PromptClient, with_experiment

# In front of all names: a server's registry is shared.
PREFIX = "ual_ray"
Turn = Mapping[str, str]


def log_prompt(client: MlflowClient, run_id: str, name: str, template: Sequence[Turn]) -> str:
    """Register a prompt's text under PREFIX.`name`, link it from a run and its experiment, and return the version number.

    template: chat turns (role and content) with variables as {{name}}. A text that has a version gets no new one. The client's
    store has to be MLflow's tracking URI. Raises MLflow's own errors, and NotImplementedError where there is no registry.
    """
    name, turns = f"{PREFIX}.{name}", [dict(turn) for turn in template]
    prompts = PromptClient(client.tracking_uri)
    try:
        prompt = prompts.get_prompt(name)
    except MlflowException as error:
        if "not supported" in str(error):  # with the error code of an unreachable server
            raise NotImplementedError(str(error)) from error
        raise
    version = (prompt and _version_of(prompts, name, turns)) or prompts.register_prompt(name, turns)
    experiment_id = client.get_run(run_id).info.experiment_id
    if (listed := with_experiment(prompt.tags.get(PROMPT_EXPERIMENTS) if prompt else None, experiment_id)) is not None:
        prompts.set_prompt_tag(name, PROMPT_EXPERIMENTS, listed)
    prompts.link_prompt_version_to_run(run_id, version)
    return str(version.version)


def _version_of(prompts: MlflowClient, name: str, turns: list[dict[str, str]]) -> Any:
    """Find the newest version with this text; None if there is none."""
    page = None
    while True:
        found = prompts.search_prompt_versions(name, page_token=page)
        if same := [version for version in found if version.template == turns]:
            return same[0]
        if not (page := found.token):
            return None
