"""A training that is interrupted and resumed is the one that was not: to the last bit, or nearly so on other ranks.

Real FSDP workers over gloo, without Ray (the faults tests have it). Also: best, early stopping, what stays on disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from training_metrics import without_clock

from ual_ray.run.metrics_log import read_metrics
from ual_ray.train.checkpoint import newest_checkpoint

WORKER = Path(__file__).with_name("training_worker.py")
TRAIN = {
    "dtype": "float32",
    "epochs": 2,
    "global_batch_size": 4,
    "micro_batch_size": 1,
    "learning_rate": 1e-2,
    "validate_every": 4,
    "checkpoint_every": 3,
    "max_length": 64,
}
ROWS, STEPS = 32, 16
VARIANTS: dict[str, dict[str, Any]] = {
    "packing": {"packing": True, "global_batch_size": 2},
    "adapters": {"lora": {"rank": 4, "dropout": 0.2}, "learning_rate": 3e-2},
    "replicas": {"replicas": 2, "cpu_offload": True},
    "bfloat16": {"dtype": "bfloat16", "activation_checkpointing": True, "weight_decay": 0.1},
    "towards a copy": {"prior": "base", "dtype": "bfloat16", "packing": True, "global_batch_size": 2},
}

EARLY = {"export": "best", "early_stopping": 2, "validate_every": 1, "epochs": 20, "keep_checkpoints": 2}

# Its fixtures run many trainings in a row.
pytestmark = pytest.mark.timeout(3000)

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Write random rendered rows with alphas, and with uncertainties but for every fifth row."""
    from transformers import AutoConfig

    from ual_ray import columns as col

    size = AutoConfig.from_pretrained(tiny_model).vocab_size
    random = np.random.default_rng(0)
    rows = []
    for number in range(ROWS + 8):
        length = int(random.integers(5, 60))
        ids, prompt = random.integers(10, size, length).tolist(), length // 3
        rows.append(
            {
                "id": f"{number:03d}",
                "split": "train" if number < ROWS else "validation",
                "alpha": float(random.uniform(0, 0.3)),
                "uncertainty": float(random.uniform()) if number % 5 else None,
                "target_tokens": length - prompt,
                "input_ids": ids,
                "labels": [-100] * prompt + ids[prompt:],
            }
        )
    folder = tmp_path_factory.mktemp("tokens")
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
        writer.write_table(pa.Table.from_pylist(rows, col.TOKENS))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the folders of all runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def launch(root: Path, tokens: Path, tiny_model: Path) -> Launch:
    """Run trainings on so many ranks, each `(name, settings)`; those of one name share a folder."""

    def run(ranks: int, *tasks: tuple[str, dict[str, Any]], code: int = 0) -> None:
        full = []
        for name, task in tasks:
            (root / name).mkdir(exist_ok=True)
            paths = {"folder": str(root / name), "tokens": str(tokens), "model": str(tiny_model)}
            full.append({**paths, **task, "train": {**TRAIN, **task.get("train", {})}})
        done = run_ranks(ranks, WORKER, json.dumps(full), timeout=1500)
        assert done.returncode == code, done.stderr[-5000:]

    return run


