"""FSDP2 for real, over gloo: 1 x 8 = 8 x 1 = 2 ranks x 4, against plain torch, and a checkpoint that changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ual_ray.rendering import load_renderer
from ual_ray.train.batches import Sample

WORKER = Path(__file__).with_name("fsdp_worker.py")
ALPHAS = [0.0, 0.05, 0.1, 0.2, 0.3, 0.0, 0.15, 0.4]

Runs = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def samples(tiny_model: Path) -> list[Sample]:
    """Render eight rows of different lengths, each with its own alpha."""
    renderer = load_renderer(str(tiny_model))
    result = []
    for number, alpha in enumerate(ALPHAS):
        chat = [
            {"role": "user", "content": "Name a colour. " * (number + 1)},
            {"role": "assistant", "content": "Blue, and green. " * (9 - number)},
        ]
        rendered = renderer.conversation(chat)  # type: ignore[arg-type]
        result.append(Sample(str(number), rendered.input_ids, rendered.labels, alpha))
    return result


@pytest.fixture(scope="module")
def runs(tiny_model: Path, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run every layout once."""
    folder = tmp_path_factory.mktemp("fsdp")
    file = folder / "samples.pt"
    torch.save([vars(sample) for sample in samples], file)
    results = {}
    layouts = {"1x8": (1, 8, "float32"), "8x1": (1, 1, "float32"), "2x4": (2, 4, "float32"), "bf16": (2, 2, "bfloat16")}
    for name, (world_size, micro_batch_size, dtype) in layouts.items():
        out = folder / f"{name}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        command += [str(WORKER), str(tiny_model), str(file), str(micro_batch_size), str(out), dtype]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        results[name] = torch.load(out) | {"model": out.with_suffix(".model")}
    return results


@pytest.fixture(scope="module")
def plain(tiny_model: Path, samples: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Compute loss and gradients the obvious way: full logits, torch's own label smoothing, one row at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    total = torch.zeros(())
    for sample in samples:
        logits = model(torch.tensor([sample.input_ids])).logits[0, :-1]
        labels = torch.tensor(sample.labels[1:])
        total = total + torch.nn.functional.cross_entropy(
            logits, labels, label_smoothing=sample.alpha, reduction="sum", ignore_index=-100
        )
    loss = total / sum(sample.target_tokens for sample in samples)
    loss.backward()
    return loss.item(), {f"model.{name}": parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layout", ["1x8", "8x1", "2x4"])
def test_every_layout_gives_the_loss_and_the_gradients_of_plain_torch(
    layout: str, runs: Runs, plain: tuple[float, dict[str, torch.Tensor]]
) -> None:
    loss, gradients = plain
    assert runs[layout]["metrics"]["smoothed_loss"] == pytest.approx(loss, rel=1e-5)
    assert set(runs[layout]["gradients"]) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(runs[layout]["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_two_ranks_step_as_one_does(runs: Runs) -> None:
    for one, two in zip(runs["1x8"]["steps"], runs["2x4"]["steps"], strict=True):
        assert two["smoothed_loss"] == pytest.approx(one["smoothed_loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_bfloat16_is_near_float32(runs: Runs) -> None:
    assert runs["bf16"]["metrics"]["nll"] == pytest.approx(runs["1x8"]["metrics"]["nll"], rel=0.02)


@pytest.mark.parametrize("layout", ["1x8", "2x4"])
def test_a_step_from_a_loaded_checkpoint_is_the_same_to_the_last_bit(layout: str, runs: Runs) -> None:
    first, second, again = runs[layout]["steps"]
    assert second["smoothed_loss"] < first["smoothed_loss"]
    for key in ("smoothed_loss", "nll", "grad_norm"):
        assert again[key] == second[key], key


def test_the_export_is_an_ordinary_model_directory(runs: Runs, tiny_model: Path, samples: list[Sample]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = runs["2x4"]["model"]
    trained = AutoModelForCausalLM.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids, labels = torch.tensor([samples[0].input_ids]), torch.tensor([samples[0].labels])
    assert trained(ids, labels=labels).loss < before(ids, labels=labels).loss
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert not list(folder.glob("*.bin"))
    size = {path: (path / "model.safetensors").stat().st_size for path in (folder, tiny_model)}
    assert size[folder] == pytest.approx(size[tiny_model], rel=0.01), "tied weights are written once"
