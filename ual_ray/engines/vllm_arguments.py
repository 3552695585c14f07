"""What the configuration is in vLLM's terms: its arguments and environment, and the checks that need no vLLM."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ual_ray.config import EngineConfig
from ual_ray.config.files import read_object
from ual_ray.engines.compat_vllm import EXTENSION
from ual_ray.engines.requests import EngineSpec
from ual_ray.errors import UserError

# Of the memory of the part of a GPU that an engine has.
GPU_MEMORY_SHARE = 0.9
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# As many prompt tokens as vLLM itself reads in one step on a CPU.
TOKENS_AT_A_TIME = 4096


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Convert the configuration to vLLM's arguments; `engine.arguments` overrides them."""
    config = spec.config
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "disable_log_stats": True,
        "enforce_eager": config.gpus_per_actor == 0,
        "tensor_parallel_size": config.tensor_parallel,
        "trust_remote_code": spec.trust_remote_code,
        "worker_extension_cls": EXTENSION,
    }
    if config.gpus_per_actor == 0:
        # On a CPU, vLLM 0.32 cannot undo a random draw, which it does for every seeded prompt that it reads in chunks.
        options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(TOKENS_AT_A_TIME, config.max_model_len)}
    elif config.gpus_per_actor < 1:
        options["gpu_memory_utilization"] = GPU_MEMORY_SHARE * config.gpus_per_actor
    if spec.adapter is not None:
        options |= {"enable_lora": True, "max_lora_rank": adapter_rank(spec.adapter)}
    return options


def adapter_rank(adapter: str) -> int:
    """Read the rank of a LoRA adapter, rounded up to one that vLLM has kernels for.

    Raises UserError for an invalid adapter, and for one with what vLLM does not apply.
    """
    file = Path(adapter).expanduser() / "adapter_config.json"
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        rank = max([int(given["r"]), *map(int, (given.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            "elicit.adapter is not a LoRA adapter",
            got=f"{file}: {error}",
            expected="a directory written by peft's save_pretrained",
        ) from error
    unknown = [name for name in ("use_dora", "modules_to_save") if given.get(name)]
    unknown += ["bias"] if given.get("bias", "none") != "none" else []
    if unknown or rank > LORA_RANKS[-1]:
        raise UserError(
            "elicit.adapter has what vLLM does not apply",
            got=f"{file}: {', '.join(unknown) or f'rank {rank}'}",
            expected=f"rank {LORA_RANKS[-1]} or less; no DoRA, no biases and no modules_to_save",
            fix="merge the adapter into its model (peft's merge_and_unload), and give that as elicit.model",
        )
    return next(size for size in LORA_RANKS if size >= rank)


def check_parallel(model: str, config: EngineConfig, key: str) -> None:
    """Raise UserError where tensor parallelism does not divide the attention heads of a local model; `key` names the model."""
    file = Path(model).expanduser() / "config.json"
    given = read_object(file) or {}
    text = given.get("text_config")
    heads = (text if isinstance(text, dict) and text else given).get("num_attention_heads")
    if isinstance(heads, int) and heads % config.tensor_parallel:
        raise UserError(
            f"{key}: its attention heads cannot be shared by so many GPUs",
            got=f"{heads} heads of {model}, engine.tensor_parallel_size {config.tensor_parallel}",
            expected=f"a divisor of {heads}",
            fix="set engine.gpus_per_actor, or engine.arguments={pipeline_parallel_size: N} to share the layers instead",
        )


def set_environment(config: EngineConfig) -> None:
    """Set the environment that vLLM and torch read at import; on a CPU, one process, its own threads, no compilation."""
    for name, value in _environment(config):
        os.environ.setdefault(name, value)
    if config.gpus_per_actor == 0:
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(config.cpus_per_actor)))


def _environment(config: EngineConfig) -> Iterator[tuple[str, str]]:
    yield "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
    yield "VLLM_NO_USAGE_STATS", "1"
    if config.gpus_per_actor == 0:
        # Ray places the actors: binding threads to cores would put every actor on the same ones.
        yield "VLLM_CPU_OMP_THREADS_BIND", "nobind"
        yield "VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gb)
        yield "TORCH_COMPILE_DISABLE", "1"
