"""What a run reads, and reaches over the network: data, output, models, MLflow, the hub, an endpoint's key.

Tokens are named, never shown.
"""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import requests
from huggingface_hub import constants

from ual_ray.config import DEMO, Config
from ual_ray.config.keys import naming
from ual_ray.config.redact import redact_uri
from ual_ray.doctor.findings import Finding
from ual_ray.errors import UserError
from ual_ray.mirror.output import open_output
from ual_ray.mirror.remote import open_place
from ual_ray.models.resolve import check_model
from ual_ray.preflight import check_data
from ual_ray.run.terminal import is_uri

SECONDS = 5.0
# MLflow's variable that allows a folder as a store, and SQLite's name of a database without a file.
FOLDERS, IN_MEMORY = "MLFLOW_ALLOW_FILE_STORE", ":memory:"
# Returns the status code of a page; raises requests.RequestException or OSError where there is no answer.
Get = Callable[[str], int]


def get(url: str) -> int:
    """Return the status code of a page."""
    return requests.get(url, timeout=SECONDS, allow_redirects=True, stream=True).status_code


def reach(host: str, port: int) -> int:
    """Connect to a port and hang up."""
    socket.create_connection((host, port), timeout=SECONDS).close()
    return 0


def check_mlflow(config: Config) -> list[Finding]:
    """Check that the tracking store answers."""
    return [*judge_mlflow(config.tracking.uri, "MLFLOW_TRACKING_URI" in os.environ, get, reach)]


def judge_mlflow(uri: str | None, variable: bool, get: Get, reach: Callable[[str, int], int]) -> Iterator[Finding]:
    """Yield a finding for a tracking URI; None: the store is in the output folder. variable: MLflow's own is set."""
    if not uri:
        text = "tracking.uri is null: the store is in the output folder"
        if variable:
            text += ", although MLFLOW_TRACKING_URI is set"
            yield Finding("mlflow", "warning", text, 'set tracking.uri="$MLFLOW_TRACKING_URI", or unset the variable')
        else:
            yield Finding("mlflow", "ok", text)
        return
    shown = redact_uri(uri)
    fix = "start the server, correct tracking.uri, or set tracking.uri=null for a store in the output folder"
    try:
        where = urlsplit(uri)
        if where.scheme in ("http", "https"):
            code = get(f"{uri.rstrip('/')}/health")
            if code in (401, 403):
                names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
                yield Finding("mlflow", "error", f"{shown} wants credentials (HTTP {code})", f"set {names}")
            elif code >= 400:
                yield Finding("mlflow", "error", f"{shown} is not an MLflow server (HTTP {code} at /health)", fix)
            else:
                yield Finding("mlflow", "ok", shown)
        elif where.hostname and where.port:
            reach(where.hostname, where.port)
            yield Finding("mlflow", "ok", f"{shown} accepts connections")
        elif where.scheme == "sqlite":
            yield _store_file(uri.removeprefix("sqlite:///"), shown, fix)
        elif where.scheme in ("file", "") and uri != "databricks" and os.environ.get(FOLDERS, "").lower() not in ("true", "1"):
            own = f"tracking.uri=sqlite:///FILE.db, or null for one in the output folder; or set {FOLDERS}=true"
            yield Finding("mlflow", "error", f"{shown} is a folder, and MLflow takes no stores in folders any more", own)
        else:
            yield Finding("mlflow", "warning", f"{shown} was not checked", "a run stops within seconds if it is unreachable")
    except (requests.RequestException, OSError, ValueError) as error:  # ValueError: not an address
        yield Finding("mlflow", "error", f"{shown} is unreachable: {redact_uri(str(error))}", fix)


def _store_file(path: str, shown: str, fix: str) -> Finding:
    if path in ("", IN_MEMORY) or path.startswith("sqlite:"):
        text = f"{shown} names no file: the store would be lost with the process"
        return Finding("mlflow", "error", text, "tracking.uri=sqlite:///FILE.db")
    store = Path(path).absolute()
    nearest = next(parent for parent in (store, *store.parents) if parent.exists())
    if os.access(nearest, os.W_OK) and (nearest == store or nearest.is_dir()):
        return Finding("mlflow", "ok", shown)
    return Finding("mlflow", "error", f"{shown} cannot be written", fix)


def check_models(config: Config) -> list[Finding]:
    """Check that every model that is loaded here may be one, without loading it. Raises UserError for one that is not."""
    for key, name in _loaded(config).items():
        check_model(name, key)
    return [Finding("models", "ok", "each is 'demo', a model directory, or a name that the hub may have")]


def check_rows(config: Config) -> list[Finding]:
    """Read the first rows. Raises UserError where there are none."""
    return [Finding("data", "ok", check_data(config.data).describe(config.data.path))]


