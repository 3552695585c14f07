"""What integration tests share: a tiny model with a real tokenizer, rows, and settings for a pipeline in seconds."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Checkpoints, models and Ray's objects; measured at 5 GB.
FREE_GB = 8


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to start on a full disk: the tests would fail one by one, half an hour later, with words about something else."""
    folder = tempfile.gettempdir()
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < FREE_GB and not hasattr(session.config, "workerinput"):
        raise pytest.UsageError(f"{folder}: {free_gb:.1f} GB are free, the tests need {FREE_GB}; make room, or set TMPDIR")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Callable[[str], Any]) -> Path:
    """Save a random two-layer Llama with a trained tokenizer: everything about it is real but its wits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer = chat_tokenizer("chatml")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 alpaca rows, half of them with a gold number."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"instruction": f"What is {n} + {n}?", "input": "", "output": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
        if n % 2
        else {"instruction": f"Name colour number {n}.", "input": "", "output": f"Blue, with {n} drops of green."}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def small(tiny_model: Path, rows_file: Path) -> list[str]:
    """Overrides for a pipeline in seconds: the tiny model, one actor of the fake engine, two real FSDP workers, two steps."""
    return [
        f"data.path={rows_file}",
        f"model={tiny_model}",
        f"elicit.model={tiny_model}",
        "engine.kind=fake",
        "engine.max_actors=1",
        "train.max_steps=2",
        "train.global_batch_size=8",
        "train.dtype=float32",
    ]


@pytest.fixture(scope="session")
def one_arm(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings for one arm, one worker and no calibration, where what is tested is around the stages, not in them."""
    config = tmp_path_factory.mktemp("config") / "one_arm.yaml"
    config.write_text("arms: {sft: {map: none}}\nevaluate: {calibration: {enabled: false}}\n")
    return ["-c", str(config), *small, "train.num_workers=1"]


@pytest.fixture(scope="session")
def score(local_ray: None, tiny_model: Path) -> Any:
    """Score a few rows into a folder, in this process, with one actor."""
    from elicited import FAKE, Scored
    from rich.console import Console

    from ual_ray.config import TrackingConfig
    from ual_ray.config.load import load
    from ual_ray.elicit.step import elicit_step
    from ual_ray.run.step import Place, Session
    from ual_ray.tracking.tracker import Tracker

    def run(data: Path | str, out: Path, *overrides: str) -> Scored:
        models = [f"model={tiny_model}", f"elicit.model={tiny_model}"]
        config = load(None, [*FAKE, *models, "engine.max_actors=1", f"data.path={data}", *overrides])
        printed = io.StringIO()
        session = Session(config, Console(file=printed, width=1000), Tracker(TrackingConfig(), out))
        done = elicit_step(session, Place(out))
        return Scored(done.folder, done.metrics, printed.getvalue())

    return run
