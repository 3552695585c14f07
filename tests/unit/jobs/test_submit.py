"""Submitting: one job per configuration while it runs, its tries numbered, and no value of a variable shown."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from job_server import JobServer, job_details
from rich.console import Console

from ual_ray.config.load import load
from ual_ray.config.redact import hide
from ual_ray.errors import UserError
from ual_ray.jobs import submit as module
from ual_ray.jobs.submit import read_environment

ADDRESS = "http://127.0.0.1:8265"
SECRET = "hf_planted-secret"


class Submitter:
    """Submits one configuration to a stand-in of the job server."""

    def __init__(self, server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.out = server, io.StringIO()
        monkeypatch.setattr(module, "connect", lambda address: server)

    def __call__(self, *overrides: str, **options: Any) -> int:
        config = load(None, ["output=/shared/out", *overrides])
        return module.submit(config, ADDRESS, Console(file=self.out, width=200), **options)

    @property
    def ids(self) -> list[str]:
        return [sent["id"] for sent in self.server.sent]

    @property
    def printed(self) -> str:
        return self.out.getvalue()


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> Submitter:
    return Submitter(JobServer(ends=("SUCCEEDED", "SUCCEEDED")), monkeypatch)


def test_a_job_is_followed_and_its_id_is_that_of_the_configuration(submit: Submitter) -> None:
    assert submit() == 0
    assert re.fullmatch(r"ual-[0-9a-f]{16}", submit.ids[0])
    assert "one\ntwo\n" in submit.printed and "SUCCEEDED" in submit.printed
    assert submit.server.sent[0]["metadata"]["output"] == "/shared/out"
    assert submit("train.epochs=5") == 0
    assert submit.ids[1] not in (submit.ids[0], f"{submit.ids[0]}-2")


def test_the_same_configuration_follows_its_running_job(submit: Submitter) -> None:
    assert submit(wait=False) == 0
    assert submit() == 0
    assert len(submit.ids) == 1
    assert "runs already: RUNNING" in submit.printed and "two" in submit.printed


@pytest.mark.parametrize(("status", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_an_ended_job_is_told_and_not_started_again_without_new(submit: Submitter, status: str, code: int) -> None:
    submit(wait=False)
    submit.server.end(submit.ids[0], status)
    assert submit(wait=False) == code
    assert len(submit.ids) == 1 and f"ended: {status}" in submit.printed and "--new" in submit.printed
    assert submit(new=True, wait=False) == 0
    assert submit.ids[1] == f"{submit.ids[0]}-2"
    submit.server.end(submit.ids[1], status)
    submit(new=True, wait=False)
    assert submit.ids[2] == f"{submit.ids[0]}-3"


def test_new_is_refused_while_a_job_writes_to_the_same_output(submit: Submitter) -> None:
    submit(wait=False)
    with pytest.raises(UserError, match=rf"(?s)still runs.*{submit.ids[0]}.*ual jobs stop {submit.ids[0]}"):
        submit(new=True)


def test_tries_are_compared_as_numbers() -> None:
    jobs = [job_details(f"ual-abc{end}", "FAILED") for end in ("-9", "-10", "", "-2")] + [job_details("ual-abcd-11", "FAILED")]
    latest = module.newest(jobs, "abc")
    assert latest is not None and latest.submission_id == "ual-abc-10"
    assert module.next_id("abc", latest) == "ual-abc-11"
    assert module.newest(jobs, "a") is None and module.next_id("a", None) == "ual-a"


def test_two_submitters_at_once_share_one_job(submit: Submitter) -> None:
    listed = submit.server.list_jobs
    submit(wait=False)
    answers = iter([[]])  # the other one's job is not listed yet when this one asks
    submit.server.list_jobs = lambda: next(answers, None) or listed()  # type: ignore[method-assign]
    assert submit() == 0
    assert len(submit.ids) == 1 and "runs already" in submit.printed


def test_a_failed_job_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = Submitter(JobServer(ends=("FAILED",)), monkeypatch)
    assert submit() == 1
    assert "FAILED" in submit.printed


def test_caches_stay_here(submit: Submitter) -> None:
    submit()
    assert "__pycache__/" in submit.server.sent[0]["runtime_env"]["excludes"]


def test_variables_travel_by_name_and_no_value_is_shown(submit: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    submit(environment=["HF_TOKEN"])
    sent = submit.server.sent[0]
    assert sent["runtime_env"].pop("env_vars") == {"HF_TOKEN": SECRET}
    assert SECRET not in str(sent) and SECRET not in submit.printed
    submit.server.refusal = RuntimeError(f"Request failed with status code 500: env_vars: {{'HF_TOKEN': '{SECRET}'}}")
    with pytest.raises(UserError, match=r"did not take the job") as raised:
        submit("train.epochs=7", environment=["HF_TOKEN"])
    assert SECRET not in str(raised.value) and "'HF_TOKEN': '***'" in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("given", [f"HF_TOKEN={SECRET}", "1HF", "HF-TOKEN", "", "UAL_NOT_SET"])
def test_what_is_not_the_name_of_a_set_variable_is_refused_without_its_value(given: str) -> None:
    with pytest.raises(UserError, match="--env") as raised:
        read_environment([given])
    assert SECRET not in str(raised.value)


def test_the_longer_of_two_values_is_hidden_whole() -> None:
    assert hide("token abcdef and abc", ["abc", "abcdef", ""]) == "token *** and ***"


def test_nothing_is_sent_for_a_configuration_that_cannot_be_submitted(submit: Submitter, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an absolute path"):
        submit("output=runs/x")
    assert submit.ids == []
