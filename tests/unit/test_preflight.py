"""What is refused before anything expensive starts: data, models, settings, memory, ports."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ual_ray import preflight
from ual_ray.config import Config, DataConfig, TrainConfig, registry
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.preflight import (
    check,
    check_benchmarks,
    check_compilers,
    check_data,
    check_elicitor,
    check_judged,
    check_memory,
    check_port,
    check_train,
    check_validated,
)

ALL = {"elicit", "train", "evaluate"}
WORKER_GB = 600_000_000 / 2**30


@pytest.fixture
def large(tmp_path: Path) -> Config:
    """Name a model of 2**28 parameters, which is 1 GB of float32 weights, without writing them."""
    import json
    import struct

    header = {"w": {"dtype": "F32", "shape": [2**14, 2**14], "data_offsets": [0, 2**30]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return load(
        None,
        [f"model={tmp_path}", f"elicit.model={tmp_path}", "engine.max_actors=2", "train.num_workers=2", "engine.dtype=float32"],
    )


def with_keys(config: Config, **sections: dict[str, Any]) -> Config:
    return Config.model_validate(
        config.model_dump() | {name: getattr(config, name).model_dump() | values for name, values in sections.items()}
    )


WORKERS_GB = 2 * WORKER_GB


@pytest.mark.parametrize(
    ("sections", "stage", "needed", "says"),
    [
        # 2**28 parameters: 4 GB of weights, gradients and moments, 3 GB of the checkpoint's copy, and two workers.
        ({}, "train", 7 + WORKERS_GB, "8.1 GB needed .*8.1 GB free"),
        # Weights, cache and a gigabyte per actor.
        ({}, "elicit", 6, "engine.max_actors"),
        ({"judge": {"model": "MODEL", "dtype": "bfloat16"}}, "judge", 5, "5.0 GB needed .*5.0 GB free"),
        # Frozen weights are held in float32 or bfloat16; where the model decides it, half is what is needed at least.
        ({"train": {"lora": {"rank": 8, "base_dtype": "float32"}}}, "train", 1 + WORKERS_GB, ""),
        ({"train": {"lora": {"rank": 8, "base_dtype": "bfloat16"}}}, "train", 0.5 + WORKERS_GB, ""),
        ({"train": {"lora": {"rank": 8, "base_dtype": "auto"}}}, "train", 0.5 + WORKERS_GB, ""),
        ({"train": {"replicas": 2}}, "train", 14 + WORKERS_GB, ""),
        # A frozen copy of the weights, that it smooths towards.
        ({"train": {"prior": "base", "dtype": "float32"}}, "train", 8 + WORKERS_GB, ""),
        ({"train": {"prior": "base", "dtype": "bfloat16"}}, "train", 7.5 + WORKERS_GB, ""),
        ({"train": {"prior": "base", "lora": {"rank": 8, "base_dtype": "float32"}}}, "train", 1 + WORKERS_GB, ""),
        # A server elicits and judges, but the arms are asked here.
        ({"engine": {"kind": "openai"}, "elicit": {"estimators": ["p_true"], "uncertainty": "p_true"}}, "evaluate", 6, ""),
    ],
)
def test_a_stage_needs_room_for_what_it_holds(
    sections: dict[str, dict[str, Any]], stage: Any, needed: float, says: str, large: Config
) -> None:
    config = with_keys(large, **json.loads(json.dumps(sections).replace("MODEL", large.model)))
    stages = {"train", "evaluate"} if stage == "evaluate" else {stage}
    if stage == "evaluate":
        config = with_keys(config, train={"gpus_per_worker": 1})
    check_memory(config, needed + 0.01, stages)
    with pytest.raises(UserError, match=f"{stage} does not fit(?s:.*){says}"):
        check_memory(config, needed - 0.01, stages)


def test_the_arm_that_needs_the_most_decides_where_arms_are_trained(large: Config) -> None:
    own = ["engine.gpus_per_actor=1", "train.dtype=float32", "arms.towards.map=constant", "arms.towards.prior=base"]
    config = load(None, [f"model={large.model}", *own])
    check_memory(config, 7 + WORKERS_GB + 0.01, {"train"})
    check_memory(config, 8 + WORKERS_GB + 0.01, {"elicit", "train"})
    with pytest.raises(UserError, match="train does not fit"):
        check_memory(config, 8 + WORKERS_GB - 0.01, {"elicit", "train"})


def test_what_a_server_does_needs_no_room_here(large: Config) -> None:
    served = with_keys(large, engine={"kind": "openai"}, elicit={"estimators": ["p_true"], "uncertainty": "p_true"})
    check_memory(served, 0.0, {"elicit", "judge"})
    check_memory(served, 0.0, {"evaluate"})
    check_memory(large, 0.0, {"judge"})


def test_gpus_and_stages_that_are_not_run_are_not_judged(large: Config) -> None:
    check_memory(large, 0.1, set())
    gpu = load(None, [f"model={large.model}", "engine.gpus_per_actor=1", "train.gpus_per_worker=1"])
    check_memory(gpu, 0.1, ALL)


def test_engines_on_gpus_need_a_compiler_here(large: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM starts its kernels by Triton, which compiles with C and Python's headers."""
    monkeypatch.setenv("CC", "no-such-compiler")
    gpus = with_keys(large, engine={"gpus_per_actor": 1})
    with pytest.raises(UserError, match=r"vLLM \(engine.gpus_per_actor=1\) cannot compile.*(?s:.*)no-such-compiler"):
        check_compilers(gpus, {"evaluate"})
    for config, stages in ((gpus, {"train"}), (large, ALL), (with_keys(gpus, runtime={"address": "auto"}), ALL)):
        check_compilers(config, stages)
    monkeypatch.delenv("CC")
    check_compilers(gpus, ALL)


