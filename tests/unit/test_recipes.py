"""Every recipe for training loads, and a dry run finds that it fits the machines it was written for.

Offline: of each model there is its config.json and the demo's tokenizer; the weights are an empty file that nothing reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from small_llama import NO_WEIGHTS

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.config.load import load
from ual_ray.train.estimate.dry_run import DryRun, Model, check_gpus, dry_run
from ual_ray.train.estimate.memory import Memory
from ual_ray.train.estimate.state import GPU_WORKER_HOST_BYTES

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SMOOTHED = pa.schema(
    [(col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE), (col.ALPHA, pa.float64())]
)

# As their makers publish them.
MODELS: dict[str, dict[str, Any]] = {
    "train_135m_demo": {
        **{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536},
        **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
        "max_position_embeddings": 8192,
    },
    "train_1b_lora": {
        **{"model_type": "olmo2", "vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 8192},
        **{"num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": False},
        "max_position_embeddings": 4096,
    },
    "train_30b_moe": {
        **{"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144},
        **{"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
        **{"decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False, "max_position_embeddings": 262144},
    },
    "train_7b_fsdp": {
        **{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944},
        **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
        "max_position_embeddings": 32768,
    },
    "train_70b_hsdp": {
        **{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568},
        **{"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": False},
        "max_position_embeddings": 32768,
    },
}
# Parameters as the makers state them, in billions, and the GPU that the recipe names.
STATED = {
    "train_135m_demo": (0.1345, None),
    "train_1b_lora": (1.485, "L4"),
    "train_7b_fsdp": (7.616, "H100"),
    "train_30b_moe": (30.532, "H100"),
    "train_70b_hsdp": (72.706, "H100"),
}
RECIPES = sorted(path.stem for path in CONFIGS.glob("train_*.yaml"))


@pytest.fixture(scope="session")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 400 rows of up to 600 words, with alpha: enough that the largest recipe fills its micro-batches."""
    path = tmp_path_factory.mktemp("rows") / "smoothed.parquet"
    chats = [
        [{"role": "user", "content": f"Say blue {n} times."}, {"role": "assistant", "content": "blue " * (1 + 7 * n % 600)}]
        for n in range(400)
    ]
    rows = [{col.ID: col.content_id(chat), col.SPLIT: col.TRAIN, col.MESSAGES: chat, col.ALPHA: 0.1} for chat in chats]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, SMOOTHED), path)
    return path


@pytest.fixture(scope="session")
def plan(smoothed: Path, chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DryRun]:
    """Dry-run a recipe, with changed settings, once, on a model directory that holds no weights."""

    @cache
    def run(recipe: str, *changes: str) -> DryRun:
        gpu = STATED[recipe][1]
        # The free memory of a machine that runs tests says nothing about the recipe: its speed and memory are not looked at.
        speed = [] if gpu else ["runtime.address=auto", "train.peak_tflops=0.1"]
        model = tmp_path_factory.mktemp("models") / recipe
        chat_tokenizer("chatml").save_pretrained(model)
        (model / "config.json").write_text(json.dumps(MODELS[recipe]))
        (model / "model.safetensors").write_bytes(NO_WEIGHTS)
        return dry_run(load(CONFIGS / f"{recipe}.yaml", [f"model={model}", *speed, *changes]), smoothed, gpu)

    return run


def test_there_is_a_recipe_for_each_size() -> None:
    assert set(RECIPES) == set(MODELS)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.slow
def test_a_recipe_fits_what_it_was_written_for(recipe: str, plan: Callable[..., DryRun]) -> None:
    found = plan(recipe)
    total = found.parameters.total - (found.parameters.trainable if found.config.train.lora.rank else 0)
    assert total / 1e9 == pytest.approx(STATED[recipe][0], rel=0.001)
    assert not [text for text in found.advice if "FIT" in text]
    assert found.memory.peak < (found.device.memory or 5e9)
    # One micro-batch per step, unless little is trained: in between, every rank holds all gradients.
    assert found.micro_batch.passes == 1 or found.config.train.lora.rank
    assert found.micro_batch.rows == found.config.train.micro_batch_size
    assert found.micro_batch.length > 0.95 * found.config.train.max_length
    assert found.steps > 0 and found.seconds > 0 and 0 <= found.padding_share < 1
    if found.config.train.gpus_per_worker:
        check_gpus(found.config)


@pytest.mark.slow
def test_what_the_70b_recipe_says_of_itself(plan: Callable[..., DryRun]) -> None:
    found = plan("train_70b_hsdp")
    model = Model(found.config)

    def peak(**changes: Any) -> tuple[Memory, float]:
        memory = model.memory(TrainConfig.model_validate(found.config.train.model_dump() | changes), found.micro_batch)
        return memory, (found.device.memory or 0) - memory.peak

    state = ("weights", "gradients", "optimizer")
    offloaded, _ = peak()
    assert not any(offloaded.parts[part] for part in state)
    # 16 bytes a parameter in host memory, some of them pinned in powers of two: 8 workers on a node of 2 TB, and no more than
    # the recipe says that there is.
    assert 145e9 + GPU_WORKER_HOST_BYTES < offloaded.host < 160e9
    limit = found.config.train.host_gib_per_worker
    assert limit is not None and offloaded.host < limit * 2**30 and 8 * limit < 0.9 * 2048
    replicas, room = peak(cpu_offload=False)
    assert room < 0 and sum(replicas.parts[part] for part in state) / 1e9 == pytest.approx(145, abs=1)
    alone, room = peak(cpu_offload=False, replicas=1)
    assert room < 0 and sum(alone.parts[part] for part in state) / 1e9 == pytest.approx(73, abs=1)
    _, room = peak(cpu_offload=False, lora={"rank": 64})
    assert room > 0


@pytest.mark.slow
def test_nodes_with_less_memory_are_refused(plan: Callable[..., DryRun]) -> None:
    found = plan("train_70b_hsdp", "train.host_gib_per_worker=120")
    (refused,) = [text for text in found.advice if "FIT" in text]
    assert "146.7 GiB of host memory per worker, there are 120.0 GiB" in refused
    # Of what would help, one replica over both nodes: half as much on each worker.
    other = plan("train_70b_hsdp", "train.replicas=1")
    assert f"train.replicas=1 ({other.memory.peak / 2**30:.1f} GiB, {other.memory.host / 2**30:.1f} GiB of host" in refused
    assert other.memory.host < 0.6 * found.memory.host


@pytest.mark.slow
def test_the_experts_of_the_mixture_are_trained_and_its_adapters_fit_one_node(plan: Callable[..., DryRun]) -> None:
    whole = plan("train_30b_moe")
    assert whole.parameters.trainable == whole.parameters.total
    adapters = plan("train_30b_moe", "train.lora.rank=32", "train.num_workers=8")
    assert not [text for text in adapters.advice if "FIT" in text]
    assert adapters.parameters.trainable < 0.01 * adapters.parameters.total
