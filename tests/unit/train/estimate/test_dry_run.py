"""The dry run: which rows stand for all, which steps they make, in what time, and advice that names the key to change."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console
from small_llama import WIDTH, settings, write

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.train.estimate import devices, dry_run, sample
from ual_ray.train.estimate.dry_run import micro_batch
from ual_ray.train.estimate.sample import sample_rows
from ual_ray.train.estimate.text import show

# --- rows and steps --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sample_stands_for_all_rows(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [1, 30] * 100)
    every = sample_rows(settings(model), smoothed)
    monkeypatch.setattr(sample, "MAX_SAMPLE", 41)
    some = sample_rows(settings(model), smoothed)
    assert (every.seen, some.seen, some.total, len(some.lengths)) == (200, 41, 200, 200)
    assert some.lengths.sum() == pytest.approx(every.lengths.sum(), rel=0.1)


def test_a_model_that_the_hub_does_not_give_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*names: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(UserError, match="(?s)model: the hub gives no such model.*nobody/nothing: no network"):
        dry_run.dry_run(settings("nobody/nothing"), tmp_path)


@pytest.mark.slow
def test_dropped_rows_are_counted_and_none_left_is_an_error(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [1] * 30 + [200] * 10)
    config = settings(model, "train.max_length=64", "train.overlong=drop")
    found = dry_run.dry_run(config, smoothed)
    assert found.rows.dropped.total() == 10 and len(found.rows.lengths) == 30
    assert any("25% of the rows would be dropped" in text and "train.max_dropped_share" in text for text in found.advice)
    with pytest.raises(UserError, match=r"(?s)no training row is left.*train\.max_length"):
        sample_rows(settings(model, "train.max_length=16", "train.overlong=drop"), smoothed)


def test_validation_rows_that_are_refused_are_named_before_a_row_is_rendered(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [1] * 8)
    other = tmp_path / "validation.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(smoothed).drop_columns([col.MESSAGES]), other)
    monkeypatch.setattr(dry_run, "sample_rows", lambda *_: pytest.fail("rows were rendered"))
    with pytest.raises(UserError, match=r"validation\.parquet lacks columns that training needs"):
        dry_run.dry_run(settings(model), smoothed, validation=other)


def with_sources(smoothed: Path, names: list[str]) -> Path:
    table = pyarrow.parquet.read_table(smoothed)
    pyarrow.parquet.write_table(table.append_column(col.SOURCE, pa.array(names, pa.string())), smoothed)
    return smoothed


@pytest.mark.slow
def test_a_mixture_is_told_by_source(model: str, tmp_path: Path) -> None:
    smoothed = with_sources(write(tmp_path / "smoothed.parquet", [5] * 30 + [20] * 10), ["chat"] * 30 + ["math"] * 10)
    plain = dry_run.dry_run(settings(model), smoothed)
    found = dry_run.dry_run(settings(model, "train.mixture={chat: 1, math: 1}"), smoothed)
    assert {name: (one["samples"], one["passes"]) for name, one in found.by_source.items()} == {
        "chat": (20, pytest.approx(2 / 3)),
        "math": (20, 2.0),
    }
    assert found.by_source["math"]["tokens"] > found.by_source["chat"]["tokens"]
    assert found.tokens_per_step > plain.tokens_per_step and found.steps == plain.steps
    console = Console(record=True, width=200)
    show(found, console)
    assert "math: 20 samples" in console.export_text() and plain.by_source == {}
    with pytest.raises(UserError, match="no weight for 'math'"):
        dry_run.dry_run(settings(model, "train.mixture={chat: 1}"), smoothed)


def test_a_sample_of_a_mixture_has_rows_of_every_source(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MAX_SAMPLE", 20)
    smoothed = with_sources(write(tmp_path / "smoothed.parquet", [5] * 199 + [20]), ["chat"] * 199 + ["math"])
    rows = sample_rows(settings(model, "train.mixture={chat: 1, math: 1}"), smoothed)
    assert rows.seen == 21 and rows.total == len(rows.lengths) == 200
    assert rows.sources is not None and rows.sources.to_pylist().count("math") == 1
    assert int(rows.lengths.max()) == int(rows.lengths[rows.sources.to_pylist().index("math")]), "scaled up by source"


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("batch", [(16, 8, 2), (32, 4, 2), (6, 4, 4)])
@pytest.mark.slow
def test_the_largest_micro_batch_is_that_of_the_plan(model: str, tmp_path: Path, packing: str, batch: tuple[int, ...]) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", list(range(1, 61)))
    sizes = zip(("global_batch_size", "micro_batch_size", "num_workers"), batch, strict=True)
    overrides = [f"train.{key}={size}" for key, size in sizes]
    config = settings(model, f"train.packing={packing}", "train.max_length=128", *overrides)
    rows = sample_rows(config, smoothed)
    plan = dry_run.StepPlan(rows.lengths, rows.targets, config.train, config.seed, config.train.num_workers)
    found = dry_run.dry_run(config, smoothed)
    batches = [len(part) for step in plan for rank in step.micro_batches for part in rank]
    assert max(batches) == found.micro_batch.rows
    assert max(len(rank) for step in plan for rank in step.micro_batches) == found.micro_batch.passes
    assert found.steps == len(plan)
    assert found.tokens_per_step * found.steps == pytest.approx(sum(plan.tokens(step) for step in plan))
    assert micro_batch(config.train, batch[0], 128).rows <= batch[1]


# --- devices, time, advice -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_time_follows_the_peak(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    slow, fast = (dry_run.dry_run(settings(model, f"train.peak_tflops={peak}"), smoothed) for peak in (1, 2))
    assert slow.seconds == pytest.approx(2 * fast.seconds) and slow.seconds > 0


def half_held_out(smoothed: Path) -> Path:
    """Write forty rows again, half of them for validation."""
    table = pyarrow.parquet.read_table(smoothed)
    held_out = pa.array([col.VALIDATION] * 20 + [col.TRAIN] * 20)
    path = smoothed.with_name("rows.parquet")
    pyarrow.parquet.write_table(table.set_column(table.column_names.index(col.SPLIT), col.SPLIT, held_out), path)
    return path


@pytest.mark.slow
def test_smoothing_towards_the_base_costs_another_forward_pass(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    plain, base = (
        dry_run.dry_run(settings(model, "train.lora.rank=2", *more), smoothed, validation=half_held_out(smoothed))
        for more in ([], ["train.prior=base"])
    )
    # Forward and backward to the inputs, and a little for the adapters; of a validation, forward alone.
    assert base.seconds == pytest.approx(1.5 * plain.seconds, rel=0.05)
    assert base.validation_seconds == pytest.approx(2 * plain.validation_seconds, rel=0.05)
    states = base.micro_batch.rows * base.micro_batch.length * WIDTH * 4
    assert base.memory.parts["loss"] - plain.memory.parts["loss"] > states


@pytest.mark.slow
def test_validation_has_its_share_of_the_time(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    rows = half_held_out(smoothed)

    def plan(*more: str) -> dry_run.DryRun:
        settings_ = settings(model, "train.global_batch_size=4", "train.validate_every=2", *more)
        return dry_run.dry_run(settings_, smoothed, None, rows)

    found = plan()
    # Before the first of ten steps, and after every second one; half as many rows as an epoch, forward only: a third.
    assert (found.steps, found.validations) == (10, 6)
    assert found.validation_tokens == pytest.approx(found.rows.lengths.sum() / 2, rel=0.01)
    assert found.validation_seconds == pytest.approx(6 * found.seconds / 2 / 3, rel=0.05)
    few = plan("train.validation_tokens=100")
    assert few.validation_tokens == 100 and few.validation_seconds < found.validation_seconds / 2
    console = Console(record=True, width=200)
    show(few, console)
    assert "6 times 100 tokens" in console.export_text()
    assert dry_run.dry_run(settings(model), smoothed).validations == 0


@pytest.mark.slow
def test_validation_rows_are_counted_as_those_of_training(model: str, tmp_path: Path) -> None:
    """Those that lose their end, or are dropped, were not told of."""
    smoothed, longer = (write(tmp_path / f"{name}.parquet", words) for name, words in (("few", [5] * 40), ("many", [90] * 40)))
    rows = half_held_out(longer)

    def plan(*more: str) -> tuple[dry_run.DryRun, str]:
        found = dry_run.dry_run(settings(model, "train.max_length=64", *more), smoothed, None, rows)
        console = Console(record=True, width=200)
        show(found, console)
        return found, console.export_text()

    found, shown = plan()
    assert found.validated and (found.validated.total, found.validated.truncated, found.rows.truncated) == (20, 20, 0)
    assert "40 rows to train on; 0 dropped, 0 truncated" in shown and "20 rows to validate on; 0 dropped, 20 truncated" in shown
    assert "100% of the validation rows are truncated at train.max_length = 64" in shown
    assert found.validation_tokens == 20 * 64, "of their own length"
    dropping, shown = plan("train.overlong=drop")
    assert dropping.validated and dropping.validated.dropped.total() == 20 and dropping.validations == 0
    # As training counts them: of all rows.
    assert "33% of the rows would be dropped (20 overlong), and training would stop" in shown
    with pytest.raises(UserError, match=r"(?s)train\.export=best: no validation row.*of 20 rows: 20 overlong.*fix: raise "):
        plan("train.overlong=drop", "train.export=best")
    with pytest.raises(UserError, match=r"(?s)train\.export=best: no validation row.*fix: give rows of the split 'val"):
        dry_run.dry_run(settings(model, "train.export=best"), smoothed, None, smoothed)


@pytest.mark.slow
def test_this_machines_cpu_is_measured() -> None:
    found = devices.find_device(load(None, ["train.dtype=float32"]))
    assert found.memory and found.flops > 0 and "measured here" in found.speed_from


def test_gpus_are_known_or_refused() -> None:
    config = load(None, ["train.gpus_per_worker=1"])
    small, large = (devices.find_device(config, name) for name in ("A100-40GB", "A100-80GB"))
    assert small.memory and large.memory and small.memory < large.memory and small.flops == large.flops
    with pytest.raises(UserError, match="(?s)GPU is not known.*H100"):
        devices.find_device(config, "Voodoo 2")
    assert devices.find_device(load(None, ["train.gpus_per_worker=1", "train.dtype=float32"]), "H100").flops < small.flops
    with pytest.raises(UserError, match="(?s)--gpu: training uses no GPU.*gpus_per_worker"):
        devices.find_device(load(None, []), "H100")


@pytest.mark.slow
def test_what_does_not_fit_says_which_key_to_change(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [200] * 64)
    fits = dry_run.dry_run(settings(model, "train.activation_checkpointing=true"), smoothed)
    limit = (fits.memory.peak + fits.memory_other_way.peak) // 2
    device = devices.Device("a small one", limit, 1e9, "a test")
    monkeypatch.setattr(dry_run, "find_device", lambda *given: device)
    found = dry_run.dry_run(settings(model), smoothed)
    assert any("DOES NOT FIT" in text and "train.activation_checkpointing=true" in text for text in found.advice)
    monkeypatch.setattr(dry_run, "find_device", lambda *given: devices.Device("a tiny one", 1000, 1e9, "a test"))
    hopeless = dry_run.dry_run(settings(model), smoothed)
    assert any("No settings make it fit" in text for text in hopeless.advice)


@pytest.mark.slow
def test_padding_idle_workers_and_positions_are_warned_about(model: str, tmp_path: Path) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [1, 100] * 20)
    one_batch = ["train.num_workers=1", "train.micro_batch_size=40", "train.global_batch_size=40"]
    assert any("train.packing=true" in text for text in dry_run.dry_run(settings(model, *one_batch), smoothed).advice)
    idle = dry_run.dry_run(settings(model, "train.num_workers=8", "train.global_batch_size=4"), smoothed)
    assert any("4 of 8 micro-batches are empty" in text for text in idle.advice)
    for tokens, warned in ((100, False), (300, True)):  # in a pack positions begin anew
        rows = write(tmp_path / f"{tokens}.parquet", [tokens] * 20)
        long = dry_run.dry_run(settings(model, "train.packing=true", "train.max_length=600"), rows)
        assert any("256 positions" in text for text in long.advice) == warned


@pytest.mark.slow
def test_it_plans_with_the_dtype_that_is_faster_here(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = write(tmp_path / "smoothed.parquet", [20] * 40)
    for slow, dtype in ((True, "float32"), (False, "bfloat16")):
        monkeypatch.setattr("ual_ray.models.product_speed.slower_than_float32", lambda *given, slow=slow: slow)
        plan = dry_run.dry_run(settings(model, "train.dtype=auto"), smoothed)
        assert plan.config.train.dtype == dtype
        assert plan.memory == dry_run.dry_run(settings(model, f"train.dtype={dtype}"), smoothed).memory


# --- printing --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_printed(model: str, tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    show(dry_run.dry_run(settings(model), write(tmp_path / "smoothed.parquet", [20] * 40)), console)
    text = console.export_text()
    for word in ("parameters", "trained", "shards", "steps of", "padding", "activations", "loss", "checkpoint", "an estimate"):
        assert word in text


def test_a_file_without_a_column_that_training_reads_is_refused(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"id": ["a"], "alpha": [0.1]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"(?s)lacks columns that training needs.*split.*messages"):
        sample_rows(Config(), tmp_path / "rows.parquet")
