"""Print the resource estimate of a training on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape

from ual_ray.formatting import amount, duration, gib, plural
from ual_ray.train.export_dtype import with_export_dtype

if TYPE_CHECKING:
    from rich.console import Console

    from ual_ray.train.estimate.dry_run import DryRun
    from ual_ray.train.estimate.sample import Rows


def show(plan: DryRun, console: Console) -> None:
    """Print the estimate, with problems last, in red."""
    for title, text in lines(plan):
        console.print(f"[bold]{title:<14}[/bold] {escape(text)}", highlight=False)
    for text in plan.advice:
        console.print(f"[bold red]{'warning':<14}[/bold red] {escape(text)}", highlight=False)


def lines(plan: DryRun) -> Iterator[tuple[str, str]]:
    """Yield each line's title and text."""
    train, parameters, rows, micro = plan.config.train, plan.parameters, plan.rows, plan.micro_batch
    base = ", the others held in bfloat16" if parameters.has_low_precision else ""
    lora = f" (LoRA of rank {train.lora.rank}{base})" if train.lora.rank else ""
    trained = f"{amount(parameters.trainable)} trained{lora}"
    yield "model", f"{plan.config.model}: {amount(parameters.total)} parameters, {trained}"
    sharded = plural(train.num_workers // train.replicas, "shard") + (
        f" x {train.replicas} replicas" if train.replicas > 1 else ""
    )
    yield "workers", f"{train.num_workers} x {plan.device.name}, {sharded}, {train.dtype}"
    yield "rows", f"{_counted(rows, 'train')}; {plural(plan.sequences, 'sequence')}{' (packed)' * train.packing}"
    if plan.validated is not None:
        yield "", _counted(plan.validated, "validate")
    yield (
        "steps",
        f"{plural(plan.steps, 'step')} of {plan.tokens_per_step:,.0f} tokens, {plan.target_tokens_per_step:,.0f} of them "
        f"trained on; {plan.padding_share:.1%} padding; at most {micro.rows} x {micro.length} tokens in a micro-batch, "
        f"{micro.passes} per worker and step",
    )
    for number, (source, drawn) in enumerate(plan.by_source.items()):
        yield (
            "" if number else "mixture",
            f"{source}: {drawn['samples']:,.0f} samples and {drawn['tokens']:,.0f} tokens per epoch, each of its samples "
            f"{drawn['passes']:.2f} times",
        )
    yield "memory", _memory(plan)
    for name, size in plan.memory.parts.items():
        if size:
            yield "", f"{name:<18} {gib(size):>10}"
    if train.compile:
        yield (
            "compile",
            "activations and time are those of layers that are not compiled; compiled ones keep less (in tests on Llama, Qwen2 "
            "and Gemma 3 50 to 79% of the bytes), and compiling takes seconds to minutes of the first steps",
        )
    if plan.memory.host:
        have = "" if plan.device.host is None else f" of {gib(plan.device.host)}"
        what = "weights and gradients (pinned), optimizer" if train.cpu_offload else "a copy of the state for a checkpoint"
        yield "host memory", f"{gib(plan.memory.host)}{have} per worker: its process, {what} (an estimate)"
    newest = f"the newest {train.keep_checkpoints}" if train.keep_checkpoints > 1 else "the newest"
    kept = f"{newest} and the best are kept"
    yield "checkpoint", f"{gib(plan.checkpoint)} each, {kept}; {_exported(plan)}"
    rate = plan.steps * plan.tokens_per_step / plan.seconds
    yield (
        "time",
        f"about {duration(plan.seconds)} for all steps, {rate:,.0f} tokens/s: an estimate, from {plan.device.speed_from}; "
        "start, validation and checkpoints come on top",
    )
    if plan.validations:
        yield (
            "validation",
            f"{plan.validations:,} times {amount(plan.validation_tokens)} tokens: about {duration(plan.validation_seconds)} in "
            f"all, {plan.validation_seconds / plan.seconds:.1%} of the steps' time (train.validation_tokens, "
            "train.validate_every)",
        )


def _counted(rows: Rows, what: str) -> str:
    sample = "" if rows.seen == rows.total else f", judged by {rows.seen:,} of them"
    return f"{plural(rows.total, 'row')} to {what} on{sample}; {rows.dropped.total()} dropped, {rows.truncated} truncated"


def _exported(plan: DryRun) -> str:
    train, parameters = with_export_dtype(plan.config).train, plan.parameters
    adapters = parameters.trainable if train.lora.rank else 0
    # Adapters are merged into the weights, and exported alone in float32.
    whole = (2 if train.export_dtype == "bfloat16" else 4) * (parameters.total - adapters)
    model = f"the model in the end {gib(whole)} in {train.export_dtype}"
    if not adapters:
        return model
    alone = f"the adapters in the end {gib(4 * adapters)}"
    return f"{alone}, {model}" if train.lora.merge else alone


def _memory(plan: DryRun) -> str:
    checkpointing = plan.config.train.activation_checkpointing
    other = f"{'without' if checkpointing else 'with'} activation checkpointing {gib(plan.memory_other_way.peak)}"
    have = "" if plan.device.memory is None else f" of {gib(plan.device.memory)}"
    return f"{gib(plan.memory.peak)}{have} per worker at most, during {plan.memory.moment} (an estimate; {other})"
