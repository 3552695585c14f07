"""Known replies in Ray's object store, which the actors of a machine share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from ual_ray.elicit.known import KnownReplies, find_known
from ual_ray.elicit.replies import Kept


class Shared:
    """The replies of `find_known`: indexed in a task, and fetched by the first request of an actor."""

    def __init__(self, store: Path, asked: str) -> None:
        """Start the task."""
        self._reference = ray.remote(find_known).remote(store, asked)
        self._known: KnownReplies | None = None

    def __call__(self, keys: Collection[int]) -> Mapping[int, Sequence[Kept]]:
        """Read the replies to requests by key."""
        return self._index()(keys)

    def any(self) -> bool:
        """Return whether there are replies."""
        return len(self._index().keys) > 0

    def _index(self) -> KnownReplies:
        self._known = self._known or ray.get(self._reference)
        return self._known

    def __getstate__(self) -> dict[str, Any]:
        """Travel as the reference alone: each machine has the index in its own object store."""
        return {"_reference": self._reference, "_known": None}
