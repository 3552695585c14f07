"""Confidence in answers: scored as they were asked, against the model's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe_jobs import Families, job_of

from ual_ray import columns as col
from ual_ray.calibrate.answers import _confidences, render_answer
from ual_ray.calibrate.stage import probe
from ual_ray.config import EvaluateConfig
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer
from ual_ray.parquet import read_table, write_rows

BENCHMARKS = {
    "held_out": {"kind": "held_out"},
    "gsm8k": {"kind": "gsm8k"},
    "shots": {"kind": "gsm8k", "shots": 5},
    "arc": {"kind": "multiple_choice"},
}


def results_of(model: Path, folder: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Result rows whose confidences are measured here, one at a time."""
    question = [{"role": "user", "content": "What is 1 + 1?"}]
    common = {"source": "s", "status": "ok", "messages": question, "model": "m", "answer": "2", "benchmark_version": 1}
    flexible = "exact_match_flexible"
    found = [
        common | {"id": "a", "benchmark": "gsm8k", "prediction": "Blue 2", "scores": [(flexible, 1.0)], "generated_tokens": 99},
        common | {"id": "b", "benchmark": "gsm8k", "prediction": "Green 3", "scores": [(flexible, 0.0)], "generated_tokens": 3},
        common | {"id": "c", "benchmark": "gsm8k", "prediction": "Blue", "scores": [(flexible, None)]},
        common | {"id": "d", "benchmark": "gsm8k", "prediction": "Blue", "scores": [(flexible, 1.0)], "status": "quarantined"},
        common | {"id": "e", "benchmark": "shots", "prediction": "Blue 2", "scores": [(flexible, 1.0)], "generated_tokens": 99},
        common | {"id": "f", "benchmark": "held_out", "nll_sum": 3.0, "target_tokens": 4, "scores": []},
        common
        | {
            **{"id": "g", "benchmark": "arc", "choices": ["Blue", "Green is a colour", "A"], "prediction": "Green is a colour"},
            **{"answer": "1", "scores": [("accuracy", 1.0)]},
        },
    ]
    folder.mkdir()
    write_rows(found, col.RESULTS, folder / "results.parquet")
    return found


def log_probabilities(
    model: Path, tokenizer: Any, messages: Any, temperature: float, most: int | None = None, *, content_only: bool = False
) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rendered = ChatRenderer(tokenizer).conversation(messages, last_reply_only=True, content_only=content_only)
    with torch.no_grad():
        logits = causal_lm(torch.tensor([rendered.input_ids])).logits[0].double()
    targets = [place for place, label in enumerate(rendered.labels) if label != IGNORE_INDEX][:most]
    return np.array([torch.log_softmax(logits[at - 1] / temperature, -1)[rendered.labels[at]].item() for at in targets])


@pytest.mark.slow
def test_answers_are_scored_as_they_were_asked(model_of: Families, rows: Path, tmp_path: Path, chat_tokenizer: Any) -> None:
    model, tokenizer = model_of("llama"), chat_tokenizer("chatml")
    found = {row["id"]: row for row in results_of(model, tmp_path / "results", tokenizer)}
    job = job_of(model, rows, tmp_path / "out", tmp_path / "results", benchmarks=BENCHMARKS)
    figures = probe(job)
    temperature = figures["temperature"]
    answers = {row["id"]: row for row in read_table(tmp_path / "out" / "answers.parquet").to_pylist()}
    # With its worked examples the question of e is longer than this model takes.
    assert sorted(answers) == ["a", "b", "g"]
    assert [answers[name]["correct"] for name in "abg"] == [True, False, True]

    def reply(name: str, text: str) -> list[dict[str, str]]:
        return [*found[name]["messages"], {"role": "assistant", "content": text}]

    for column, scale in (("confidence", 1.0), ("probed_confidence", 1.0), ("scaled_confidence", temperature)):
        whole = log_probabilities(model, tokenizer, reply("a", "Blue 2"), scale)
        assert answers["a"][column] == pytest.approx(np.exp(whole.mean()), rel=1e-4)
        cut_off = log_probabilities(model, tokenizer, reply("b", "Green 3"), scale, most=3)
        assert answers["b"][column] == pytest.approx(np.exp(cut_off.mean()), rel=1e-4)
        choices = found["g"]["choices"]
        replies = [reply("g", choice) for choice in choices]
        sums = np.array([log_probabilities(model, tokenizer, one, scale, content_only=True).sum() for one in replies])
        assert answers["g"][column] == pytest.approx(np.exp(sums - np.logaddexp.reduce(sums))[1], rel=1e-4)
    assert figures["answer"]["gsm8k"]["n"] == 2
    assert figures["answer"]["gsm8k"]["raw"]["accuracy"] == 0.5
    assert figures["answer"]["gsm8k"]["probe_difference"] == 0
    assert set(figures["answer"]) == {"gsm8k", "arc"}


def test_worked_examples_are_before_the_question(chat_tokenizer: Any) -> None:
    from ual_ray.benchmarks import make_benchmarks

    settings = EvaluateConfig.model_validate({"benchmarks": BENCHMARKS})
    tokenizer = chat_tokenizer("chatml")
    renderer = ChatRenderer(tokenizer)
    row = {
        **{"messages": [{"role": "user", "content": "What is 1 + 1?"}], "source": "s", "answer": "2", "choices": None},
        **{"reference": None, "prediction": "Blue 2", "generated_tokens": None},
    }
    (few,) = render_answer(make_benchmarks(settings.benchmarks)["shots"], renderer, row)
    (none,) = render_answer(make_benchmarks(settings.benchmarks)["gsm8k"], renderer, row)
    assert len(few.input_ids) > 3 * len(none.input_ids)
    spoken = [[label for label in each.labels if label != IGNORE_INDEX] for each in (few, none)]
    assert spoken[0] == spoken[1] == [*renderer.encode("Blue 2"), tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.slow
def test_an_engines_confidence_is_the_raw_one(model_of: Families, rows: Path, tmp_path: Path, chat_tokenizer: Any) -> None:
    model = model_of("llama")
    results = results_of(model, tmp_path / "results", chat_tokenizer("chatml"))
    for row in results:
        row["confidence"] = 0.25
    write_rows(results, col.RESULTS, tmp_path / "results" / "results.parquet")
    figures = probe(job_of(model, rows, tmp_path / "out", tmp_path / "results", benchmarks=BENCHMARKS))
    raw = figures["answer"]["gsm8k"]["raw"]
    assert raw["confidence"] == 0.25
    assert raw["brier"] == pytest.approx((0.75**2 + 0.25**2) / 2)
    assert figures["answer"]["gsm8k"]["probe_difference"] > 0


def test_a_choice_keeps_its_name_at_another_temperature() -> None:
    row = {"choices": ["a", "b"], "prediction": "b"}
    cold, hot = _confidences(row, [np.array([-9.0, -1.0]), np.array([-2.0, -3.0])], 1)
    assert cold == pytest.approx(1 / (1 + np.exp(-8)))
    assert hot == pytest.approx(1 / (1 + np.exp(1)))
