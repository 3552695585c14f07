"""FSDP2 for real, over gloo: every layout has the loss and the gradients of plain torch, and no rank ever holds the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fsdp_layouts import ADAPTED, FULL, LAYOUTS, LOW, TOWARDS_BASE, TOWARDS_COPY, WITHOUT_COMPILER
from safetensors.torch import load_file

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.models.chat import load_renderer
from ual_ray.parquet import write_table
from ual_ray.run.metrics_log import read_metrics
from ual_ray.train.batches import Sample
from ual_ray.train.optimizer_step import make_optimizer
from ual_ray.train.tokenize import Render

WORKER = Path(__file__).with_name("fsdp_worker.py")
ALPHAS = [0.0, 0.05, 0.1, 0.2, 0.3, 0.0, 0.15, 0.4]
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 4096}
MIXTURE = {"chat": 1.0, "math": 3.0}
UNEVEN = ("uneven on 1", "uneven on 2")
ALPHA_OF = {"chat": 0.125, "math": 0.25}

Runs = dict[str, dict[str, Any]]
Plain = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def samples(tiny_model: Path) -> list[Sample]:
    """Render eight rows of different lengths, each with its own alpha, some in an uncertainty bin."""
    renderer = load_renderer(str(tiny_model))
    result = []
    for number, alpha in enumerate(ALPHAS):
        chat = [
            {"role": "user", "content": "Name a colour. " * (number + 1)},
            {"role": "assistant", "content": "Blue, and green. " * (9 - number)},
        ]
        rendered = renderer.conversation(chat)  # type: ignore[arg-type]
        ids, labels = (np.asarray(values, dtype=np.int32) for values in (rendered.input_ids, rendered.labels))
        result.append(Sample(str(number), ids, labels, alpha, number % 3 - 1))
    return result


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model whose weights stand out beside everything else a process holds: 290 MB, in six files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large")
    LlamaForCausalLM(LlamaConfig(**LARGE, num_attention_heads=8)).save_pretrained(folder, max_shard_size="50MB")
    return folder


@pytest.fixture(scope="module")
def mixed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render nine rows of one source and three of another, each with its source's alpha, and replies of one length."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = []
    for number in range(12):
        chat = [{"role": "user", "content": f"Name colour {number}."}, {"role": "assistant", "content": "Blue, and green."}]
        source = "math" if number % 4 == 0 else "chat"
        row = {col.ID: str(number), col.SPLIT: col.TRAIN, col.MESSAGES: chat, col.ALPHA: ALPHA_OF[source]}
        rows.append(row | {col.SOURCE: source})
    schema = [(col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE), (col.ALPHA, pa.float64())]
    Render(str(tiny_model), TrainConfig(), False, folder)(pa.Table.from_pylist(rows, pa.schema(schema)))
    write_table(pa.table({name: [row[name] for row in rows] for name in (col.ID, col.SOURCE)}), folder / "sources.parquet")
    return folder


@pytest.fixture(scope="module")
def runs(
    tiny_model: Path, large_model: Path, samples: list[Sample], mixed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    """Run every layout once: all of one world size in one start of the workers."""
    folder = tmp_path_factory.mktemp("fsdp")
    torch.save([vars(sample) for sample in samples], folder / "samples.pt")
    memory = {"name": "memory", "world": 2, "model": str(large_model), "train": {"dtype": "float32"}}
    train = {"mixture": MIXTURE, "epochs": 2, "global_batch_size": 4, "micro_batch_size": 1, "dtype": "float32"}
    mixture = {"name": "mixture", "world": 2, "model": str(tiny_model), "tokens": str(mixed), "stop_after": 2, "train": train}
    mixture |= WITHOUT_COMPILER
    # Twelve rows, five to a step: in a step's last micro-batch, and in an epoch's last step, one rank has fewer rows.
    train = {"epochs": 2, "global_batch_size": 5, "micro_batch_size": 1, "dtype": "float32", "skip_non_finite": 1}
    own = {"model": str(tiny_model), "tokens": str(mixed), "train": train | {"learning_rate": 1e-2}}
    uneven = [{"name": f"uneven on {world}", "world": world, **own} for world in (1, 2)]
    layouts = [*({**item, "model": str(tiny_model)} for item in LAYOUTS), mixture, memory, *uneven]
    (folder / "layouts.json").write_text(json.dumps(layouts))
    # So that what is freed leaves the process, and its memory is what it holds.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    environment.pop("TORCH_COMPILE_DISABLE", None)  # a vLLM engine in the process of the tests sets it
    for world in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        command += [str(WORKER), str(folder), str(world)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-5000:]
    return {
        item["name"]: torch.load(folder / f"{item['name']}.pt") | {"model": folder / f"{item['name']}.model"}
        for item in LAYOUTS
    } | {name: torch.load(folder / f"{name}.pt") | {"folder": folder} for name in ("memory", "mixture", *UNEVEN)}


def plain_loss(model: Any, samples: list[Sample], base: Any = None) -> torch.Tensor:
    """Compute the loss the obvious way: full logits, torch's own label smoothing, one row at a time.

    base: in place of the uniform distribution, its prediction is what labels are smoothed towards.
    """
    total = torch.zeros(())
    for sample in samples:
        ids, labels = torch.as_tensor(sample.input_ids).long()[None], torch.as_tensor(sample.labels[1:]).long()
        logits, own = model(ids).logits[0, :-1], {"label_smoothing": sample.alpha} if base is None else {}
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none", **own)
        if base is not None:
            with torch.no_grad():
                towards = base(ids).logits[0, :-1].softmax(-1)
            other = torch.nn.functional.cross_entropy(logits, towards, reduction="none")
            loss = torch.where(labels >= 0, (1 - sample.alpha) * loss + sample.alpha * other, 0.0)
        total = total + loss.sum()
    return total / sum(int((sample.labels[1:] != -100).sum()) for sample in samples)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, samples: list[Sample]) -> Plain:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    loss = plain_loss(model, samples)
    loss.backward()
    return loss.item(), {f"model.{name}": parameter.grad for name, parameter in model.named_parameters()}


def with_adapters(tiny_model: Path, samples: list[Sample], runs: Runs, *, towards_base: bool = False) -> Plain:
    """Compute loss and gradients with plain peft, its adapters set to the values they have in our runs."""
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) if towards_base else None
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    adapted = peft.get_peft_model(model, settings)
    values = {name.removeprefix("model."): value for name, value in runs["adapters"]["parameters"].items()}
    missing, unexpected = adapted.get_base_model().load_state_dict(values, strict=False)
    assert not unexpected
    assert all("lm_head" in name for name in missing)
    loss = plain_loss(adapted, samples, base)
    loss.backward()
    trained = {n: p.grad for n, p in adapted.get_base_model().named_parameters() if p.requires_grad}
    return loss.item(), {f"model.{name}": gradient for name, gradient in trained.items()}


@pytest.fixture(scope="module")
def plain_adapted(tiny_model: Path, samples: list[Sample], runs: Runs) -> Plain:
    return with_adapters(tiny_model, samples, runs)


def same(found: dict[str, Any], expected: Plain) -> None:
    loss, gradients = expected
    assert found["metrics"]["smoothed_loss"] == pytest.approx(loss, rel=1e-5)
    assert set(found["gradients"]) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", FULL)
def test_every_layout_gives_the_loss_and_the_gradients_of_plain_torch(name: str, runs: Runs, plain: Plain) -> None:
    same(runs[name], plain)


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_have_the_loss_and_the_gradients_of_plain_peft(name: str, runs: Runs, plain_adapted: Plain) -> None:
    same(runs[name], plain_adapted)


def test_smoothing_towards_the_base_is_that_of_two_models_on_any_ranks(
    runs: Runs, samples: list[Sample], tiny_model: Path, plain_adapted: Plain
) -> None:
    expected = with_adapters(tiny_model, samples, runs, towards_base=True)
    assert abs(expected[0] - plain_adapted[0]) > 5e-5 * plain_adapted[0], "or uniform smoothing would pass `same`"
    for name in TOWARDS_BASE:
        same(runs[name], expected)
    for name in TOWARDS_BASE[1:]:
        for one, other in zip(runs[TOWARDS_BASE[0]]["steps"], runs[name]["steps"], strict=True):
            assert other["smoothed_loss"] == pytest.approx(one["smoothed_loss"], rel=1e-5)


def test_full_fine_tuning_is_smoothed_towards_a_copy_that_stays_as_it_was_on_any_ranks(
    runs: Runs, samples: list[Sample], tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model, base = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2))
    first = plain_loss(model, samples, base)
    first.backward()
    gradients = {f"model.{name}": parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    make_optimizer(model, TrainConfig(learning_rate=1e-2)).step()
    with torch.no_grad():
        second, towards_itself = (plain_loss(model, samples, one).item() for one in (base, model))
    assert abs(second - towards_itself) > 1e-4 * second, "or a copy that is trained too would pass"
    for name in TOWARDS_COPY:
        same(runs[name], (first.item(), gradients))
        losses = [step["smoothed_loss"] for step in runs[name]["steps"]]
        assert losses == pytest.approx([first.item(), second], rel=1e-5), name


@pytest.mark.parametrize("name", ADAPTED)
def test_only_adapters_are_trained_and_they_start_the_same_on_any_ranks(name: str, runs: Runs) -> None:
    assert all("lora_" in parameter for parameter in runs[name]["gradients"])
    for parameter, value in runs["adapters"]["initial"].items():
        assert torch.equal(runs[name]["initial"][parameter], value), parameter
        assert bool(value.any()) != ("lora_B" in parameter), parameter


def test_a_base_in_bfloat16_is_near_plain_peft_on_any_ranks(runs: Runs, plain_adapted: Plain) -> None:
    one, two = (runs[name] for name in LOW)
    same(two, (one["metrics"]["smoothed_loss"], one["gradients"]))
    for run in (one, two):
        dtypes = {(value.dtype, "lora_" in name) for name, value in run["initial"].items()}
        assert dtypes == {(torch.bfloat16, False), (torch.float32, True)}
        assert {value.dtype for value in run["gradients"].values()} == {torch.float32}
        assert run["metrics"]["smoothed_loss"] == pytest.approx(plain_adapted[0], rel=4e-3)
        distance = torch.stack([(run["gradients"][name] - value).norm() for name, value in plain_adapted[1].items()]).norm()
        assert distance < 0.02 * torch.stack([value.norm() for value in plain_adapted[1].values()]).norm()


def test_two_ranks_step_as_one_does(runs: Runs) -> None:
    for name in FULL:
        for one, other in zip(runs["1x8"]["steps"], runs[name]["steps"], strict=True):
            assert other["smoothed_loss"] == pytest.approx(one["smoothed_loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    first, second = runs["2x4"]["steps"]
    assert second["smoothed_loss"] < first["smoothed_loss"]


def test_bfloat16_is_near_float32(runs: Runs) -> None:
    assert runs["bf16"]["metrics"]["nll"] == pytest.approx(runs["1x8"]["metrics"]["nll"], rel=0.02)


@pytest.mark.parametrize("name", ["1x8", "2x4", "replicas", "bf16"])
def test_what_is_loaded_is_what_was_saved_to_the_last_bit(name: str, runs: Runs, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    saved = {f"model.{parameter}": value for parameter, value in model.named_parameters()}
    assert set(runs[name]["initial"]) == set(saved)
    assert all(torch.equal(runs[name]["initial"][parameter], value) for parameter, value in saved.items())


def test_replicas_hold_the_whole_model_and_shards_do_not(runs: Runs) -> None:
    assert {tuple(placement) for placement in runs["2x4"]["placements"].values()} == {("S(0)",)}
    assert {tuple(placement) for placement in runs["replicas"]["placements"].values()} == {("R", "S(0)")}
    assert set(runs["adapters on 2"]["placements"]) == set(runs["adapters on 2"]["parameters"])


@pytest.mark.parametrize("name", ["1x8", "2x4", "replicas", "bf16", *ADAPTED])
def test_the_export_gives_what_the_trained_model_gives(name: str, runs: Runs, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = runs[name]["model"]
    exported = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = exported(torch.arange(1, 9)[None]).logits
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if name == "bf16" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, runs[name]["logits"].float(), **tolerance)
    before = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert {n: p.shape for n, p in exported.named_parameters()} == {n: p.shape for n, p in before.named_parameters()}
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert (folder / "README.md").read_text() == "# a card"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == exported.config.eos_token_id
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == sorted(file.name for file in folder.glob("*.safetensors"))
    assert "lm_head.weight" not in index["weight_map"], "tied weights are written once"
    assert not list(folder.glob("*.bin"))
    assert not folder.with_name(folder.name + ".part").exists()


def test_no_rank_ever_holds_the_whole_model(runs: Runs) -> None:
    memory = runs["memory"]
    assert memory["shard"] == pytest.approx(memory["model"] / 2, rel=0.01)
    # The rows that this rank reads are pages of the file until they are first written to: they count in any case.
    assert memory["growth"] + memory["shard"] < 0.8 * memory["model"], memory


def test_replicas_meet_once_per_step_however_many_micro_batches_it_has(runs: Runs) -> None:
    rounds = {item["name"]: item["rounds"] for item in LAYOUTS}
    assert (rounds["replicas"], rounds["replicas, one micro-batch"]) == (2, 1)
    many, one = runs["replicas"]["all-reduces"], runs["replicas, one micro-batch"]["all-reduces"]
    assert many == one > 0
    assert runs["2x4"]["all-reduces"] == 0


def test_sources_get_their_shares_of_the_targets_over_all_ranks_also_when_resumed(runs: Runs) -> None:
    whole, halves = runs["mixture"]["whole"], runs["mixture"]["halves"]
    assert (whole["endings"], halves["endings"]) == (["finished"], ["stopped", "finished"])
    assert halves["seen"] == whole["seen"]
    assert len(whole["seen"]) == 2 and whole["seen"][0] != whole["seen"][1], "each rank has rows of its own"
    for epoch in (slice(0, 3), slice(3, 6)):
        steps = [step for rank in whole["seen"] for step in rank[epoch]]
        tokens = {source: sum(step.get(alpha, 0) for step in steps) for source, alpha in ALPHA_OF.items()}
        assert tokens["math"] == 3 * tokens["chat"] > 0, tokens
    weights = [load_file(runs["mixture"]["folder"] / name / "model" / "model.safetensors") for name in ("whole", "halves")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("name", ["whole", "adapters"])
def test_uneven_ranks_train_as_one_does_also_past_an_update_that_one_of_them_spoils(name: str, runs: Runs) -> None:
    assert [runs[layout][name] for layout in UNEVEN] == ["finished", "finished"]
    one, two = (runs[layout]["folder"] / f"{layout} {name}" for layout in UNEVEN)
    for before, after in zip(read_metrics(one / "metrics.jsonl"), read_metrics(two / "metrics.jsonl"), strict=True):
        assert ("skipped_update" in before) == ("skipped_update" in after) == (before["step"] == 2)
        names = ("smoothed_loss", "grad_norm", "target_tokens", "learning_rate")
        assert [after.get(key, 0.0) for key in names] == pytest.approx([before.get(key, 0.0) for key in names], rel=1e-4)
    found, expected = (load_file(out / "model" / "model.safetensors") for out in (two, one))
    for weight, value in expected.items():
        torch.testing.assert_close(found[weight], value, rtol=1e-4, atol=1e-5, msg=weight)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("compiled on 2", "2x4"),
        ("compiled on 2, checkpointed, packed", "checkpointed on 2, packed"),
        ("adapters on 2, compiled, packed", "adapters on 2, checkpointed, packed"),
    ],
)
def test_compiled_layers_step_as_others_do_and_are_exported_by_the_same_names(name: str, other: str, runs: Runs) -> None:
    assert runs[name]["graphs"] > 0 == runs[other]["graphs"]
    for one, another in zip(runs[name]["steps"], runs[other]["steps"], strict=True):
        assert one["smoothed_loss"] == pytest.approx(another["smoothed_loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(another["grad_norm"], rel=1e-4)
    found, expected = (
        {n: v for f in sorted(runs[x]["model"].glob("*.safetensors")) for n, v in load_file(f).items()} for x in (name, other)
    )
    assert found.keys() == expected.keys()
    for weight, value in expected.items():
        torch.testing.assert_close(found[weight], value, rtol=1e-4, atol=1e-4, msg=weight)


def test_a_training_is_resumed_compiled_from_a_checkpoint_that_was_not(runs: Runs) -> None:
    compiled, whole = runs["mixture"]["compiled"], runs["mixture"]["whole"]
    assert (compiled["ending"], compiled["graphs"] > 0) == ("finished", True)
    assert compiled["seen"] == [steps[2:] for steps in whole["seen"]], "the rest of the steps"
    found, expected = (
        load_file(runs["mixture"]["folder"] / name / "model" / "model.safetensors") for name in ("compiled half", "whole")
    )
    assert found.keys() == expected.keys()
    for weight, value in expected.items():
        torch.testing.assert_close(found[weight], value, rtol=1e-4, atol=1e-5, msg=weight)
