"""How the vLLM engine is built: its arguments, its environment, its GPUs and its adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_requests import ASK, TOLD, spec_of
from filelock import Timeout
from vllm_stand_in import BuildVLLM, StandIn

from ual_ray.config import EngineConfig
from ual_ray.engines import vllm_engine
from ual_ray.engines.compat_vllm import EXTENSION
from ual_ray.engines.requests import (
    Completion,
    Likelihood,
    LikelihoodResult,
)
from ual_ray.engines.vllm_engine import VLLMEngine, adapter_rank, check_parallel, engine_arguments, turn_to_load
from ual_ray.errors import UserError


def test_the_template_hash_is_read_without_loading_the_model(build_vllm: BuildVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, _ = build_vllm()
    monkeypatch.setattr(sys.modules["vllm"], "LLM", lambda **_: pytest.fail("loaded"))
    assert VLLMEngine.read_template_hash(spec_of("tiny")) == engine.template_hash


def test_the_template_hash_is_the_renderers(build_vllm: BuildVLLM) -> None:
    engine, _, renderer = build_vllm("llama3")
    assert engine.template_hash == renderer.template_hash


def test_a_vllm_without_a_place_for_the_cheap_likelihood_is_used_as_it_is(
    build_vllm: BuildVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    build_vllm(cheap=True)
    assert "prompt_logprobs" not in caplog.text
    engine, _, _ = build_vllm(cheap=False)
    assert "slower prompt_logprobs are used" in caplog.text
    assert isinstance(engine.run([Likelihood(TOLD)])[0], LikelihoodResult)


def test_settings_reach_the_engine_and_arguments_win(build_vllm: BuildVLLM) -> None:
    _, llm, _ = build_vllm(dtype="float16", max_model_len=77, arguments={"dtype": "float32", "max_num_seqs": 3})
    assert llm.options["model"] == "/models/tiny"
    assert (llm.options["dtype"], llm.options["max_model_len"], llm.options["max_num_seqs"]) == ("float32", 77, 3)
    environment = vllm_engine.os.environ
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1" and environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_on_gpus_one_engine_spans_them(build_vllm: BuildVLLM) -> None:
    _, llm, _ = build_vllm(gpus_per_actor=2)
    assert (llm.options["tensor_parallel_size"], llm.options["enforce_eager"]) == (2, False)
    assert not {"OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE"} & set(vllm_engine.os.environ)
    assert vllm_engine.os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


@pytest.mark.parametrize(
    ("options", "key", "expected"),
    [
        ({}, "enforce_eager", True),
        ({}, "tensor_parallel_size", 1),
        ({}, "worker_extension_cls", EXTENSION),
        ({}, "trust_remote_code", False),
        ({"trust": True}, "trust_remote_code", True),
        ({"gpus_per_actor": 0.5}, "tensor_parallel_size", 1),
        ({"gpus_per_actor": 4}, "tensor_parallel_size", 4),
        ({"gpus_per_actor": 4, "tensor_parallel_size": 4}, "tensor_parallel_size", 4),
        ({"gpus_per_actor": 4, "arguments": {"pipeline_parallel_size": 2}}, "tensor_parallel_size", 2),
        ({"gpus_per_actor": 0.5}, "gpu_memory_utilization", 0.45),
        ({"dtype": "float16"}, "dtype", "float16"),
        ({}, "enable_chunked_prefill", False),
        ({"max_model_len": 512}, "max_num_batched_tokens", 4096),
        ({"max_model_len": 8192}, "max_num_batched_tokens", 8192),
    ],
)
def test_engine_arguments(options: dict[str, Any], key: str, expected: object) -> None:
    assert engine_arguments(spec_of(**options))[key] == expected


def test_on_gpus_vllm_reads_prompts_in_parts_as_it_likes() -> None:
    left = {"enable_chunked_prefill", "max_num_batched_tokens", "gpu_memory_utilization"}
    assert not left & set(engine_arguments(spec_of(gpus_per_actor=1)))
    assert "gpu_memory_utilization" not in engine_arguments(spec_of())


def test_engines_that_share_a_gpu_load_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_engine, "gettempdir", lambda: str(tmp_path))

    def turn(gpu: str, gpus: float) -> Any:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
        return turn_to_load(EngineConfig(gpus_per_actor=gpus))

    with turn("3", 0.5):
        with pytest.raises(Timeout):
            turn("3", 0.5).acquire(timeout=0)
        with turn("4", 0.5), turn("3", 1), turn("3", 1), turn("", 0), turn("", 0):
            pass
    with turn("3", 0.5):
        pass


def test_an_engine_has_its_turn_while_it_loads(build_vllm: BuildVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextmanager
    def turn(config: EngineConfig) -> Iterator[None]:
        seen.append(f"begin, {config.gpus_per_actor:g} GPUs")
        yield
        seen.append("end")

    monkeypatch.setattr(vllm_engine, "turn_to_load", turn)
    loaded = StandIn.collective_rpc
    monkeypatch.setattr(StandIn, "collective_rpc", lambda *given: seen.append(given[1]) or loaded(*given))
    build_vllm(gpus_per_actor=0.5)
    assert seen == ["begin, 0.5 GPUs", "ual_end_with_engine", "end", "ual_use_cheap_likelihood"]


def adapter(folder: Path, text: str) -> str:
    (folder / "adapter_config.json").write_text(text)
    return str(folder)


def test_without_an_adapter_there_is_no_lora(build_vllm: BuildVLLM) -> None:
    assert not {"enable_lora", "max_lora_rank"} & set(engine_arguments(spec_of()))
    engine, llm, _ = build_vllm()
    engine.run([Completion(ASK, 5)])
    assert llm.loras == [None]


def test_an_adapter_is_used_for_every_request(build_vllm: BuildVLLM, tmp_path: Path) -> None:
    engine, llm, _ = build_vllm(lora=adapter(tmp_path, '{"r": 12}'))
    engine.run([Completion(ASK, 5)])
    assert (llm.options["enable_lora"], llm.options["max_lora_rank"]) == (True, 16)
    assert llm.loras == [("elicitor", 1, str(tmp_path))]


@pytest.mark.parametrize(("rank", "expected"), [(1, 8), (8, 8), (9, 16), (64, 64), (300, 320), (512, 512)])
def test_an_adapters_rank_is_one_that_vllm_has_kernels_for(rank: int, expected: int, tmp_path: Path) -> None:
    assert adapter_rank(adapter(tmp_path, json.dumps({"r": rank}))) == expected


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"r": null}', '{"r": "many"}', "{"])
def test_what_is_no_adapter_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)elicit.adapter is not a LoRA adapter.*adapter_config.json"):
        adapter_rank(adapter(tmp_path, text))
    with pytest.raises(UserError, match="elicit.adapter is not a LoRA adapter"):
        adapter_rank(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"r": 1024}, "rank 1024"),
        ({"rank_pattern": {"q_proj": 600}}, "rank 600"),
    ],
)
def test_an_adapter_that_vllm_does_not_apply_is_refused(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"(?s)has what vLLM does not apply.*{says}.*merge"):
        adapter_rank(adapter(tmp_path, json.dumps({"r": 8} | more)))


def test_the_largest_rank_of_a_pattern_counts(tmp_path: Path) -> None:
    given = {"r": 8, "rank_pattern": {"q_proj": 20}, "use_dora": False, "modules_to_save": None, "bias": "none"}
    assert adapter_rank(adapter(tmp_path, json.dumps(given))) == 32


@pytest.mark.parametrize("nested", [False, True])
def test_heads_are_shared_evenly(nested: bool, tmp_path: Path) -> None:
    heads = {"num_attention_heads": 9}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": heads} if nested else heads))
    check_parallel(str(tmp_path), EngineConfig(gpus_per_actor=3), "elicit.model")
    check_parallel(str(tmp_path), EngineConfig(gpus_per_actor=2, arguments={"pipeline_parallel_size": 2}), "elicit.model")
    check_parallel("org/on-the-hub", EngineConfig(gpus_per_actor=2), "elicit.model")
    with pytest.raises(UserError, match=r"(?s)elicit\.model: its attention heads.*9 heads.*tensor_parallel_size 2"):
        check_parallel(str(tmp_path), EngineConfig(gpus_per_actor=2), "elicit.model")