@pytest.fixture(scope="module")
def interrupted(launch: Launch, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with nothing in the way, plainly and in every variant, and with interruptions; return a copy of all folders."""
    launch(
        2,
        ("plain", {}),
        *((name, {"train": train}) for name, train in VARIANTS.items()),
        *((f"{name} stopped", {"train": train, "stop_at": 5}) for name, train in VARIANTS.items()),
        ("elastic", {"stop_at": 5}),
        ("early", {"train": EARLY}),
        ("poisoned", {"poison_at": 5}),
        ("skipping", {"spoil_at": [5], "train": {"skip_non_finite": 1}}),
        ("twice in a row", {"spoil_at": [5, 6], "train": {"skip_non_finite": 1}}),
    )
    launch(2, ("killed", {"die_at": 8}), code=1)
    return shutil.copytree(root, tmp_path_factory.mktemp("copy") / "interrupted")


CONTINUED = {"adam_beta2": 0.9, "weight_decay": 0.01, "epochs": 1, "learning_rate": 1e-5}


@pytest.fixture(scope="module")
def resumed(launch: Launch, interrupted: Path, root: Path) -> Path:
    """Start everything that was interrupted again, and what had ended; return the folder of all."""
    launch(1, ("elastic", {"stop_at": 10}))
    launch(
        2,
        ("killed", {}),
        *((f"{name} stopped", {"train": train}) for name, train in VARIANTS.items()),
        ("elastic", {}),
        ("early", {"train": EARLY}),
        ("poisoned", {}),
        ("continued", {"first": str(newest_checkpoint(root / "plain")), "train": CONTINUED}),
    )
    return root


def lines(folder: Path) -> list[dict[str, float]]:
    """Read a run's metrics, without what depends on the clock."""
    return [without_clock(line) for line in read_metrics(folder / "metrics.jsonl")]


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outcome.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def checkpoints(folder: Path) -> dict[int, dict[str, Any]]:
    """Read what the whole checkpoints say about themselves, by step."""
    found = (json.loads(file.read_text()) for file in (folder / "checkpoints").glob("*/progress.json"))
    return {progress["step"]: progress for progress in found}


def checkpointed(folder: Path) -> dict[str, Any]:
    """Load the newest checkpoint, whole, on this process."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    newest = max((folder / "checkpoints").iterdir(), key=lambda path: path.name)
    state: dict[str, Any] = {}
    assert dcp
    _load_state_dict(state, FileSystemReader(newest), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return state


def flat(state: Any, name: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {key: value for part, inner in state.items() for key, value in flat(inner, f"{name}/{part}").items()}
    return {name: state}


def assert_same(one: Path, two: Path) -> None:
    """Compare metrics of every step, exported weights, optimizer state: all of them exactly."""
    assert lines(one) == lines(two)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(two)[name]), name
    expected, found = flat(checkpointed(one)), flat(checkpointed(two))
    assert expected.keys() == found.keys()
    assert any("exp_avg_sq" in name for name in expected)
    for name, value in expected.items():
        assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name


def test_a_rank_that_dies_costs_the_steps_since_the_checkpoint_and_nothing_else(interrupted: Path, resumed: Path) -> None:
    killed = interrupted / "killed"
    assert [line["step"] for line in lines(killed)] == list(range(8))
    assert max(checkpoints(killed)) == 6
    assert outcome(resumed / "killed")["ending"] == "finished"
    assert_same(interrupted / "plain", resumed / "killed")


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_is_uninterrupted_to_the_last_bit(name: str, interrupted: Path, resumed: Path) -> None:
    stopped = f"{name} stopped"
    assert outcome(interrupted / stopped) == {"ending": "stopped", "step": 5, "message": "", "exported": None}
    assert max(checkpoints(interrupted / stopped)) == 5
    assert_same(interrupted / name, resumed / stopped)


def test_two_ranks_then_one_then_two(interrupted: Path, resumed: Path) -> None:
    expected, found = lines(interrupted / "plain"), lines(resumed / "elastic")
    assert [line["step"] for line in found] == list(range(STEPS + 1))
    for one, two in zip(expected, found, strict=True):
        for name in ("nll", "smoothed_loss", "validation_nll"):
            assert two.get(name) == pytest.approx(one.get(name), abs=1e-5), (one["step"], name)
        assert two.get("tokens_seen") == one.get("tokens_seen")


def test_adapters_are_all_that_their_checkpoint_holds(interrupted: Path, tiny_model: Path) -> None:
    names = flat(checkpointed(interrupted / "adapters"))
    assert names
    assert all("lora_" in name for name in names if name.startswith("/model"))
    merged, base = weights(interrupted / "adapters"), load_file(tiny_model / "model.safetensors")
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert "model.embed_tokens.weight" not in changed


def test_the_metrics_of_a_step(interrupted: Path) -> None:
    first, last = lines(interrupted / "plain")[1], lines(interrupted / "plain")[-1]
    assert last["samples_seen"] == 2 * ROWS
    assert last["tokens_seen"] == sum(line["tokens"] for line in lines(interrupted / "plain")[1:])
    assert last["epoch"] == 1
    assert first["smoothed_loss"] == pytest.approx(first["nll"] + first["smoothing"], rel=1e-5)
    assert 0 <= first["padding_share"] < 1
    whole = read_metrics(interrupted / "plain" / "metrics.jsonl")[-1]
    assert whole["tokens_per_second"] > 0
    assert 0.05 < whole["lowest_rank_peak_memory_gib"] <= whole["peak_memory_gib"] < 10
    of_nodes = read_metrics(interrupted / "plain" / "metrics.jsonl")[1]
    for rank in range(2):
        assert 0 <= of_nodes[f"system/rank_{rank}/cpu_utilization_percentage"] <= 100
        assert 0 < of_nodes[f"system/rank_{rank}/system_memory_usage_percentage"] < 100
    assert 0 < whole["goodput"] <= 1
    assert any(name.startswith("nll/uncertainty_bin_") for name in first)


def test_the_newest_and_the_best_stay(interrupted: Path) -> None:
    plain = interrupted / "plain"
    validated = {line["step"]: line["validation_smoothed_loss"] for line in lines(plain)[1:] if "validation_nll" in line}
    lowest = min(validated, key=lambda step: validated[step])
    newest = checkpoints(plain)[STEPS]
    assert set(checkpoints(plain)) == {STEPS, lowest}
    assert (newest["best_step"], newest["best_loss"]) == (lowest, validated[lowest])


def test_the_best_leaves_and_training_ends_early(interrupted: Path, resumed: Path, tokens: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = interrupted / "early"
    validated = {line["step"]: line for line in lines(folder)[1:]}
    lowest = min(validated, key=lambda step: validated[step]["validation_smoothed_loss"])
    assert outcome(folder)["step"] == max(validated) == lowest + 2 < 160
    assert set(checkpoints(folder)) >= {lowest, lowest + 2}
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with pa.memory_map(str(tokens / "rows.arrow")) as file:
        rows = [row for row in pa.ipc.open_file(file).read_all().to_pylist() if row["split"] == "validation"]
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum").item()
            count += row["target_tokens"]
    assert total / count == pytest.approx(validated[lowest]["validation_nll"], rel=1e-5)
    assert f"after step {lowest}:" in (folder / "model" / "README.md").read_text()

    # Called again, it knows that it was over.
    assert outcome(resumed / "early")["step"] == lowest + 2


def test_a_loss_that_is_no_number_stops_before_the_update(interrupted: Path, resumed: Path) -> None:
    folder = interrupted / "poisoned"
    found = outcome(folder)
    assert (found["ending"], found["step"]) == ("non_finite", 4)
    ids = (folder / "non_finite_ids.txt").read_text().split()
    assert len(ids) == TRAIN["global_batch_size"]
    assert "step 5" in found["message"]
    assert [line["step"] for line in lines(folder)] == list(range(5))
    assert max(checkpoints(folder)) == 4
    assert not (folder / "model").exists()
    # The weights on disk are those before: the same command goes on, and ends as if nothing had been.
    assert_same(interrupted / "plain", resumed / "poisoned")


def test_updates_without_a_number_are_skipped_as_often_in_a_row_as_allowed(interrupted: Path) -> None:
    folder = interrupted / "skipping"
    assert outcome(folder)["ending"] == "finished"
    before, plain = lines(folder), lines(interrupted / "plain")
    assert before[:5] == plain[:5]
    assert "nll" not in before[5] and before[5]["skipped_update"] == 1
    assert before[5]["tokens_seen"] == plain[5]["tokens_seen"], "its rows are not trained on again"
    assert all(np.isfinite(line["nll"]) for line in before[6:]) and len(before) == len(plain)
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())
    assert len((folder / "non_finite_ids.txt").read_text().split()) == TRAIN["global_batch_size"]

    twice = interrupted / "twice in a row"
    assert (outcome(twice)["ending"], outcome(twice)["step"]) == ("non_finite", 5)
    assert len((twice / "non_finite_ids.txt").read_text().split()) == 2 * TRAIN["global_batch_size"]


def test_a_training_starts_from_anothers_checkpoint_with_settings_of_its_own(resumed: Path) -> None:
    plain, folder = lines(resumed / "plain"), resumed / "continued"
    first = lines(folder)[0]
    assert first["step"] == 0 and first["validation_nll"] == plain[-1]["validation_nll"] != plain[0]["validation_nll"]
    state, before = checkpointed(folder), flat(checkpointed(resumed / "plain"))
    assert {(group["betas"], group["weight_decay"]) for group in state["optimizer"]["param_groups"]} == {
        ((0.9, 0.9), 0.01),
        ((0.9, 0.9), 0.0),
    }
    steps = {name: float(value) for name, value in flat(state).items() if name.endswith("/step")}
    assert steps and all(value == float(before[name]) + lines(folder)[-1]["step"] for name, value in steps.items())


def test_checkpoints_of_other_rows_are_not_gone_on_with(launch: Launch, interrupted: Path) -> None:
    with pytest.raises(AssertionError, match="the checkpoints are of another training run"):
        launch(2, ("plain", {"train": {"global_batch_size": 8}}))
