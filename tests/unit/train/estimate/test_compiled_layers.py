"""What the dry run knows of compiled layers: they keep less than it counts, and the compiler takes memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_llama import settings, write

from ual_ray.config import TrainConfig
from ual_ray.train.estimate.dry_run import dry_run
from ual_ray.train.estimate.forward_pass import forward_pass
from ual_ray.train.estimate.memory import count_parameters, estimate
from ual_ray.train.estimate.state import COMPILER_BYTES, least_bytes
from ual_ray.train.estimate.text import lines
from ual_ray.train.model import compile_layers
from ual_ray.train.weights import empty_model


@pytest.mark.slow
def test_compiled_layers_keep_less_than_is_counted(model: str) -> None:
    causal_lm: Any = empty_model(model)
    counted = forward_pass(causal_lm, "bfloat16", 2, 64, packed=False)
    causal_lm.to_empty(device="cpu").to(torch.bfloat16).train()
    weights = {tensor.untyped_storage().data_ptr() for tensor in causal_lm.state_dict().values()}
    # What is kept of a graph, without the C++ compiler.
    torch._dynamo.reset()
    torch.compiler.set_default_backend("aot_eager_decomp_partition")
    try:
        compile_layers(causal_lm.get_decoder())
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            causal_lm.get_decoder()(input_ids=torch.zeros(2, 64, dtype=torch.long), use_cache=False)
    finally:
        torch.compiler.set_default_backend(None)  # type: ignore[arg-type]
        torch._dynamo.reset()
    real = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)
    assert 0.5 * counted.kept < real < 0.9 * counted.kept


@pytest.mark.slow
def test_a_compiler_takes_host_memory_of_every_worker(model: str) -> None:
    causal_lm = empty_model(model)
    parameters, forward = count_parameters(causal_lm, 2), forward_pass(causal_lm, "float32", 2, 64, packed=False)
    for gpus in (0, 1):
        plain, compiled = (
            estimate(parameters, forward, TrainConfig(compile=on, gpus_per_worker=gpus, dtype="float32"), 128, 1)
            for on in (False, True)
        )
        more = {name: size - plain.parts[name] for name, size in compiled.parts.items() if size != plain.parts[name]}
        assert more == ({} if gpus else {"process": COMPILER_BYTES})
        assert compiled.host - plain.host == (COMPILER_BYTES if gpus else 0)
    before, after = (least_bytes(1000, TrainConfig(compile=on, num_workers=3, dtype="float32")) for on in (False, True))
    assert after - before == 3 * COMPILER_BYTES


@pytest.mark.slow
def test_what_compiling_changes_is_stated(model: str, tmp_path: Path) -> None:
    rows = write(tmp_path / "smoothed.parquet", [20] * 40)
    texts = [dict(lines(dry_run(settings(model, f"train.compile={on}"), rows))) for on in ("false", "true")]
    assert "compile" not in texts[0] and "those of layers that are not compiled" in texts[1]["compile"]
