"""An engine that is not loaded until it is asked something: where replies are known, nothing may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Lock

from ual_ray.config.registry import ENGINES
from ual_ray.engines import Engine, EngineSpec, make_engine
from ual_ray.engines.requests import Request, Result


class LateEngine:
    """Loads the engine of `spec` when it is first asked; `loading()` surrounds this."""

    def __init__(self, spec: EngineSpec, loading: Callable[[], AbstractContextManager[None]]) -> None:
        """Remember how to load the engine; read its template hash, without loading it where its class can tell."""
        self._spec, self._loading = spec, loading
        self._loaded: Engine | None = None
        self._lock = Lock()
        kind = ENGINES[spec.config.kind]
        read = getattr(kind, "read_template_hash", lambda _: getattr(kind, "template_hash", None) or self._engine.template_hash)
        self.template_hash: str = read(spec)

    @property
    def _engine(self) -> Engine:
        if self._loaded is None:
            with self._loading(), self._lock:  # threads that wait for another one's loading are loading too
                self._loaded = self._loaded or make_engine(self._spec)
        return self._loaded

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Load the engine if it is not, and answer all requests."""
        return self._engine.run(requests)
