"""One rank of the 7B recipe without the seven others, and the model of calibration, on the device at hand."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gpu_common import CUDA, DEVICE, GB, Report, peak_gb, reset_peak, sync
from gpu_training import TINY, make_files

from ual_ray import columns as col
from ual_ray.config import Config, TrainConfig
from ual_ray.train.attention import use_varlen
from ual_ray.train.batches import Batch, Sample, collate
from ual_ray.train.estimate.dry_run import MicroBatch, Model, micro_batch
from ual_ray.train.estimate.state import PROCESS_BYTES
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.optimizer_step import backward, make_optimizer
from ual_ray.train.sharding import checkpoint_activations, make_mesh, shard
from ual_ray.train.token_store import TokenStore
from ual_ray.train.weights import empty_trained_model

RANKS, SAMPLES = 8, 8
# Qwen2.5 7B, and the settings of jobs/configs/train_7b_fsdp.yaml.
SHAPE = {
    **{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944},
    **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "max_position_embeddings": 32768,
}
SETTINGS: dict[str, Any] = {"max_length": 4096, "micro_batch_size": 4, "global_batch_size": 32}
# Of the log-probabilities in bfloat16, over those on a CPU in float32; and of the estimated memory over the measured.
TOLERANCE, ESTIMATE = 0.01, 0.2


def check_ranks(report: Report, small: bool) -> None:
    """Add the parts 'one rank of eight' and 'calibration'."""
    shape = {"model_type": "llama", **TINY.model, "tie_word_embeddings": False} if small else SHAPE
    settings = TINY.packed if small else SETTINGS
    kinds: dict[bool | str, str] = {True: "checkpointed"}
    kinds |= {False: "not checkpointed", "selective": "products kept"} if small else {}
    for checkpointing, kind in kinds.items():
        report.case("one rank of eight", f"full, packed, bfloat16, {kind}", one_rank, shape, settings, checkpointing)
    report.case("calibration", "log-probabilities of labels", calibrated)


def one_rank(shape: dict[str, Any], settings: dict[str, Any], checkpointing: Any) -> dict[str, Any]:
    """Take two steps as rank 0 of eight in a group that sends nothing: memory, and the time without communication.

    What the others would send is whatever was in memory, so that losses mean nothing.
    """
    values: dict[str, Any] = {"num_workers": RANKS, "gpus_per_worker": int(CUDA), "dtype": "bfloat16", "packing": True}
    train = TrainConfig(**values, **settings, activation_checkpointing=checkpointing)
    micro = micro_batch(train, train.global_batch_size, train.max_length)
    dist.init_process_group("fake", rank=0, world_size=RANKS)
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(shape))
            (Path(folder) / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")  # no tensors
            reset_peak()
            model = empty_rank(folder, train)
            optimizer = make_optimizer(model, train)
            batches = [full_packs(micro, shape["vocab_size"]) for _ in range(micro.passes)]
            seconds = [step(model.train(), optimizer, batches) for _ in range(2)][-1]
            memory = Model(Config(model=folder, train=train)).memory(train, micro)
    finally:
        dist.destroy_process_group()
    peak, estimated = peak_gb(), (memory.peak - PROCESS_BYTES[DEVICE.type]) / GB
    positions = micro.rows * micro.length * micro.passes
    found = {"peak GB": peak, "estimated peak GB": estimated, "estimated moment": memory.moment}
    found |= {"seconds": seconds, "tokens/s without communication": positions / seconds}
    return found | ({"ok": abs(estimated / peak - 1) < ESTIMATE} if peak else {})


def empty_rank(folder: str, train: TrainConfig) -> SmoothedCausalLM:
    """Make the shards of rank 0, as training does, with zeros in place of weights."""
    causal_lm = empty_trained_model(folder, train.lora, train.dtype)
    if train.activation_checkpointing:
        checkpoint_activations(causal_lm, train.activation_checkpointing)
    model = SmoothedCausalLM(causal_lm, varlen=use_varlen(causal_lm, train, DEVICE))
    shard(model, make_mesh(train, DEVICE), train)
    model.to_empty(device=DEVICE)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    return model


def full_packs(micro: MicroBatch, vocabulary: int) -> Batch:
    """Make a micro-batch of full packs of random tokens."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocabulary, (micro.rows, SAMPLES, micro.length // SAMPLES), dtype=np.int32)
    return collate([[Sample("", sample, sample, 0.1) for sample in row] for row in ids], packed=True)


def step(model: SmoothedCausalLM, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> float:
    """Take one step, whatever it computes; return its seconds."""
    sync()
    started = time.perf_counter()
    backward(model, batches, 1, DEVICE)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    sync()
    return time.perf_counter() - started


def calibrated() -> dict[str, Any]:
    """Compare log-probabilities of the labels, as calibration computes them, with those on a CPU in float32."""
    if find_spec("scipy") is None:
        return {"skipped": "scipy is not installed"}
    with TemporaryDirectory() as folder:
        files = make_files(TINY, Path(folder) / "tiny")
        expected, found = (log_probabilities(files, *place) for place in (("float32", "cpu"), ("bfloat16", DEVICE.type)))
    error = abs(float(found.mean() / expected.mean()) - 1)
    return {"nll": [-float(expected.mean()), -float(found.mean())], "relative error": error, "ok": error < TOLERANCE}


def log_probabilities(files: Path, dtype: str, device: str) -> np.ndarray:
    """Compute those of all labels of the validation rows."""
    from ual_ray.calibrate import probed_model

    store = TokenStore.open(files / "tokens", col.VALIDATION)
    ids = [np.array(store[row].input_ids, dtype=np.int64) for row in range(len(store))]
    texts = [probed_model.Text(row, np.arange(1, len(row))) for row in ids]
    model, found = probed_model.ProbedModel(str(files / "model"), dtype, device), np.zeros(sum(len(row) - 1 for row in ids))
    for states in model.states(texts, lambda tokens: None):
        probed_model.log_probabilities(model.head, states, [1.0], [found])
    return found
