"""Prompts: what the elicitor and the judge are asked, in MLflow's registry, versioned by its text, and linked from the run."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ual_ray.tracking.compat_mlflow import PROMPT_EXPERIMENTS, PromptClient, with_experiment
from ual_ray.tracking.models import EXISTS

# In front of all names: a server's registry is shared.
PROMPT_PREFIX = "ual_ray"
Turn = Mapping[str, str]


def log_prompt(client: MlflowClient, run_id: str, name: str, template: Sequence[Turn]) -> str:
    """Register a prompt's text under PROMPT_PREFIX.`name`, link it from a run and its experiment; return the version number.

    template: chat turns (role and content) with variables as {{name}}. A text that has a version gets no new one. The client's
    store has to be MLflow's tracking URI. Raises MLflow's own errors, and NotImplementedError where there is no registry.
    """
    name, turns = f"{PROMPT_PREFIX}.{name}", [dict(turn) for turn in template]
    prompts = PromptClient(client.tracking_uri)
    version = _registered(prompts, name, turns)
    experiment_id = client.get_run(run_id).info.experiment_id
    prompt = prompts.get_prompt(name)
    if (listed := with_experiment(prompt.tags.get(PROMPT_EXPERIMENTS) if prompt else None, experiment_id)) is not None:
        prompts.set_prompt_tag(name, PROMPT_EXPERIMENTS, listed)
    prompts.link_prompt_version_to_run(run_id, version)
    return str(version.version)


def _registered(prompts: PromptClient, name: str, turns: list[dict[str, str]]) -> Any:
    """Return the first version with this text; register it where there is none.

    Pipelines that do so at once make a version each: all but the first one remove theirs, which nothing is linked to yet.
    """
    try:
        known = prompts.get_prompt(name)
    except MlflowException as error:
        if "not supported" in str(error):  # with the error code of an unreachable server
            raise NotImplementedError(str(error)) from error
        raise
    if known and (first := _first_version(prompts, name, turns)):
        return first
    try:
        own = prompts.register_prompt(name, turns)
    except MlflowException as error:
        if error.error_code not in EXISTS:
            raise
        own = prompts.register_prompt(name, turns)  # another pipeline has created the prompt meanwhile
    first = _first_version(prompts, name, turns) or own
    if first.version != own.version:
        prompts.delete_prompt_version(name, str(own.version))
    return first


def _first_version(prompts: PromptClient, name: str, turns: list[dict[str, str]]) -> Any:
    """Find the version with this text that has the lowest number; None if there is none."""
    first = page = None
    while True:
        found = prompts.search_prompt_versions(name, page_token=page)
        same = [version for version in (first, *found) if version and version.template == turns]
        first = min(same, key=lambda version: int(version.version), default=None)
        if not (page := found.token):
            return first
