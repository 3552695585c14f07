"""The quickstart in a tiny setting, with nothing faked: real vLLM actors, the real model, real FSDP, a real MLflow store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

CONFIG = "jobs/configs/tiny.yaml"


@pytest.fixture(scope="module")
def quickstart(ual: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run it once."""
    output = tmp_path_factory.mktemp("runs") / "tiny"
    done = ual("run", CONFIG, f"output={output}", timeout=900)
    assert done.code == 0, done.output
    return output, done.output


def test_scores_come_from_the_model(quickstart: tuple[Path, str]) -> None:
    from ual_ray.parquet import read_table

    output, _ = quickstart
    scored = read_table(next(output.glob("elicit/*/scored"))).to_pylist()
    assert len(scored) >= 16
    assert all(row["status"] == "ok" and 0 < row["uncertainty"] < 1 for row in scored)
    assert len({row["uncertainty"] for row in scored}) == len(scored), "expected scores have no ties"
    assert all(math.isclose(row["uncertainty_nll"], 1 - math.exp(-row["raw_nll"])) for row in scored)


def test_training_lowers_the_validation_nll_of_both_arms(quickstart: tuple[Path, str]) -> None:
    from ual_ray.train.metrics import read_metrics

    output, _ = quickstart
    for arm in ("sft", "ual"):
        lines = read_metrics(next(output.glob(f"arms/{arm}/train/*/metrics.jsonl")))
        held_out = [line["validation_nll"] for line in lines if "validation_nll" in line]
        assert held_out[-1] < held_out[0]


def test_the_trained_model_answers_through_transformers(quickstart: tuple[Path, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, _ = quickstart
    folder = next(output.glob("arms/ual/train/*/model"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=16, do_sample=False)[0][prompt["input_ids"].shape[1] :])
    assert "Paris" in answer


def test_the_trained_model_answered_through_vllm(quickstart: tuple[Path, str]) -> None:
    from ual_ray.parquet import read_table

    output, _ = quickstart
    rows = read_table(next(output.glob("arms/ual/evaluate/*/results"))).to_pylist()
    assert all(row["status"] == "ok" for row in rows)
    by_benchmark = {name: [row for row in rows if row["benchmark"] == name] for name in ("held_out", "gsm8k")}
    assert by_benchmark["held_out"] and all(row["nll_sum"] > 0 for row in by_benchmark["held_out"])
    assert by_benchmark["gsm8k"] and all(row["prediction"] and 0 < row["confidence"] <= 1 for row in by_benchmark["gsm8k"])
