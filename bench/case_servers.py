"""The kinds of servers of docs/cases.md, and what the engine reads from each (bench/cases.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def servers() -> Iterator[tuple[str, str, str, str]]:
    """Yield each kind of server: what it does, one rating by log-probabilities, three sampled ones, what was adapted."""
    from any_server import RATE, SAMPLE, AnyServer, answer, refusal, token

    from ual_ray.config import EndpointConfig, EngineConfig
    from ual_ray.engines.openai_engine import OpenAIEngine
    from ual_ray.engines.requests import EngineSpec

    good = (token("7", {"7": -0.1, "8": -2.5}),)

    def fine(body: Any, text: str | None = "7", tokens: Any = good, **more: Any) -> Any:
        return answer(text, *(tokens if body.get("logprobs") else ()), n=body.get("n", 1), **more)

    def unless(refused: Callable[[Any], bool], words: str) -> Callable[[Any], Any]:
        return lambda body: refusal(words) if refused(body) else fine(body)

    kinds: dict[str, Callable[[Any], Any]] = {
        "as OpenAI's": fine,
        "as GPT-5: refuses max_tokens": unless(
            lambda b: "max_tokens" in b, "'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        ),
        "as o1: refuses the temperature": unless(
            lambda b: b.get("temperature", 1) != 1, "'temperature' does not support 0.0 with this model."
        ),
        "refuses log-probabilities": unless(lambda b: "logprobs" in b, "'logprobs' is not supported with this model."),
        "allows 5 alternatives": unless(
            lambda b: b.get("top_logprobs", 0) > 5, "Requested sample logprobs of 20, greater than max allowed: 5"
        ),
        "demands 16 tokens": unless(lambda b: b["max_tokens"] < 16, "max_output_tokens must be >= 16"),
        "refuses n": unless(lambda b: b.get("n", 1) > 1, "'n': number must be at most 1"),
        "refuses the seed": unless(lambda b: "seed" in b, "seed: Extra inputs are not permitted"),
        "as Qwen3 without a reasoning parser": lambda b: fine(
            b, "<think>\nOkay, 2", (token("<think>", {"<think>": 0.0, "7": -12.0}),), finish="length"
        ),
        "as Qwen3 with one": lambda b: fine(b, None, (token("Okay"),), finish="length", reasoning_content="Okay, 2"),
        "as gpt-oss": lambda b: fine(
            b, "<|channel|>analysis<|message|>2<|end|><|start|>assistant<|channel|>final<|message|>7", (token("<|channel|>"),)
        ),
        "as llama.cpp: byte tokens": lambda b: fine(b, tokens=(token("<0x37>", {"<0x37>": -0.1, "▁8": -2.5}),)),
        "no log-probabilities": lambda b: fine(b, tokens=()),
        "no usage": lambda b: (200, {key: value for key, value in fine(b)[1].items() if key != "usage"}),
        "content in parts": lambda b: fine(b, [{"type": "text", "text": "7"}]),  # type: ignore[arg-type]
        "a filter ended the reply": lambda b: fine(b, finish="content_filter"),
        "a refusal": lambda b: fine(b, None, (), refusal="I cannot help."),
        "a call of a tool": lambda b: fine(b, None, (), finish="tool_calls", tool_calls=[CALL]),
        "an error with status 200": lambda b: (200, {"error": {"message": "upstream overloaded"}}),
        "too long a prompt": lambda b: refusal(
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
        ),
        "no quota": lambda b: (429, {"error": {"message": "You exceeded your current quota"}}),
    }
    for what, act in kinds.items():
        server = AnyServer(act)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = EndpointConfig(url=f"http://127.0.0.1:{server.server_address[1]}/v1", max_retries=0)
        with OpenAIEngine(EngineSpec(EngineConfig(kind="openai", endpoint=endpoint), "m")) as engine:
            read = [_read(result) for result in engine.run([RATE]) + engine.run([SAMPLE])]
            yield what, read[0], read[1], "; ".join(engine.adaptations)
        server.shutdown()


def _read(result: Any) -> str:
    from any_server import DIGITS

    from ual_ray.engines.reading import choice_probabilities

    found = choice_probabilities(result, DIGITS, 0.01)
    shares = {digit: share for digit, share in zip(DIGITS, found, strict=True) if share} if isinstance(found, list) else {}
    return ", ".join(f"{digit}: {share:.2f}" for digit, share in shares.items()) or found.reason  # type: ignore[union-attr]
