"""A fake engine, for tests of everything around an engine: answers are computed from a hash of the request.

With `render: true` and a model with a tokenizer, lengths are in tokens as in a real engine; otherwise in words.
`engine.arguments` can make it slow, die or hang on a request that contains a given text, and log its requests:
{seconds_per_run: 0.1, crash_on: text, hang_on: text, log: file}.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    CompletionResult,
    EngineSpec,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
    messages_of,
    overlong,
    turns_of,
)
from ual_ray.models.chat import load_renderer
from ual_ray.models.resolve import resolve_model

# Characters of a request.
LOGGED = 10_000


class FakeEngine:
    """Deterministic answers, from a hash of model and request."""

    def __init__(self, spec: EngineSpec) -> None:
        self._model = _identify(spec.model)
        self._limit = spec.config.max_model_len
        self._arguments = spec.config.arguments
        self._renderer = load_renderer(resolve_model(spec.model)) if spec.config.arguments.get("render") else None
        self.template_hash = self.read_template_hash(spec)

    @staticmethod
    def read_template_hash(spec: EngineSpec) -> str:
        """Return the renderer's template hash, or the word fake."""
        renders = spec.config.arguments.get("render")
        return load_renderer(resolve_model(spec.model)).template_hash if renders else "fake"

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer every request; a text of more words (or rendered tokens) than max_model_len is overlong."""
        self._log(requests)
        time.sleep(self._arguments.get("seconds_per_run", 0))
        lengths = self._lengths(requests)
        return [self._answer(request, length) for request, length in zip(requests, lengths, strict=True)]

    def _lengths(self, requests: Sequence[Request]) -> list[int]:
        conversations = [turns_of(request) for request in requests]
        if self._renderer is None:
            return [sum(len(content.split()) for _, content in turns) for turns in conversations]
        texts = [
            self._renderer.text(messages_of(turns), generation_prompt=not isinstance(request, Likelihood))
            for request, turns in zip(requests, conversations, strict=True)
        ]
        return [len(ids) for ids in self._renderer.encode_all(texts)]

    def _answer(self, request: Request, length: int) -> Result:
        turns = turns_of(request)
        self._misbehave(turns[-1][1])
        if length > self._limit:
            return overlong(length, self._limit)
        if isinstance(request, Choice):
            weights = self._weights(len(request.choices), request)
            total = sum(weights)
            return ChoiceResult(tuple(math.log(weight / total) for weight in weights), prompt_tokens=length)
        if isinstance(request, Likelihood):
            words = len(turns[-1][1].split()) + 1
            return LikelihoodResult(3 * words * self._unit(turns), words, prompt_tokens=length)
        texts = tuple(f"#### {int(100 * self._unit(turns, request.seed + sample))}" for sample in range(request.n))
        result = CompletionResult(texts, prompt_tokens=length, generated_tokens=2 * request.n)
        if not request.confidence:
            return result
        sure = 0.05 + 0.95 * self._unit(turns, "confidence")
        return replace(result, log_probability=2 * math.log(sure), scored_tokens=2)

    def _log(self, requests: Sequence[Request]) -> None:
        """Append a line per request, all at once: the actors of a pool share the file."""
        if path := self._arguments.get("log"):
            lines = [
                json.dumps({"pid": os.getpid(), "kind": type(one).__name__, "text": turns_of(one)[-1][1][:LOGGED]}) + "\n"
                for one in requests
            ]
            with open(path, "ab", buffering=0) as file:
                file.write("".join(lines).encode())

    def _misbehave(self, text: str) -> None:
        if (crash_on := self._arguments.get("crash_on")) and crash_on in text:
            os._exit(1)
        if (hang_on := self._arguments.get("hang_on")) and hang_on in text:
            time.sleep(3600)

    def _weights(self, count: int, request: Choice) -> list[int]:
        drawn = hashlib.shake_256(repr((self._model, request)).encode()).digest(2 * count)
        return [1 + int.from_bytes(drawn[at : at + 2], "big") for at in range(0, 2 * count, 2)]

    def _unit(self, *parts: object) -> float:
        return int.from_bytes(hashlib.sha256(repr((self._model, parts)).encode()).digest()[:8], "big") / 2**64


def _identify(model: str) -> str:
    """Name a model by its folder and its weights, where there are any: trainings of different seeds answer differently."""
    files = sorted(Path(model).glob("*.safetensors"))
    weights = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else ""
    return Path(model).name + weights
