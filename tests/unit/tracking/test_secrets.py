"""Planted secrets are in nothing that a run leaves: its files, its log, MLflow's store and journal, and a job's metadata."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_server import JobServer
from rich.console import Console
from tracked import Network, tracker_of

from ual_ray.cli import app as cli
from ual_ray.config import Config
from ual_ray.config import redact as redaction
from ual_ray.config.load import load
from ual_ray.config.redact import redact, redact_uri, redact_values
from ual_ray.errors import UserError
from ual_ray.jobs import submit as jobs
from ual_ray.run import output
from ual_ray.run.output import Workspace
from ual_ray.run.step import Session
from ual_ray.run.terminal import terminal

SECRETS = {
    "HF_TOKEN": "hf_planted0001",
    "OPENAI_API_KEY": "sk-planted0002",
    "MLFLOW_TRACKING_PASSWORD": "planted0003",
    "AWS_SECRET_ACCESS_KEY": "planted0004",
}
PASSWORD = "planted0005"
ADDRESS = f"http://me:{PASSWORD}@host:5000"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def leaky() -> Config:
    """Make a configuration with a secret in every kind of place."""
    return load(
        None,
        [
            f"data.path=s3://key:{PASSWORD}@bucket/rows",
            "engine.arguments={hf_token: '${oc.env:HF_TOKEN}', nested: [{note: 'see ${oc.env:OPENAI_API_KEY}'}]}",
            "engine.endpoint.extra_headers={Authorization: Bearer planted0006, X-Api-Key: planted0007}",
            "engine.endpoint.extra_body={user: '${oc.env:MLFLOW_TRACKING_PASSWORD}'}",
            f"engine.endpoint.url=https://me:{PASSWORD}@host/v1",
            f"train.storage=s3://key:{PASSWORD}@bucket/checkpoints",
            "elicit.store=abfs://container@account.dfs.core.windows.net/store?sv=1&sig=planted0009&secret_key=planted0010",
        ],
    )


def leaks(folder: Path, *texts: str) -> list[str]:
    """List where anything planted is found: files by name, texts by their number."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and b"planted" in file.read_bytes()]
    return [*map(str, files), *(f"text {number}: {text}" for number, text in enumerate(texts) if "planted" in text)]


def log_everything(tracker: Any, config: Config, folder: Path) -> None:
    with tracker.run("run", folder, {"where": ADDRESS, "token": "planted0008"}) as run:
        run.params({"engine": config.engine.model_dump(), "data": config.data.model_dump(), "train": config.train.model_dump()})
        run.tags({"address": ADDRESS, "hf": SECRETS["HF_TOKEN"]})
        run.dataset("rows", config.data.path, "digest", 1, "scoring")
        run.artifact(folder / "config.yaml")
        run.table({"error": [f"401: wrong token {SECRETS['OPENAI_API_KEY']}"]}, "tables/errors.json")
        run.environment()


@pytest.mark.parametrize("away", [False, True], ids=["store", "journal"])
@pytest.mark.slow
def test_a_run_leaves_no_secret(tmp_path: Path, network: Network, away: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "fingerprint", lambda _: "0")  # the bucket does not exist
    config, out = leaky(), io.StringIO()
    Workspace(tmp_path).claim(config)
    tracker = tracker_of(tmp_path, must_answer=False)
    network.away = away
    Session(config, Console(file=out, width=300), tracker).say("rows", f"from {ADDRESS}, with {SECRETS['HF_TOKEN']}")
    log_everything(tracker, config, tmp_path)
    network.away = False
    tracker.close(10)
    network.away = True
    assert leaks(tmp_path, out.getvalue(), tracker.complaint() or "") == []
    # The grep finds what is not masked.
    (tmp_path / "copy.yaml").write_text(str(config.engine))
    assert leaks(tmp_path) == [str(tmp_path / "copy.yaml")]


def test_the_log_of_a_run_and_its_crash_name_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers.clear()
    try:
        with pytest.raises(SystemExit), terminal(tmp_path / "ual.log", verbose=False):
            logging.getLogger("mlflow").warning("no answer from %s with %s", ADDRESS, SECRETS["MLFLOW_TRACKING_PASSWORD"])
            os.write(1, f"a worker wrote {SECRETS['HF_TOKEN']}\n".encode())
            raise ConnectionError(f"{ADDRESS} refused {SECRETS['OPENAI_API_KEY']}")
    finally:
        root.handlers[:] = before
    printed = capfd.readouterr()
    # pytest's standard error is not the process's, which goes to the log.
    assert "a worker wrote ***" in printed.err
    log = tmp_path / "ual.log"
    log.write_text(log.read_text().replace(SECRETS["HF_TOKEN"], ""))  # workers write to it as they like
    assert "no answer from http://***@host:5000 with ***" in (tmp_path / "ual.log").read_text() + printed.err
    assert "ConnectionError: http://***@host:5000 refused ***" in printed.err
    assert leaks(tmp_path, printed.out, printed.err) == []