def test_parameters_are_counted_without_loading(tmp_path: Path) -> None:
    from ual_ray.models.resolve import parameter_count

    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert parameter_count(str(tmp_path)) == 22


# --- data ------------------------------------------------------------------------------------------------------------


def data_of(folder: Path, good: int, bad: int = 0, **options: Any) -> DataConfig:
    rows = [{"instruction": f"q{number}", "output": "a"} for number in range(good)] + [{"instruction": "q", "output": ""}] * bad
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(folder / "rows.jsonl"), **options)


def test_the_demo_passes() -> None:
    check_data(DataConfig())


@pytest.mark.parametrize(("share", "allowed"), [(0.09, False), (0.1, True), (1.0, True), (0.0, False)])
def test_small_data_with_too_many_bad_rows_is_refused_at_once(share: float, allowed: bool, tmp_path: Path) -> None:
    data = data_of(tmp_path, 18, 2, max_bad_share=share, validation_share=0, test_share=0)
    if allowed:
        check_data(data)
        return
    with pytest.raises(UserError, match=r"(?s)2 of 20 rows of .* are bad.*no response.*data\.max_bad_share"):
        check_data(data)


def test_the_limit_itself_is_allowed_however_it_is_rounded(tmp_path: Path) -> None:
    """0.29 * 100 is a little less than 29."""
    check_data(data_of(tmp_path, 71, 29, max_bad_share=0.29, validation_share=0, test_share=0))


@pytest.mark.parametrize(
    ("shares", "empty"),
    [((0.0, 0.0), None), ((0.98, 0.0), "train"), ((0.0, 0.01), "test"), ((0.01, 0.0), "validation")],
)
def test_a_split_that_is_needed_must_have_rows(shares: tuple[float, float], empty: str | None, tmp_path: Path) -> None:
    data = data_of(tmp_path, 3, validation_share=shares[0], test_share=shares[1])
    if empty is None:
        check_data(data)
        return
    with pytest.raises(UserError, match=rf"(?s)the {empty} split is empty.*3 rows in all.*fix: add rows, or "):
        check_data(data)
    limited = data.model_copy(update={"max_rows": 3})
    with pytest.raises(UserError, match="fix: add rows or raise data.max_rows=3, or "):
        check_data(limited)


