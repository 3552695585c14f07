"""Findings, and how all checks are run: at once, each with a timeout, none with a traceback."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

from ual_ray.config import Config
from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError
from ual_ray.run.side_by_side import in_thread

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
    running = {name: in_thread(partial(check, config), name) for name, check in checks.items()}
    return [finding for name, found in running.items() for finding in _findings(name, found, seconds)]


def _findings(name: str, found: Future[Sequence[Finding]], seconds: float) -> Sequence[Finding]:
    try:
        return found.result(seconds)
    except Exception as error:  # a broken check is a finding, and does not hide the others
        text = f"the check itself failed: {type(error).__name__}: {error}"
        fix = "report it, with the output of `ual doctor --json`"
        if isinstance(error, UserError):
            text, _, advice = str(error).partition("\n  fix: ")
            text, fix = "; ".join(text.split("\n  ")), advice or "correct the configuration"
        elif not found.done():
            text, fix = f"no answer in {seconds:g} s", "check that what it asks is reachable, and try again"
        return [Finding(name, "error", text, fix)]
