"""Findings, and how all checks are run: at once, each with a timeout, none with a traceback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ual_ray.config import Config
from ual_ray.config.redact import redact_uri

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What a check found; `fix`: what to do about a warning or an error."""

    check: str
    status: Status
    text: str
    fix: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Return the finding for JSON, without passwords of addresses."""
        return {name: redact_uri(value) if value else value for name, value in asdict(self).items()}


Check = Callable[[Config], Sequence[Finding]]


def examine(config: Config, checks: Mapping[str, Check], seconds: float) -> list[Finding]:
    """Run all checks at once and return their findings in order. One that raises, or takes over `seconds`, is an error."""
    running = [(name, _Running(name, check, config)) for name, check in checks.items()]
    return [finding for name, check in running for finding in check.result(name, seconds)]


class _Running:
    """A check on a thread that does not keep the process alive."""

    def __init__(self, name: str, check: Check, config: Config) -> None:
        self._findings: list[Finding] | None = None
        self._thread = threading.Thread(target=self._work, args=(name, check, config), daemon=True)
        self._thread.start()

    def _work(self, name: str, check: Check, config: Config) -> None:
        try:
            self._findings = [*check(config)]
        except Exception as error:  # a broken check is a finding, and does not hide the others
            text = f"the check itself failed: {type(error).__name__}: {error}"
            self._findings = [Finding(name, "error", text, "report it, with the output of `ual doctor --json`")]

    def result(self, name: str, seconds: float) -> list[Finding]:
        self._thread.join(seconds)
        if self._findings is None:
            return [
                Finding(name, "error", f"no answer in {seconds:g} s", "check that what it asks is reachable, and try again")
            ]
        return self._findings
