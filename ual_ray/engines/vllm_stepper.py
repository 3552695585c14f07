"""Several threads generate with one vLLM engine: whoever waits for outputs takes turns in stepping it.

While the last replies of one batch are still being sampled, those of the next fill the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from threading import Condition
from typing import TYPE_CHECKING, Any

from ual_ray.engines.contract import EngineDied

if TYPE_CHECKING:
    from vllm import LLMEngine, RequestOutput, SamplingParams


class Stepper:
    """Steps one engine for all threads that call `generate`; only one of them is inside the engine at a time."""

    def __init__(self, engine: LLMEngine, lora: Any = None) -> None:
        """Take the engine, and the LoRA request that all prompts are generated with."""
        self._engine, self._lora = engine, lora
        self._changed = Condition()
        self._names = map(str, count())
        self._waiting: list[tuple[str, list[int], SamplingParams]] = []
        self._outputs: dict[str, RequestOutput | Exception] = {}
        self._stepping = False
        self._dead: EngineDied | None = None

    def generate(self, prompts: Sequence[list[int]], sampling: Sequence[SamplingParams]) -> list[RequestOutput | Exception]:
        """Return the output of every prompt, or what the engine raised when it was given this prompt.

        sampling: one per prompt, with output_kind=FINAL_ONLY. Raises EngineDied when the engine fails while generating.
        """
        with self._changed:
            names = [next(self._names) for _ in prompts]
            self._waiting.extend(zip(names, prompts, sampling, strict=True))
            while not all(name in self._outputs for name in names):
                if self._dead:
                    raise self._dead
                if self._stepping:
                    self._changed.wait()
                else:
                    self._step()
            return [self._outputs.pop(name) for name in names]

    def _step(self) -> None:
        """Give the engine what waits, and step it once, while other threads may add prompts and take outputs."""
        self._stepping = True
        new, self._waiting = self._waiting, []
        self._changed.release()
        finished: dict[str, RequestOutput | Exception] = {}
        dead = None
        try:
            finished |= self._add(new)
            if self._engine.has_unfinished_requests():  # an engine process with nothing to do would never answer
                finished |= {output.request_id: output for output in self._engine.step() if output.finished}
        except Exception as error:
            # Requests that it still holds would block all later ones.
            dead = EngineDied(f"the engine failed while it was generating: {error}")
            dead.__cause__ = error
        finally:
            self._changed.acquire()
            self._stepping = False
            self._outputs |= finished
            self._dead = dead
            self._changed.notify_all()

    def _add(self, new: Sequence[tuple[str, list[int], SamplingParams]]) -> dict[str, RequestOutput | Exception]:
        """Add requests; return the errors of those that it refuses, which must not fail the others."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        refused: dict[str, RequestOutput | Exception] = {}
        for name, ids, sampling in new:
            try:
                self._engine.add_request(name, tokens_input(ids), sampling, lora_request=self._lora)
            except EngineDeadError:
                raise
            except Exception as error:
                refused[name] = error
        return refused
