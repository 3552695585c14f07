"""GSM8K against lm-evaluation-harness with its vLLM backend: the same rows, model, prompts and sampling, on the same cores.

    python bench/evaluate_vs_lm_eval.py --data ../shared/data/gsm8k_test_1000.jsonl [--rows 200]

Each side runs in a process of its own and is timed end to end, start-up included. The harness gets a local copy of its gsm8k
task (its own filters and its own exact match) whose prompt is the question alone under the model's chat template, as ours is.
Compared row by row: the answers, and what either side reads out of its own answers, strict and flexible; and, apart from how
the engines round, what our extraction reads out of the harness's answers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from alone import run_side
from common import report

from ual_ray import columns as col
from ual_ray.benchmarks.gsm8k import FLEXIBLE, STRICT
from ual_ray.data.answers import extract_flexible, extract_strict

TASK = "gsm8k_local"
STRICT_FILTER, FLEXIBLE_FILTER = "strict-match", "flexible-extract"
IGNORED = [",", r"\$", r"(?s).*#### ", r"\.$"]
FALLBACK = "[invalid]"
MAX_MODEL_LEN = 1024
EXTRACT: dict[str, Callable[[str], str | None]] = {STRICT: extract_strict, FLEXIBLE: extract_flexible}
Answers = dict[str, dict[str, Any]]


def task_of(rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The harness's gsm8k task, on a file of ours and with the question alone as the prompt."""

    def regex(pattern: str, **more: Any) -> list[dict[str, Any]]:
        return [{"function": "regex", "regex_pattern": pattern, **more}, {"function": "take_first"}]

    return {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": options.max_tokens},
        "filter_list": [
            {"name": STRICT_FILTER, "filter": regex(r"#### (\-?[0-9\.\,]+)")},
            {"name": FLEXIBLE_FILTER, "filter": regex("(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)},
        ],
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            | {"ignore_case": True, "ignore_punctuation": False, "regexes_to_ignore": IGNORED}
        ],
        "metadata": {"version": 3.0},
    }


def run_peer(rows: Path, out: Path, options: argparse.Namespace) -> None:
    """The harness as its documentation shows it, one engine with as many threads as there are cores."""
    os.environ |= {"OMP_NUM_THREADS": str(options.cores), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out.with_name("datasets"))}
    from lm_eval.tasks import TaskManager

    from ual_ray.evaluate.lm_eval import run_lm_eval

    tasks = out.with_name("tasks")
    tasks.mkdir()
    (tasks / f"{TASK}.yaml").write_text(yaml.safe_dump(task_of(rows, options)))
    engine = {"dtype": options.dtype, "max_model_len": MAX_MODEL_LEN, "enforce_eager": True, "disable_log_stats": True}
    settings = {"model": "vllm", "model_args": engine, "task_manager": TaskManager(include_path=str(tasks))}
    results, figures = run_lm_eval("demo", [TASK], out.with_name("results"), settings | {"log_samples": True})
    answers: Answers = {}
    names = {STRICT_FILTER: STRICT, FLEXIBLE_FILTER: FLEXIBLE}
    for sample in results["samples"][TASK]:
        answer = answers.setdefault(sample["doc"]["question"], {"text": sample["resps"][0][0]})
        answer[names[sample["filter"]]] = normalised(sample["filtered_resps"][0])
        answer[f"right {names[sample['filter']]}"] = float(sample["exact_match"])
    out.write_text(json.dumps({"answers": answers, "figures": [figure.as_dict() for figure in figures]}))


def normalised(text: str) -> str | None:
    """What the harness's exact match makes of an extracted answer; None where it found none."""
    if text == FALLBACK:
        return None
    for pattern in IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


def run_ours(rows: Path, out: Path, options: argparse.Namespace) -> None:
    """Our evaluation: questions, one-thread actors, results, figures."""
    from ual_ray.config import BenchmarkConfig, Config, EngineConfig, EvaluateConfig, RuntimeConfig
    from ual_ray.evaluate.questions import write_questions
    from ual_ray.evaluate.stage import evaluate
    from ual_ray.run.cluster import ray_cluster
    from ual_ray.run.progress import meter
    from ual_ray.run.terminal import make_console
    from ual_ray.stats.results import read_results

    gsm8k = BenchmarkConfig(kind="gsm8k", path=str(rows), max_new_tokens=options.max_tokens)
    engine = EngineConfig(min_actors=options.cores, max_actors=options.cores, max_model_len=MAX_MODEL_LEN)
    config = Config(engine=engine, evaluate=EvaluateConfig(benchmarks={"gsm8k": gsm8k}, dtype=options.dtype))
    folder = out.with_name("ours-run")
    folder.mkdir()
    with ray_cluster(RuntimeConfig()), meter(make_console(), "ours", options.rows, "rows") as shown:
        write_questions(config.evaluate.benchmarks, None, folder)
        done = evaluate(config, "base", "demo", folder / col.QUESTIONS_FILE, folder / "store", folder, shown)
    answers: Answers = {}
    for row in read_results(folder).to_pylist():
        extracted, scores = dict(row["extracted"]), dict(row["scores"])
        right = {f"right {name}": scores[f"exact_match_{name}"] for name in EXTRACT}
        answers[row["messages"][-1]["content"]] = {"text": row["prediction"], **extracted, **right}
    out.write_text(json.dumps({"answers": answers, "figures": done["figures"]}))


