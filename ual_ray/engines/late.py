"""An engine that is not loaded until it is asked something: where replies are known, nothing may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from ual_ray.config.registry import ENGINES
from ual_ray.engines import Engine, EngineSpec, make_engine
from ual_ray.engines.requests import Request, Result


class LateEngine:
    """Loads the engine of `spec` when it is first asked; `loading()` surrounds this."""

    def __init__(self, spec: EngineSpec, loading: Callable[[], AbstractContextManager[None]]) -> None:
        """Remember how to load the engine; read its template hash, without loading it where its class can tell."""
        self._spec, self._loading = spec, loading
        kind = ENGINES[spec.config.kind]
        read = getattr(kind, "read_template_hash", lambda _: getattr(kind, "template_hash", None) or self._engine.template_hash)
        self.template_hash: str = read(spec)

    @cached_property
    def _engine(self) -> Engine:
        with self._loading():
            return make_engine(self._spec)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Load the engine if it is not, and answer all requests."""
        return self._engine.run(requests)
