"""Samples of lm-evaluation-harness as result rows: of a stand-in for its output, and of the package where it is installed."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.evaluate import lm_eval as bridge
from ual_ray.evaluate import step
from ual_ray.evaluate.lm_eval import metric_name, result_rows, unpaired
from ual_ray.run.step import Place, Session
from ual_ray.stats.comparison import compare_models
from ual_ray.stats.metrics import measure, metric_of
from ual_ray.stats.results import read_results

MODEL = {"model": "ual", "model_digest": "m"}


def sample(number: int, kind: str, reply: str, **metrics: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": {"question": f"q{number}"},
        "target": f"#### {number}",
        "arguments": [(f"Q: q{number}", {"until": []})],
        "resps": [[f"so {reply}"]],
        "filtered_resps": [reply],
        "filter": kind,
        "metrics": list(metrics),
        "doc_hash": f"{number:064}",
        "prompt_hash": f"{number + 7:064}",
        "target_hash": f"{number + 9:064}",
        **metrics,
    }


def choice(number: int, right: bool) -> dict[str, Any]:
    lls = [[(-1.5, True)], [(-2.5, False)]]
    own = {"arguments": [("Q", " a"), ("Q", " b")], "resps": lls, "filtered_resps": [(-1.5, True), (-2.5, False)]}
    return sample(number, "none", "", acc=float(right), f1=(1, int(right))) | own


def output(shift: int = 0) -> dict[str, Any]:
    """What simple_evaluate returns: GSM8K with two filters, a group of two subtasks, and metrics that are no means."""
    right = [(number + shift) % 4 == 0 for number in range(8)]
    gsm8k = [sample(n, "strict-match", str(n), exact_match=float(right[n])) for n in range(8)]
    gsm8k += [sample(n, "flexible-extract", str(n), exact_match=np.float64(n % 2)) for n in range(8)]
    first, second = [choice(n, n % 2 == 0) for n in range(4)], [choice(n, True) for n in range(4)]
    follow = [sample(n, "none", "", prompt_level_strict_acc=n == 1, inst_level_strict_acc=[True, n == 1]) for n in range(2)]
    text = [sample(n, "none", "", bits_per_byte=(2.0, 3), perplexity=-1.0, chrf=0.5) for n in range(2)]
    return {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": float(np.mean(right)),
                "exact_match_stderr,strict-match": 0.1,
                "exact_match,flexible-extract": 0.5,
            },
            "mmlu": {"acc,none": 0.75},
            "mmlu_law": {"acc,none": 0.5, "f1,none": 0.6},
            "mmlu_art": {"acc,none": 1.0, "f1,none": 1.0},
            "ifeval": {"prompt_level_strict_acc,none": 0.5, "inst_level_strict_acc,none": 0.75},
            "text": {"bits_per_byte,none": 0.7, "perplexity,none": 2.718, "chrf,none": 0.5},
        },
        "group_subtasks": {"mmlu": ["mmlu_law", "mmlu_inner"], "mmlu_inner": ["mmlu_art"]},
        "higher_is_better": {"gsm8k": {"exact_match": True}, "text": {"chrf": True, "perplexity": False}},
        "versions": {"gsm8k": 3.0},
        "n-shot": {"gsm8k": 5},
        "samples": {"gsm8k": gsm8k, "mmlu_law": first, "mmlu_art": second, "ifeval": follow, "text": text},
    }


ASKED = ["gsm8k", "mmlu", "ifeval", "text"]


def table(results: dict[str, Any], **model: str) -> pa.Table:
    return pa.Table.from_pylist(list(result_rows(results, ASKED, MODEL | model)), schema=col.RESULTS)


def test_a_question_is_one_row_with_the_scores_of_all_filters() -> None:
    rows = [row for row in table(output()).to_pylist() if row["benchmark"] == "lm_eval.gsm8k"]
    assert len(rows) == 8
    assert dict(rows[1]["scores"]) == {"exact_match_strict": 0.0, "exact_match_flexible": 1.0}
    assert dict(rows[1]["extracted"]) == {"strict-match": "1", "flexible-extract": "1"}
    assert (rows[1]["prediction"], rows[1]["answer"], rows[1]["status"]) == ("so 1", "#### 1", "ok")
    assert rows[1]["messages"] == [{"role": "user", "content": "Q: q1", "extra": None}]
    assert (rows[1]["model"], rows[1]["model_digest"], rows[1]["source"]) == ("ual", "m", "gsm8k")


def test_the_means_of_the_rows_are_the_figures_of_the_harness() -> None:
    found = {(value.benchmark, value.metric): value.value for value in measure(table(output()))}
    assert found == {
        ("lm_eval.gsm8k", "exact_match_strict"): 0.25,
        ("lm_eval.gsm8k", "exact_match_flexible"): 0.5,
        ("lm_eval.mmlu", "accuracy"): 0.75,
        ("lm_eval.ifeval", "prompt_level_strict_acc"): 0.5,
        ("lm_eval.text", "chrf_higher_is_better"): 0.5,
    }


def test_a_group_is_one_benchmark_with_its_subtasks_as_sources() -> None:
    rows = [row for row in table(output()).to_pylist() if row["benchmark"] == "lm_eval.mmlu"]
    assert [row["source"] for row in rows] == ["mmlu_law"] * 4 + ["mmlu_art"] * 4
    assert len({row["id"] for row in rows}) == 8, "equal questions of different subtasks are different rows"
    alone = [row["benchmark"] for row in result_rows(output(), ["a_tag"], MODEL)]
    assert {*alone} == {f"lm_eval.{name}" for name in ("gsm8k", "mmlu_law", "mmlu_art", "ifeval", "text")}


@pytest.mark.parametrize("figures", [{"acc,none": 0.9}, {}], ids=["mean over tasks", "none"])
def test_a_group_without_a_figure_of_its_questions_stands_for_its_tasks(figures: dict[str, float]) -> None:
    results = output()
    results["results"]["mmlu"] = figures
    found = {(value.benchmark, value.metric): value.value for value in measure(table(results))}
    assert ("lm_eval.mmlu", "accuracy") not in found
    assert (found["lm_eval.mmlu_law", "accuracy"], found["lm_eval.mmlu_art", "accuracy"]) == (0.5, 1.0)
    assert ("mmlu accuracy" in unpaired(results, ASKED)) == bool(figures)


def test_a_group_whose_tasks_are_alike_is_there_as_group_and_as_tasks() -> None:
    results = output()
    for task in ("mmlu", "mmlu_law", "mmlu_art"):
        results["results"][task] = {"acc,none": 0.0}
        for one in results["samples"].get(task, ()):
            one["acc"] = 0.0
    found = {row["benchmark"] for row in result_rows(results, ["mmlu"], MODEL)}
    assert {"lm_eval.mmlu", "lm_eval.mmlu_law", "lm_eval.mmlu_art"} <= found


def test_a_task_that_is_asked_for_twice_is_one_benchmark() -> None:
    twice = output()
    twice["group_subtasks"]["mmlu"] = ["mmlu_law", "mmlu_inner", "mmlu_law"]
    ids = [row["id"] for row in result_rows(twice, [*ASKED, "mmlu"], MODEL)]
    assert len({*ids}) == len(ids) == 20


def test_a_figure_that_is_no_mean_over_questions_is_listed_and_not_compared() -> None:
    assert sorted(unpaired(output(), ASKED)) == [
        "ifeval inst_level_strict_acc",
        "mmlu_art f1",
        "mmlu_law f1",
        "text bits_per_byte",
        "text perplexity_lower_is_better",
    ]


def test_the_id_depends_on_the_question_and_how_it_is_asked_and_not_on_the_model() -> None:
    ids = table(output())["id"].to_pylist()
    assert table(output(1), model="sft", model_digest="other")["id"].to_pylist() == ids
    fewer = output()
    fewer["n-shot"] = {"gsm8k": 0}
    assert not {*ids[:8]} & {*table(fewer)["id"].to_pylist()[:8]}
    twice = output()
    for one in twice["samples"]["ifeval"]:
        one |= {"doc_hash": "same", "target_hash": "same"}
    found = table(twice)["id"].to_pylist()
    assert len({*found}) == len(found), "a question that a task asks twice is two rows"


def test_tasks_are_paired_by_question_and_corrected_like_benchmarks() -> None:
    models = {"sft": {seed: table(output(seed), model="sft") for seed in range(3)}}
    models["ual"] = {seed: table(output(seed + 1), model="ual") for seed in range(3)}
    entries = compare_models(models, {"sft": "sft", "ual": "ual"}, resamples=200).entries
    found = {(entry.benchmark, entry.metric): entry for entry in entries}
    strict = found["lm_eval.gsm8k", "exact_match_strict"]
    assert (strict.n, strict.seeds, strict.difference) == (8, 3, pytest.approx(0.0))
    assert found["lm_eval.mmlu", "accuracy"].n == 8
    assert all(entry.p_holm >= entry.p_value for entry in entries)


@pytest.mark.parametrize(("given", "direction"), [(True, "higher"), (False, "lower"), (None, None)])
def test_an_unknown_metric_tells_its_direction_in_its_name(given: bool | None, direction: str | None) -> None:
    results = {"higher_is_better": {"t": {"chrf": given}}}
    assert metric_of(metric_name(results, "t", "chrf,none")).direction == direction
    assert metric_name({}, "t", "acc,none") == "accuracy"
    own = {"higher_is_better": {"t": {"acc": given}}}
    assert metric_of(metric_name(own, "t", "acc,none")).direction == (direction or "higher")
    assert metric_name({}, "t", "acc,first") == "acc_first"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        found.append(options)
        return output()

    monkeypatch.setattr(bridge, "_library", lambda: SimpleNamespace(simple_evaluate=simple_evaluate))
    monkeypatch.setattr(bridge, "engine_options", lambda config: {})
    monkeypatch.setattr(bridge, "resolve_model", lambda name: name)
    monkeypatch.setattr(bridge, "model_digest", lambda config, model: "digest")
    monkeypatch.setattr(step.evaluation, "model_digest", lambda config, model: "digest")
    return found


def test_a_finished_step_is_not_run_again(tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, float] = {}
    measured: dict[str, tuple[Any, Any]] = {}
    sets: dict[str, tuple[str, int]] = {}

    def metrics(values: dict[str, float], model: Any = None, dataset: Any = None) -> None:
        logged.update(values)
        measured.update(dict.fromkeys(values, (model, dataset)))

    run = SimpleNamespace(
        metrics=metrics,
        artifact=lambda path: None,
        dataset=lambda name, _, digest, rows, __: sets.update({name: (digest, rows)}),
    )
    monkeypatch.setattr(Session, "tracked", lambda *_: nullcontext(run))
    shown = io.StringIO()
    session = Session(Config(), Console(file=shown, width=200), SimpleNamespace(uri="sqlite:///store"))  # type: ignore[arg-type]
    first = step.harness_step(session, "ual", ASKED, Place(tmp_path))
    again = step.harness_step(session, "ual", ASKED, Place(tmp_path))
    assert again.reused and again.folder == first.folder and len(calls) == 1
    assert calls[0]["log_samples"] is True and calls[0]["tasks"] == ASKED
    assert logged["lm_eval.ifeval.inst_level_strict_acc.overall"] == 0.75, "MLflow has the figures that are not compared too"
    assert sum(rows for _, rows in sets.values()) == 20
    accuracy, model = "lm_eval.mmlu.accuracy.overall", {"id": "digest", "name": "ual"}
    assert measured[accuracy] == (model, ("lm_eval.mmlu", sets["lm_eval.mmlu"][0])), "MLflow ranks models by it"
    assert measured[f"{accuracy}.n"] == (None, None)
    assert "20 questions kept as result rows; without a score per question, so not compared: mmlu_law f1" in shown.getvalue()
    assert "lm_eval.mmlu accuracy: 0.7500 (n = 0)" in shown.getvalue()
    step.harness_step(session, "ual", ["gsm8k"], Place(tmp_path))
    assert len(calls) == 2


def test_on_the_cluster_each_model_is_measured_in_a_task_of_its_own(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    asked: list[dict[str, Any]] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        return lambda work: SimpleNamespace(remote=work)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda result: result)
    monkeypatch.setattr(Session, "connect", lambda _: None)
    run = SimpleNamespace(metrics=lambda *_, **__: None, artifact=lambda _: None, dataset=lambda *_: None)
    monkeypatch.setattr(Session, "tracked", lambda *_: nullcontext(run))
    config = Config.model_validate({"engine": {"gpus_per_actor": 2, "cpus_per_actor": 3}})
    session = Session(config, Console(file=io.StringIO()), SimpleNamespace(uri="sqlite:///store"))  # type: ignore[arg-type]
    for model in ("base", "sft"):
        for _ in range(2):
            place = Place(tmp_path / model)
            done = step.harness_step(session, model, ASKED, place, model=f"models/{model}", on_cluster=True)
    assert [call["model_args"]["pretrained"] for call in calls] == ["models/base", "models/sft"], (
        "a finished one is not repeated"
    )
    assert asked == 2 * [{"num_cpus": 3, "num_gpus": 2, "max_calls": 1}]
    assert json.loads((done.folder / "figures.json").read_text())["name"] == "sft"


def test_what_is_left_in_the_folder(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    result = bridge.evaluate_with_harness(Config(), "ual", ASKED, tmp_path)
    rows = read_results(tmp_path)
    assert rows.schema.equals(col.RESULTS) and len(rows) == result["rows"] == 20
    assert {*rows["model_digest"].to_pylist()} == {"digest"}
    assert json.loads((tmp_path / "figures.json").read_text())["name"] == "ual"
    assert "samples" not in json.loads((tmp_path / "lm_eval.json").read_text())


def test_the_real_harness_gives_rows_whose_means_are_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="installed by those who use it (extra `harness`)")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lines = [json.dumps({"q": f"what is {n}", "choices": ["no", "yes"], "gold": n % 2}) for n in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    task = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
    }
    pick = {"task": "pick", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
    tell = {"task": "tell", "output_type": "generate_until", "doc_to_target": "yes"}
    tell |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
    (tmp_path / "pick.yaml").write_text(json.dumps(task | pick | {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}))
    (tmp_path / "tell.yaml").write_text(json.dumps(task | tell))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(model="dummy", tasks=["pick", "tell"], task_manager=manager, log_samples=True, bootstrap_iters=0)
    rows = pa.Table.from_pylist(list(result_rows(results, ["pick", "tell"], MODEL)), schema=col.RESULTS)
    figures = {(value.benchmark, value.metric, value.value) for value in bridge.metric_values(results)}
    assert len(rows) == 40 and unpaired(results, ["pick", "tell"]) == []
    assert {(value.benchmark, value.metric, value.value) for value in measure(rows)} == figures
    assert {name for _, name, _ in figures} == {"accuracy", "accuracy_normalised", "exact_match"}