def test_a_users_mistake_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("the store is unreachable", got=f"{ADDRESS} with {SECRETS['HF_TOKEN']}")

    monkeypatch.setattr(cli, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(cli, "app", lambda *_, **__: fail())
    monkeypatch.setattr(sys, "argv", ["ual"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "planted" not in capsys.readouterr().err


def test_a_jobs_metadata_has_names_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server, out = JobServer(), io.StringIO()
    monkeypatch.setattr(jobs, "connect", lambda _: server)
    console = Console(file=out, width=300)
    config = load(None, ["output=/shared/out"])
    jobs.submit(config, "http://127.0.0.1:8265", console, environment=list(SECRETS))
    (sent,) = server.sent
    assert sent["runtime_env"].pop("env_vars") == SECRETS
    jobs.submit(load(None, ["output=/shared/b"]), f"http://me:{PASSWORD}@127.0.0.1:8265", console, wait=False)
    assert leaks(tmp_path, str(sent), out.getvalue()) == []
    with pytest.raises(UserError, match="contains a secret"):
        jobs.submit(leaky().model_copy(update={"output": "/shared/out"}), "http://127.0.0.1:8265", console)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("s3:/key:secret@bucket/x", "s3:/***@bucket/x"),
        ("http://host?mail=a@b", "http://host?mail=a@b"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://b.s3.aws/x?X-Amz-Date=1&X-Amz-Signature=ab12", "https://b.s3.aws/x?X-Amz-Date=1&X-Amz-Signature=***"),
        ("C:/a@b", "C:/a@b"),
        ("two: http://a:b@c and sqlite:///x", "two: http://***@c and sqlite:///x"),
    ],
)
def test_the_users_part_of_addresses(text: str, masked: str) -> None:
    assert redact_uri(text) == masked == redact_uri(masked)


@pytest.mark.parametrize(
    "key",
    [
        *("hf_token", "X-Api-Key", "Authorization", "aws_secret_access_key", "Cookie", "db.passwd", "passphrase", "DB_PWD"),
        *("OPENAI_KEY", "AZURE_STORAGE_KEY", "Ocp-Apim-Subscription-Key", "subscriptionKey", "AZURE_STORAGE_CONNECTION_STRING"),
        *("GITHUB_PAT", "X-Amz-Signature", "signature", "HF_TOKEN_2", "OPENAI_API_KEY2", "api_keys", "passwords", "X-Auth"),
    ],
)
def test_keys_that_name_a_secret(key: str) -> None:
    assert redact_values({key: "abc"}) == {key: "***"}


@pytest.mark.parametrize(
    "key",
    [
        *("max_tokens", "key", "keys", "tokenizer", "uncertainty", "secretary", "column", "PWD", "OLDPWD", "monkey", "compat"),
        *("auth", "author", "RAY_AUTH_MODE", "tokens_2", "train_tokens", "monkeys"),
    ],
)
def test_keys_that_do_not(key: str) -> None:
    assert redact_values({key: "abc"}) == {key: "abc"}


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        ("planted-0008\n", "planted-0008"),  # as a file of a Kubernetes Secret often ends
        (" planted-0008\r\n", "planted-0008"),
        ("pl/anted+0008=", "pl%2Fanted%2B0008%3D"),
        ('pl"anted\\0008', r"pl\"anted\\0008"),
        ("plänted0008", r"pl\u00e4nted0008"),
        ("planted\udcff0008", "planted\udcff0008"),  # bytes that are not UTF-8
    ],
)
def test_a_secret_is_masked_as_clients_and_files_spell_it(value: str, spelled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", value)
    assert redact_uri(f"401 for {spelled}, sent as {spelled}") == "401 for ***, sent as ***"
    assert redact_uri(f"<{value}>").strip("<> \r\n") == "***"


@pytest.mark.parametrize("value", ["Bearer abcdefgh.1j-k", "bearer  abcdef12", "Basic bWU6c2VjcmV0"])
def test_credentials_of_a_header_are_masked_under_any_name(value: str) -> None:
    config = load(None, [f"engine.endpoint.extra_headers={{X-Upstream: '{value}', X-Team: Basic research}}"])
    assert redact(config).engine.endpoint.extra_headers == {"X-Upstream": "***", "X-Team": "Basic research"}


def test_short_values_of_variables_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "true")
    monkeypatch.setenv("ANOTHER_TOKEN", f"{' ' * 8}yes\n")
    assert redact_uri("true, yes") == "true, yes"
    assert redact(load()) == load()


def test_a_thread_that_changes_the_environment_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow's telemetry does: a variable is gone between its name and its value."""

    class Vanishing(UserDict[str, str]):
        def __iter__(self) -> Iterator[str]:
            for name in [*self.data]:
                self.data.pop("A_TOKEN_THAT_VANISHES", None)
                yield name

    variables = Vanishing(FIRST_TOKEN="planted0008", A_TOKEN_THAT_VANISHES="planted0009", LAST_TOKEN="planted0010")
    monkeypatch.setattr(redaction, "os", SimpleNamespace(environ=variables))
    assert redact_uri("planted0008 and planted0010") == "*** and ***"