def test_large_data_is_judged_by_its_first_rows_only_as_far_as_they_go(tmp_path: Path) -> None:
    check_data(data_of(tmp_path, 1, 1100, max_bad_share=0))


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        check_data(DataConfig(path=str(tmp_path / "nowhere.jsonl")))


# --- the elicitor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("elicit.templates=FILE", "verbalized_error: hello\n", "wrong placeholders"),
        ("elicit.templates=missing.yaml", "", "elicit.templates cannot be read"),
        ("elicit.calibrate_with=FILE", "", "labels file has an unknown file extension"),
        ("elicit.calibrate_with=missing.csv", "", "labels file does not exist"),
        ("elicit.calibrate_with=LABELS", "", "(?s)too few labels to calibrate with.*2 rows labelled good and 1 labelled wrong"),
        ("elicit.adapter=missing", "", "elicit.adapter is not a LoRA adapter"),
        ("elicit.model=./missing", "", "elicit.model: the directory does not exist"),
        ("elicit={grouping: nli, nli_model: ./missing}", "", "elicit.nli_model: the directory does not exist"),
        (
            "elicit={grouping: embedding, embedding_model: ./missing}",
            "",
            "elicit.embedding_model: the directory does not exist",
        ),
    ],
)
def test_what_the_elicitor_needs_has_to_be_there(option: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(text)
    labels = tmp_path / "labels.csv"
    labels.write_text("id,correct\na,1\nb,0\nc,1\n")
    with pytest.raises(UserError, match=says):
        check_elicitor(load(None, [option.replace("FILE", str(tmp_path / "file.yaml")).replace("LABELS", str(labels))]))


def test_too_few_samples_to_compare_are_refused() -> None:
    with pytest.raises(UserError, match="semantic_entropy needs at least 2 samples to compare"):
        check_elicitor(load(None, ["elicit.estimators=[verbalized_error,semantic_entropy]", "elicit.samples=1"]))


def test_a_server_is_asked_and_its_model_is_not_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, str]] = []
    monkeypatch.setattr("ual_ray.engines.openai_engine.check_endpoint", lambda engine, model: asked.append((engine, model)))
    config = load(None, ["engine.kind=openai", "elicit.estimators=[verbalized_error]", "elicit.model=/served/by/that/name"])
    check_elicitor(config)
    assert asked == [(config.engine, "/served/by/that/name")]


def test_only_what_the_stages_need_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seen: list[str] = []
    for name in ("check_data", "check_found", "check_elicitor", "check_memory"):
        monkeypatch.setattr(preflight, name, lambda *given, name=name: seen.append(name))
    for stages, expected in (
        ({"elicit"}, ["check_data", "check_elicitor", "check_memory"]),
        ({"train"}, ["check_found", "check_memory"]),
        (ALL, ["check_data", "check_found", "check_elicitor", "check_memory"]),
    ):
        seen.clear()
        check(Config(), frozenset(stages))
        assert seen == expected
    seen.clear()
    check(load(None, ["runtime.address=auto"]), frozenset({"train"}))  # the memory of this machine says nothing
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check(Config(), frozenset({"train"}))
    assert seen == ["check_found"] * 2


def test_the_hub_is_not_asked_for_a_model_that_a_server_answers_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    served = ["engine.kind=openai", "elicit.estimators=[verbalized_error]", "model=served-name"]
    check(load(None, served), frozenset({"evaluate"}))
    for settings, stages in ((served, {"train", "evaluate"}), (served[-1:], {"evaluate"})):
        with pytest.raises(UserError, match="model: the hub gives no such model"):
            check(load(None, settings), frozenset(stages))


