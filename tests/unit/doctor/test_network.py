"""MLflow, the hub, its token and the endpoint's key, judged by what a network might answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from ual_ray.config.load import load
from ual_ray.doctor import network
from ual_ray.doctor.checks import CHECKS
from ual_ray.doctor.findings import Finding, examine

SERVED = ["engine.kind=openai", "elicit.model=served", "elicit.estimators=[verbalized_error]"]


def only(findings: object) -> Finding:
    (finding,) = findings  # type: ignore[misc]
    assert finding.status == "ok" or finding.fix
    return finding


def answers(code: int) -> Any:
    return lambda *_: code


def silent(*_: object) -> int:
    raise requests.ConnectTimeout("no answer from http://me:planted@host")


def mlflow(uri: str | None, get: Any = None, reach: Any = None, variable: bool = False) -> Finding:
    return only(network.judge_mlflow(uri, variable, get or answers(200), reach or answers(0)))


@pytest.mark.parametrize(
    ("uri", "get", "status", "word"),
    [
        (None, silent, "ok", "output folder"),
        ("http://me:planted@host:5000", answers(200), "ok", "http://***@host:5000"),
        ("http://me:planted@host:5000", answers(401), "error", "wants credentials"),
        ("http://me:planted@host:5000", answers(404), "error", "not an MLflow server"),
        ("http://me:planted@host:5000", silent, "error", "unreachable"),
        ("", silent, "ok", "output folder"),
        ("mlruns", silent, "error", "mlruns is a folder"),
        ("file:///shared/mlruns", silent, "error", "is a folder"),
        ("sqlite://", silent, "error", "names no file"),
        ("sqlite:///:memory:", silent, "error", "names no file"),
        ("sqlite:/mlflow.db", silent, "error", "names no file"),
        ("postgresql://me:planted@host:99999/mlflow", answers(200), "error", "Port out of range"),
        ("https://[::1", answers(200), "error", "Invalid IPv6 URL"),
        ("databricks", silent, "warning", "was not checked"),
        ("databricks://profile", silent, "warning", "was not checked"),
    ],
)
def test_mlflow(uri: str | None, get: Any, status: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = mlflow(uri, get)
    assert found.status == status and word in found.text and "planted" not in str(found)


def test_mlflow_in_a_database_or_a_file(tmp_path: Path) -> None:
    uri = "postgresql://me:planted@host:5432/mlflow"
    asked: list[tuple[str, int]] = []
    assert mlflow(uri, silent, lambda host, port: asked.append((host, port)) or 0).status == "ok"
    assert asked == [("host", 5432)]
    away = mlflow(uri, silent, silent)
    assert away.status == "error" and "planted" not in str(away)
    assert mlflow(f"sqlite:///{tmp_path}/new/mlflow.db", silent, silent).status == "ok"
    (tmp_path / "file").write_text("")
    assert mlflow(f"sqlite:///{tmp_path}/file/mlflow.db", silent, silent).status == "error"
    assert mlflow(f"sqlite:///{tmp_path}/file", silent, silent).status == "ok"


def test_a_variable_that_is_not_read_is_told() -> None:
    assert mlflow(None, silent, variable=True).status == "warning"
    assert mlflow("http://host:5000", variable=True).status == "ok"


@pytest.mark.parametrize(
    ("offline", "models", "missing", "get", "status"),
    [
        (True, [], [], silent, "ok"),
        (True, ["a/b"], [], silent, "ok"),
        (True, ["a/b"], ["a/b"], answers(200), "error"),
        (False, ["a/b"], ["a/b"], answers(200), "ok"),
        (False, ["a/b"], ["a/b"], silent, "error"),
        (False, ["a/b"], ["a/b"], answers(503), "error"),
        (False, ["a/b"], [], silent, "warning"),
        (False, [], [], silent, "ok"),
    ],
)
def test_the_hub(offline: bool, models: list[str], missing: list[str], get: Any, status: str) -> None:
    found = only(network.judge_hub("https://hub", offline, models, missing, get))
    assert found.status == status and (status != "error" or "a/b" in found.text)


def test_models_of_the_hub_are_those_that_are_not_here(tmp_path: Path) -> None:
    models = ["model=owner/small", f"elicit.model={tmp_path}", "judge.model=owner/judge"]
    assert network.hub_models(load(None, models)) == ["owner/judge", "owner/small"]
    assert network.hub_models(load(None, [*models, *SERVED])) == ["owner/small"]
    more = [*models, "judge.more_models=[owner/other]"]
    assert network.hub_models(load(None, more)) == ["owner/judge", "owner/other", "owner/small"]
    assert network.hub_models(load(None, [*more, *SERVED])) == ["owner/small"]
    assert network.hub_models(load()) == []


@pytest.mark.parametrize("name", ["./nothere", "a/b/c", "two words", "-x", "{}"])
def test_a_model_that_a_run_refuses_is_a_finding_and_not_asked_of_the_hub(name: str, tmp_path: Path) -> None:
    config = load(None, [f"elicit.model={json.dumps(str(tmp_path) if name == '{}' else name)}"])
    found = only(examine(config, {"models": network.check_models}, 60))
    assert found.status == "error" and found.text.startswith("elicit.model") and "check itself failed" not in found.text
    assert network.hub_models(config) == [] and network.check_hub(config)
    assert only(network.check_models(load(None, ["model=owner/small"]))).status == "ok"


@pytest.mark.parametrize(
    ("check", "override", "word"),
    [
        ("data", "data.path=missing.jsonl", "missing.jsonl"),
        ("output", "output=foo://x/y", "foo://x/y"),
        ("output", "elicit.store=foo://x/y", "elicit.store: unsupported URI scheme"),
        ("output", "elicit.store=/proc/x/y", "elicit.store cannot be written"),
    ],
)
def test_what_a_run_refuses_is_a_finding_in_its_words(check: str, override: str, word: str) -> None:
    found = only(examine(load(None, [override]), {check: CHECKS[check]}, 60))
    assert found.status == "error" and word in found.text and "check itself failed" not in found.text


def test_what_a_run_takes_is_none(tmp_path: Path) -> None:
    assert only(CHECKS["data"](load())).text == "200 rows of demo (format: demo)"
    assert CHECKS["output"](load()) == []
    assert only(CHECKS["output"](load(None, [f"elicit.store={tmp_path}"]))).text == str(tmp_path)


def test_tokens_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setattr(network, "get", answers(200))
    hub, token = network.check_hub(load(None, ["model=owner/none"]))
    assert (hub.status, token.status) == ("ok", "ok") and "HF_TOKEN" in token.text and "planted" not in str(token)
    assert only(network.judge_token(None, True, True)).text.endswith("`hf auth login`")
    assert only(network.judge_token(None, False, True)).status == "warning"
    assert only(network.judge_token(None, False, False)).status == "ok"


def test_the_endpoint_and_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, [*SERVED, "engine.endpoint.api_key_env=MY_KEY", "engine.endpoint.url=http://host/v1"])
    monkeypatch.setattr(network, "get", answers(401))  # it wants the key, which is not sent
    monkeypatch.delenv("MY_KEY", raising=False)
    address, missing = network.check_endpoint(config)
    assert (address.status, address.text) == ("ok", "http://host/v1 answers HTTP 401")
    assert missing.status == "warning" and "MY_KEY" in missing.text
    monkeypatch.setenv("MY_KEY", "planted")
    assert network.check_endpoint(config)[1] == Finding("endpoint", "ok", "MY_KEY is set")
    assert network.check_endpoint(load()) == []


@pytest.mark.parametrize(
    ("url", "get", "word"),
    [
        ("http://me:planted@host/v1", silent, "http://***@host/v1 is unreachable"),
        ("http://host/v1", answers(502), "answers HTTP 502"),
        ("notaurl", None, "notaurl is unreachable"),
        ("http://host:99999/v1", None, "is unreachable"),
    ],
)
def test_an_endpoint_that_no_request_reaches_is_an_error(url: str, get: Any, word: str) -> None:
    found = only(network.judge_endpoint(url, get or network.get))
    assert found.status == "error" and word in found.text and "planted" not in str(found)
