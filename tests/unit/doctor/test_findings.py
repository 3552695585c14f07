"""How checks are run: in order, with a timeout, and none with a traceback; and what `ual doctor` prints."""

from __future__ import annotations

import json
import threading
import time

import pytest
import typer.main

from ual_ray.cli import app as cli
from ual_ray.config.load import load
from ual_ray.doctor import checks
from ual_ray.doctor.findings import Finding, examine
from ual_ray.errors import UserError

OK = Finding("first", "ok", "fine")


def broken(config: object) -> list[Finding]:
    raise TimeoutError("of its own")


def test_checks_run_at_once_and_their_findings_keep_their_order() -> None:
    gate = threading.Event()

    def waits(config: object) -> list[Finding]:
        assert gate.wait(5)
        return [OK]

    def opens(config: object) -> list[Finding]:
        gate.set()
        return [Finding("second", "warning", "odd", "fix it")]

    found = examine(load(), {"first": waits, "second": opens}, 5)
    assert [finding.check for finding in found] == ["first", "second"]


def test_a_check_that_hangs_or_raises_is_an_error_with_a_fix_and_hides_no_other() -> None:
    forever = threading.Event()
    start = time.monotonic()
    hangs, raises, last = examine(load(), {"a": lambda _: forever.wait(60) and [], "b": broken, "c": lambda _: [OK]}, 0.1)  # type: ignore[dict-item, return-value]
    forever.set()
    assert time.monotonic() - start < 5
    assert (hangs.status, raises.status, last) == ("error", "error", OK)
    assert "no answer in 0.1 s" in hangs.text and "TimeoutError: of its own" in raises.text
    assert hangs.fix and raises.fix


def run_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        typer.main.get_command(cli.app).main(["doctor", *arguments])
    return int(exit_.value.code or 0), capsys.readouterr().out


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("error", 1)])
def test_the_exit_code_tells_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    finding = Finding("[mlflow]", status, "http://me:planted@host away", "start it")  # type: ignore[arg-type]
    monkeypatch.setattr(checks, "CHECKS", {"mlflow": lambda _: [finding, OK]})
    found, printed = run_doctor(monkeypatch, capsys)
    assert found == code and "fix: start it" in printed and "planted" not in printed
    found, printed = run_doctor(monkeypatch, capsys, "--json")
    assert found == code and "planted" not in printed
    assert json.loads(printed) == {
        "errors": int(status == "error"),
        "findings": [
            {"check": "[mlflow]", "status": status, "text": "http://***@host away", "fix": "start it"},
            {"check": "first", "status": "ok", "text": "fine", "fix": None},
        ],
    }


def test_a_wrong_configuration_is_refused_before_any_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", {"b": broken})
    with pytest.raises(UserError, match="unknown key"):
        typer.main.get_command(cli.app).main(["doctor", "trian.epochs=1"], standalone_mode=False)