def test_a_benchmark_without_a_path_needs_rows(tmp_path: Path) -> None:
    check_benchmarks(Config(), has_rows=True)
    with pytest.raises(UserError, match=r"no questions for the benchmarks held_out, gsm8k: they have no path"):
        check_benchmarks(Config(), has_rows=False)
    file = tmp_path / "nothing.jsonl"
    file.write_text('{"question": "2 + 2?", "answer": "four"}\n')
    with pytest.raises(UserError, match="maths"):
        check_benchmarks(
            load(None, ["evaluate.benchmarks.maths.kind=gsm8k", f"evaluate.benchmarks.maths.path={file}"]), has_rows=True
        )


def test_a_judge_needs_answers_without_gold_ones() -> None:
    answered = ["evaluate.benchmarks.chat.kind=open_ended"]
    check_judged(load(None, answered).evaluate.benchmarks)
    with pytest.raises(UserError, match=r"(?s)no benchmark has open-ended .*got: held_out \(held_out\), gsm8k \(gsm8k\)"):
        check(load(None, ["judge.model=demo"]))
    with pytest.raises(UserError, match="leaves no room for the question"):
        check(load(None, ["judge.model=demo", *answered]))


def test_a_busy_port_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "workers", "legal"), [(1, 8, True), (0, 2, True), (0.5, 1, True), (0.5, 2, False), (2, 1, False)]
)
def test_a_worker_trains_on_one_gpu(gpus: float, workers: int, legal: bool) -> None:
    train = TrainConfig(gpus_per_worker=gpus, num_workers=workers)
    if legal:
        check_train(train)
        return
    with pytest.raises(UserError, match="train.gpus_per_worker"):
        check_train(train)


def test_storage_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="train.storage is not writable"):
        check_train(TrainConfig(storage=str(tmp_path / "file")))
    with pytest.raises(UserError, match="train.storage is not writable"):
        check_train(TrainConfig(storage="/proc/new"))
    for storage in (str(tmp_path), str(tmp_path / "new"), "s3://bucket/checkpoints", None):
        check_train(TrainConfig(storage=storage))


@pytest.mark.parametrize("override", ["train.export=best", "train.early_stopping=2", "train.validate_every=10"])
def test_what_needs_validation_rows_is_refused_without_them(override: str) -> None:
    check_validated(load(None, [override]).train, True)
    check_validated(load().train, False)
    with pytest.raises(UserError, match=f"(?s){override.split('=')[0]}.*no validation rows.*--validation"):
        check_validated(load(None, [override]).train, False)
    with pytest.raises(UserError, match="no validation rows"):
        check(load(None, [override, "data.validation_share=0"]))


@pytest.mark.slow
def test_trainings_on_gpus_are_judged_before_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[int, bool, bool]] = []
    monkeypatch.setattr(
        "ual_ray.train.estimate.dry_run.check_gpus",
        lambda config, *, arms, evaluated: judged.append((config.train.num_workers, arms, evaluated)),
    )
    gpu = ["train.gpus_per_worker=1", "runtime.address=auto"]
    check(load(None, ["runtime.address=auto"]))
    check(load(None, [*gpu, "runtime.check_memory=false"]))
    check(load(None, gpu), {"elicit"})
    assert not judged
    check(load(None, [*gpu, "train.num_workers=3"]))
    # `ual train` trains one arm, by `train`, and does not evaluate.
    check(load(None, gpu), {"train"})
    assert judged == [(3, True, True), (2, False, False)]


def test_adapters_alone_are_not_evaluated(large: Config) -> None:
    alone = TrainConfig.model_validate({"lora": {"rank": 8, "merge": False}})
    config = large.model_copy(update={"train": alone, "runtime": large.runtime.model_copy(update={"check_memory": False})})
    (Path(config.model) / "config.json").write_text("{}")
    check(config, {"train"})
    with pytest.raises(UserError, match="train.lora.merge=true"):
        check(config, {"train", "evaluate"})
    check(config.model_copy(update={"train": TrainConfig()}), {"train", "evaluate"})


