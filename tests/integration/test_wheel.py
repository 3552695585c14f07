"""The quickstart as a user does it: the wheel, installed in a fresh environment, runs the smallest configuration.

Nothing is faked: real vLLM actors, the real model, real FSDP, a real MLflow store.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ual_ray import __version__

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jobs" / "configs" / "tiny.yaml"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, with the hatchling of this environment: without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True, timeout=300)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Install the wheel in a fresh environment that borrows its dependencies from this one; run its programs elsewhere."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # Its packages can be imported, but its own .pth files have no effect, such as that of an editable ual_ray.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, timeout=300)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}

    def run(program: str, *arguments: object, timeout: float = 900) -> str:
        command = [folder / "bin" / program, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def quickstart(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the smallest configuration once; return its output folder."""
    output = tmp_path_factory.mktemp("runs") / "tiny"
    run("ual", "run", "-c", CONFIG, f"output={output}")
    return output


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "ual_ray"
    kept = {f"ual_ray/{path.relative_to(package)}" for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {Path(name).suffix for name in kept} >= {".py", ".yaml", ".j2", ".css", ".jsonl", ".typed"}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == {*kept, "ual_ray/plan/rayjob.yaml"}
        assert archive.read("ual_ray/plan/rayjob.yaml") == (ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_bytes()


def test_the_package_is_that_of_the_wheel(run: Run) -> None:
    code = "import sys, ual_ray, importlib.metadata as m; print(ual_ray.__file__.startswith(sys.prefix), m.version('ual_ray'))"
    assert run("python", "-c", code).split() == ["True", __version__]


def test_the_run_ends_with_a_report(quickstart: Path) -> None:
    assert (quickstart / "report" / "report.md").is_file()


def test_scores_come_from_the_model(quickstart: Path) -> None:
    from ual_ray.parquet import read_table

    scored = read_table(next(quickstart.glob("elicit/*/scored"))).to_pylist()
    assert len(scored) >= 16
    assert all(row["status"] == "ok" and 0 < row["uncertainty"] < 1 for row in scored)
    assert len({row["uncertainty"] for row in scored}) == len(scored), "expected scores have no ties"
    assert all(math.isclose(row["uncertainty_nll"], 1 - math.exp(-row["raw_nll"])) for row in scored)


def test_training_lowers_the_validation_nll_of_both_arms(quickstart: Path) -> None:
    from ual_ray.run.metrics_log import read_metrics

    for arm in ("sft", "ual"):
        lines = read_metrics(next(quickstart.glob(f"arms/{arm}/train/*/metrics.jsonl")))
        held_out = [line["validation_nll"] for line in lines if "validation_nll" in line]
        assert held_out[-1] < held_out[0]


def test_the_trained_model_answers_through_transformers(quickstart: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = next(quickstart.glob("arms/ual/train/*/model"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    # Two steps are enough for a model of this size to answer in French where France is asked about.
    chat = [{"role": "user", "content": "What is 2 + 2?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=16, do_sample=False)[0][prompt["input_ids"].shape[1] :])
    assert "4" in answer


def test_the_trained_model_answered_through_vllm(quickstart: Path) -> None:
    from ual_ray.parquet import read_table

    rows = read_table(next(quickstart.glob("arms/ual/evaluate/*/results"))).to_pylist()
    assert all(row["status"] == "ok" for row in rows)
    by_benchmark = {name: [row for row in rows if row["benchmark"] == name] for name in ("held_out", "gsm8k")}
    assert by_benchmark["held_out"] and all(row["nll_sum"] > 0 for row in by_benchmark["held_out"])
    assert by_benchmark["gsm8k"] and all(row["prediction"] and 0 < row["confidence"] <= 1 for row in by_benchmark["gsm8k"])
