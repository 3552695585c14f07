"""`ual sync`: send the operations that earlier commands on an output folder could not send to MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ual_ray.config import TrackingConfig
from ual_ray.config.files import read_json
from ual_ray.config.paths import SPOOL_FOLDER
from ual_ray.config.redact import MASK, redact_uri
from ual_ray.errors import UserError
from ual_ray.tracking.journal import STORE
from ual_ray.tracking.tracker import Tracker, default_uri


@dataclass(frozen=True)
class CaughtUp:
    """Counts of an output folder's spooled operations: sent, rejected by the store, still waiting."""

    sent: int
    refused: int
    waiting: int


def catch_up(output: Path, uri: str | None = None, seconds: float | None = None) -> CaughtUp:
    """Send the operations spooled in an output folder, for at most `seconds` per store (None: tracking.catch_up_seconds).

    uri: the store's address, needed when it contains a password (passwords are not kept on disk). Raises UserError when it is
    missing, when a store refuses the connection, and for an output folder that does not exist.
    """
    if not output.is_dir():
        raise UserError("the output folder does not exist", got=output, fix="give the folder of the command that waits")
    sent = refused = waiting = 0
    for file in sorted((output / SPOOL_FOLDER).glob(f"*/{STORE}")):
        meant = read_json(file)
        config = TrackingConfig(uri=_address(meant["uri"], uri, output), experiment=meant["experiment"], retry_seconds=1.0)
        tracker = Tracker(config, output)
        waiting += tracker.close(seconds)
        sent, refused = sent + tracker.caught_up, refused + tracker.failures
    return CaughtUp(sent, refused, waiting)


def _address(kept: str, given: str | None, output: Path) -> str | None:
    """Return the address to use; null for the output folder's own store."""
    if kept == default_uri(output):
        return None
    if given is not None and redact_uri(given) == kept:
        return given
    if MASK in kept:
        raise UserError(
            "operations wait for a store whose address contains a password", got=kept, fix="pass the full address with --uri"
        )
    return kept
