"""`ual train --dry-run` as a user calls it, and a real run held against what it said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FSDP = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: 'no'
num_processes: 2
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
  fsdp_activation_checkpointing: true
"""


@pytest.fixture(scope="module")
def smoothed(ual: Any, small: list[str], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Score with the fake engine, and smooth."""
    folder = tmp_path_factory.mktemp("stages")
    settings = [item for item in small if item.split("=")[0] not in ("data.path", "model")]
    done = ual("elicit", rows_file, *settings, "--out", folder / "scored")
    assert done.code == 0, done.output
    done = ual("smooth", folder / "scored", "--out", folder / "smoothed")
    assert done.code == 0, done.output
    return folder / "smoothed"


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, " ".join(text.split()))
    assert found, f"{pattern!r} is not in: {text}"
    return float(found[1].replace(",", ""))


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_real_run_takes_what_was_said(
    ual: Any, ual_process: Any, tiny_model: Path, smoothed: Path, tmp_path: Path, packing: str
) -> None:
    out = tmp_path / "trained"
    keys = ["global_batch_size=6", "micro_batch_size=3", "max_length=128", "epochs=2", "dtype=float32", f"packing={packing}"]
    overrides = [f"model={tiny_model}", *(f"train.{key}" for key in keys)]
    said = ual("train", smoothed, *overrides, "--out", out, "--dry-run")
    assert said.code == 0, said.output
    assert not out.exists()
    # Its peak of memory is that of new processes, not of some that did something else before.
    done = ual_process("train", smoothed, *overrides, "--out", out)
    assert done.code == 0, done.output
    (metrics,) = out.rglob("metrics.jsonl")
    steps = [line for line in map(json.loads, metrics.read_text().splitlines()) if line["step"]]
    assert number(r"([\d,]+) steps of", said.output) == len(steps)
    tokens = sum(line["tokens"] for line in steps) / len(steps)
    assert number(r"steps of ([\d,]+) tokens", said.output) == pytest.approx(tokens, abs=1)
    targets = sum(line["target_tokens"] for line in steps) / len(steps)
    assert number(r"tokens, ([\d,]+) of them", said.output) == pytest.approx(targets, abs=1)
    # A model this small is nothing beside the process that holds it.
    peak = max(line["peak_memory_gib"] for line in steps)
    assert number(r"memory ([\d.]+) GiB", said.output) == pytest.approx(peak, rel=0.5)


def test_the_settings_of_accelerate_count(ual: Any, tiny_model: Path, smoothed: Path, tmp_path: Path) -> None:
    file = tmp_path / "fsdp.yaml"
    file.write_text(FSDP)
    given = [f"model={tiny_model}", f"train.accelerate_config={file}", "--dry-run"]
    said = ual("train", smoothed, *given)
    assert said.code == 0, said.output
    assert "float32" in said.output and "without activation checkpointing" in said.output
    file.write_text(FSDP.replace("fsdp_version: 2", "fsdp_version: 2\n  fsdp_tea_break: true"))
    refused = ual("train", smoothed, *given)
    assert refused.code == 2 and "fsdp_tea_break" in refused.output


def test_what_cannot_be_planned_is_a_message(ual: Any, tiny_model: Path, smoothed: Path) -> None:
    for arguments, says in (
        (["train.gpus_per_worker=1", "--gpu", "abacus"], "the GPU is not known"),
        (["train.gpus_per_worker=2"], "exactly one GPU"),
        (["train.max_length=16", "train.overlong=drop"], "no training row is left"),
    ):
        done = ual("train", smoothed, f"model={tiny_model}", "--dry-run", *arguments)
        assert done.code == 2 and says in done.output, done.output
        assert "Traceback" not in done.output
