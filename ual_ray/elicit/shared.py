"""Known replies in Ray's object store, which the actors of a machine share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from ual_ray.elicit.known import KnownReplies, find_known
from ual_ray.elicit.replies import Kept
from ual_ray.run.machines import here


class Shared:
    """The replies of `find_known`: indexed in a task when they are first wanted, and fetched by each actor that wants them."""

    def __init__(self, store: Path, asked: str) -> None:
        """Remember what to index."""
        self._wanted = (store, asked)

    def __call__(self, keys: Collection[int]) -> Mapping[int, Sequence[Kept]]:
        """Read the replies to requests by key."""
        return self._known(keys)

    def any(self) -> bool:
        """Return whether there are replies."""
        return len(self._known.keys) > 0

    @cached_property
    def _reference(self) -> Any:
        return ray.remote(find_known).options(**here()).remote(*self._wanted)

    @cached_property
    def _known(self) -> KnownReplies:
        known: KnownReplies = ray.get(self._reference)
        return known

    def __getstate__(self) -> dict[str, Any]:
        """Travel as the reference alone: an actor fetches the index from its machine's object store."""
        return {"_wanted": self._wanted, "_reference": self._reference}