def measure(side: str, rows: Path, folder: Path, options: argparse.Namespace) -> tuple[float, Answers, list[dict[str, Any]]]:
    """Run one side in a process of its own; return its seconds, its answers by question, and its figures."""
    out = folder / f"{side}.json"
    same = {name: getattr(options, name) for name in ("rows", "dtype", "max_tokens", "cores")}
    seconds = run_side(__file__, side, folder / f"{side}.log", input=rows, out=out, **same)
    found = json.loads(out.read_text())
    # Either side may trim the question, and the harness trims the answer.
    answers = {question.strip(): answer | {"text": answer["text"].strip()} for question, answer in found["answers"].items()}
    if len(answers) != options.rows:
        raise SystemExit(f"{side} answered {len(answers)} of {options.rows} rows")
    return seconds, answers, found["figures"]


def compare(ours: Answers, peer: Answers) -> tuple[dict[str, tuple[float, str]], list[dict[str, Any]]]:
    """Shares of rows that agree, and every row that does not, with both sides' reading."""
    assert ours.keys() == peer.keys(), "both sides answer the same questions"
    rows = len(ours)
    shares = {"equal answers": (sum(ours[one]["text"] == peer[one]["text"] for one in ours) / rows, "1, or near: rounding")}
    different = []
    for name, extract in EXTRACT.items():
        own = sum(ours[one][name] == peer[one][name] for one in ours)
        shares[f"equal {name} extraction, own answers"] = (own / rows, "1")
        odd = [one for one in peer if extract(peer[one]["text"]) != peer[one][name]]
        shares[f"equal {name} extraction, the same answer"] = (1 - len(odd) / rows, "1")
        right = sum(ours[one][f"right {name}"] == peer[one][f"right {name}"] for one in ours)
        shares[f"equal {name} score"] = (right / rows, "1")
        for one in dict.fromkeys([*odd, *(one for one in ours if ours[one][name] != peer[one][name])]):
            tail = {"ours": ours[one]["text"][-120:], "theirs": peer[one]["text"][-120:]}
            read = {"we read": ours[one][name], "they read": peer[one][name], "we read of theirs": extract(peer[one]["text"])}
            different.append({"question": one[:80], "extraction": name, **read, **tail})
    return shares, different


def main() -> None:
    """Measure both sides, and compare their answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="gsm8k_test_1000.jsonl")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "peer"))
    parser.add_argument("--input", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side:
        {"ours": run_ours, "peer": run_peer}[options.side](options.input, options.out, options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(Path(options.data).read_text().splitlines(keepends=True)[: options.rows]))
        seconds: dict[str, float] = {}
        answers: dict[str, Answers] = {}
        measurements: list[Mapping[str, Any]] = []
        for side in ("peer", "ours"):
            seconds[side], answers[side], figures = measure(side, rows, folder, options)
            exact = {
                figure["metric"]: f"{figure['value']:.3f} ± {figure['standard_error'] or 0:.3f}"
                for figure in sorted(figures, key=lambda one: one["metric"])
            }
            measurements.append({"": side, "seconds": seconds[side], "rows/s": options.rows / seconds[side], **exact})
            print(json.dumps(measurements[-1]), flush=True)
    shares, different = compare(answers["ours"], answers["peer"])
    ratios = {"rows/s, end to end": (seconds["peer"] / seconds["ours"], ">= 1.0"), **shares}
    settings = {"rows": options.rows, "dtype": options.dtype, "max_tokens": options.max_tokens, "cores": options.cores}
    report(
        "evaluate_vs_lm_eval",
        measurements,
        ratios,
        **settings,
        lm_eval=importlib.metadata.version("lm_eval"),
        different=different,
    )
    for one in different:
        print(json.dumps(one, ensure_ascii=False))


if __name__ == "__main__":
    main()