def check_output(config: Config) -> list[Finding]:
    """Check that an output at a URI can be listed, and elicit.store written. Raises UserError where they cannot."""
    found = [Finding("output", "ok", open_output(config.output).name())] if is_uri(config.output) else []
    if config.elicit.store is not None:
        store = open_place(config.elicit.store, "elicit.store", write=True)
        found.append(Finding("elicit.store", "ok", redact_uri(store.uri)))
    return found


def check_hub(config: Config) -> list[Finding]:
    """Check that the hub answers if models come from it, and name where its token is from."""
    models = hub_models(config)
    missing = [model for model in models if not isinstance(huggingface_hub.try_to_load_from_cache(model, "config.json"), str)]
    offline = bool(constants.HF_HUB_OFFLINE)
    return [
        *judge_hub(constants.ENDPOINT, offline, models, missing, get),
        *judge_token("HF_TOKEN" if os.environ.get("HF_TOKEN") else None, bool(huggingface_hub.get_token()), bool(models)),
    ]


def hub_models(config: Config) -> list[str]:
    """Return the models of a configuration that are neither directories nor the demo's, nor behind an endpoint."""
    named = {name for key, name in _loaded(config).items() if not _refused(key, name)}
    return sorted(name for name in named if name != DEMO and not Path(name).expanduser().exists())


def _loaded(config: Config) -> dict[str, str]:
    """Return the models that no endpoint serves, by key."""
    served = ("elicit.model", "judge.") if config.engine.remote else ()
    return {key: name for key, name in naming(config, "model").items() if not key.startswith(served)}


def _refused(key: str, name: str) -> UserError | None:
    try:
        check_model(name, key)
    except UserError as error:
        return error
    return None


def judge_hub(endpoint: str, offline: bool, models: list[str], missing: list[str], get: Get) -> Iterator[Finding]:
    """Yield a finding for the hub. models: those that come from it; missing: those of them that are not in the cache."""
    needed, fix = ", ".join(missing), "download them where there is a network (`hf download NAME`), or name directories"
    if offline:
        if missing:
            yield Finding("hub", "error", f"HF_HUB_OFFLINE is set, and not in the cache: {needed}", fix)
        else:
            yield Finding("hub", "ok", "HF_HUB_OFFLINE is set; every model is here")
        return
    try:
        code = get(endpoint)
        text = f"{endpoint} answers HTTP {code}"
        if code < 500:
            yield Finding("hub", "ok", text)
            return
    except (requests.RequestException, OSError) as error:
        text = f"{endpoint} is unreachable ({type(error).__name__})"
    if missing:
        yield Finding("hub", "error", f"{text}, and not in the cache: {needed}", fix)
    elif models:
        yield Finding("hub", "warning", f"{text}; every model is in the cache", "set HF_HUB_OFFLINE=1 to save the waiting")
    else:
        yield Finding("hub", "ok", f"{text}; no model comes from it")


def judge_token(variable: str | None, found: bool, needed: bool) -> Iterator[Finding]:
    """Yield a finding for the hub's token, whose value is never looked at. needed: models come from the hub."""
    if found:
        yield Finding("token", "ok", f"of the hub, from {variable or 'the file of `hf auth login`'}")
    elif needed:
        text = "no token of the hub: gated and private models are refused, and downloads are slower"
        yield Finding("token", "warning", text, "set HF_TOKEN, or `hf auth login`")
    else:
        yield Finding("token", "ok", "no token of the hub, and no model comes from it")


def check_endpoint(config: Config) -> list[Finding]:
    """Check that the endpoint answers, and that the variable that holds its key is set."""
    endpoint = config.engine.endpoint
    if not config.engine.remote:
        return []
    found = judge_endpoint(endpoint.url, get, elsewhere=config.runtime.joined is not None)
    name = endpoint.api_key_env
    if os.environ.get(name):
        return [*found, Finding("endpoint", "ok", f"{name} is set")]
    text = f"{name} (engine.endpoint.api_key_env) is not set: requests carry no key"
    return [*found, Finding("endpoint", "warning", text, f"set {name}, unless the server asks for none")]


def judge_endpoint(url: str, get: Get, *, elsewhere: bool = False) -> Iterator[Finding]:
    """Yield a finding for engine.endpoint.url. elsewhere: a cluster calls it, which may reach more than this machine does."""
    shown = redact_uri(url)
    try:
        code = get(f"{url.rstrip('/')}/models")
        text = f"{shown} answers HTTP {code}"
        if code < 500:  # also one that wants the key, which is not sent
            yield Finding("endpoint", "ok", text)
            return
    except (requests.RequestException, OSError) as error:
        text = f"{shown} is unreachable: {redact_uri(str(error))}"
    yield Finding("endpoint", "warning" if elsewhere else "error", text, "start the server, or correct engine.endpoint.url")