def sources_of(folder: Path, **sizes: int) -> list[str]:
    """Write a file of each name, of so many rows, one of which names another source; return the settings to read them."""
    for name, size in sizes.items():
        rows = [{"instruction": f"{name} {number}", "output": "a"} for number in range(size)]
        rows[0]["source"] = "special"
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.path={folder}", "data.validation_share=0", "data.test_share=0"]


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ("{math: 2, chat: 1, special: 1}", None),
        ("{maths: 2, chat: 1, special: 1}", "no row to train on is of 'maths'; no weight for 'math'.*chat, math, special"),
        ("{math: 2, chat: 1}", "no weight for 'special'"),
        ("{math: 2, chat: 1, special: 1, code: 1}", "no row to train on is of 'code'"),
        ("{}", None),
    ],
)
def test_a_mixture_of_other_sources_is_refused_before_anything_is_scored(
    mixture: str, says: str | None, tmp_path: Path
) -> None:
    config = load(None, [*sources_of(tmp_path, math=20, chat=20), f"train.mixture={mixture}"])
    if says is None:
        check(config, {"elicit", "train"})
        return
    with pytest.raises(UserError, match=rf"(?s)train\.mixture does not have .*{says}"):
        check(config, {"elicit", "train"})
    check(config, {"elicit"})


def test_of_large_data_only_sources_without_a_weight_are_known(tmp_path: Path) -> None:
    settings = sources_of(tmp_path, chat=1100, math=50)
    # Rows further behind may be of "code": the file has not been read so far.
    check(load(None, [*settings, "train.mixture={math: 2, chat: 1, special: 1, code: 1}"]), {"elicit", "train"})
    with pytest.raises(UserError, match=r"(?s)no weight for 'math'.*others that later rows may have"):
        check(load(None, [*settings, "train.mixture={maths: 2, chat: 1, special: 1}"]), {"elicit", "train"})


def test_a_source_without_training_rows_needs_no_weight(tmp_path: Path) -> None:
    settings = sources_of(tmp_path, math=1, chat=20)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "x", "output": ""}\n')
    check(load(None, [*settings, "data.max_bad_share=1", "train.mixture={chat: 1, special: 1}"]), {"elicit", "train"})


# --- what other packages add ------------------------------------------------------------------------------------------

ADDED = {
    "data.format": registry.FORMATS,
    "elicit.estimators": registry.ESTIMATORS,
    "engine.kind": registry.ENGINES,
    "arms.ual.map": registry.MAPS,
    "arms.ual.base": registry.BASE_MAPS,
    "arms.ual.weight": registry.WEIGHTS,
    "arms.ual.loss": registry.LOSSES,
    "train.loss": registry.LOSSES,
    "evaluate.benchmarks.gsm8k.kind": registry.BENCHMARKS,
}


def with_value(section: Any, keys: Sequence[str], value: Any) -> Any:
    """A copy of a section with a name that was added after the configuration's names were made."""
    first, *rest = keys
    if isinstance(section, dict):
        return section | {first: with_value(section[first], rest, value)}
    return section.model_copy(update={first: with_value(getattr(section, first), rest, value) if rest else value})


@pytest.mark.parametrize("key", ADDED)
def test_what_cannot_be_imported_is_named_before_anything_runs(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADDED[key].targets, "mine", "no_such_package:mine")
    config = with_value(load(), key.split("."), ("mine",) if key.endswith("s") else "mine")
    monkeypatch.setattr(preflight, "check_data", lambda data: pytest.fail("data were read first"))
    with pytest.raises(UserError, match=f"the {ADDED[key].kind} 'mine' cannot be imported"):
        check(config)
