"""Stages 1 to 3 one by one. Each writes to its --out, which the next one takes as its input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Data, Force, Out, Overrides, RetryFailed, Verbose, load
from ual_ray.cli.session import find, local, session
from ual_ray.errors import UserError
from ual_ray.run.terminal import make_console

if TYPE_CHECKING:
    from ual_ray.config import Config


def elicit(
    data: Data,
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    out: Out = "scored",
    force: Force = False,
    retry_failed: RetryFailed = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate calls, tokens and cost only. Calls no model.")] = False,
    verbose: Verbose = False,
) -> None:
    """Stage 1: score the uncertainty of rows.

    Streams data of any size. Rows scored before by the same model, with the same prompts and settings, are not sent again.
    Writes OUT/KEY/rows and OUT/KEY/scored; `ual smooth OUT` and `ual inspect OUT` read the newest KEY.
    KEY is a hash of the inputs and settings.
    """
    from ual_ray import preflight

    config = load(config_file, overrides, {"data.path": data})
    if dry_run:
        _forecast(config, local(out), force=force, retry=retry_failed)  # of a URI a copy: nothing is marked as in use
        return
    from ual_ray.mirror.output import open_output

    output = open_output(out, "--out")
    preflight.check(config, {"elicit"})
    with session(config, output, "elicit", force=force, verbose=verbose) as running:
        from ual_ray.elicit.step import elicit_step
        from ual_ray.run.step import Place

        elicit_step(running, Place(output.root), retry=retry_failed)


def _forecast(config: Config, out: Path, *, force: bool, retry: bool) -> None:
    """Print what the elicitation will cost, without what is answered already in OUT or elicit.store."""
    from ual_ray.data.peek import peek
    from ual_ray.elicit.answered import ask_sample
    from ual_ray.elicit.forecast import forecast
    from ual_ray.elicit.stage import expected_rows
    from ual_ray.elicit.step import kept_replies
    from ual_ray.run.step import Place

    seen, console = peek(config.data), make_console()
    kept = None if force else kept_replies(config, Place(out), retry)
    asked = ask_sample(config, seen, kept) if kept else None
    for name, text in forecast(config, seen, expected_rows(config, seen), asked).lines():
        console.print(f"  {name:<18}{text}", markup=False, highlight=False)


def smooth(
    scored: Annotated[
        str,
        typer.Argument(
            metavar="SCORED", help="Output folder of `ual elicit`, or a Parquet file or folder of scored rows; a path or a URI."
        ),
    ],
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    arm: Annotated[
        str | None, typer.Option(metavar="ARM", help="Arm of the configuration; its only arm that smooths by default.")
    ] = None,
    out: Out = "smoothed",
    force: Force = False,
) -> None:
    """Stage 2: map uncertainty to the smoothing value alpha of every row, and print its distribution.

    Calls no model; the tokenizer of `model`, which is to be trained, counts the tokens over which arms are matched. Writes
    OUT/smoothed.parquet.
    """
    from ual_ray import columns as col

    config = load(config_file, overrides)
    name = _find_arm(config, arm)
    source = find(scored, col.SCORED_FOLDER, "ual elicit")
    from ual_ray.mirror.output import open_output
    from ual_ray.run.output import Workspace
    from ual_ray.run.step import Place, Session
    from ual_ray.smooth.step import smooth_step

    with open_output(out, "--out").held() as folder, Workspace(folder).held():
        running = Session(config, make_console(), None, frozenset({"smooth"} if force else ()))
        smooth_step(running, name, config.arms[name], source, Place(folder, keyed=False))


def _find_arm(config: Config, arm: str | None) -> str:
    smoothing = [name for name, spec in config.arms.items() if spec.map != "none"]
    if arm is None and len(smoothing) == 1:
        return smoothing[0]
    if arm not in config.arms:
        what = "--arm: unknown arm" if arm else f"--arm is missing: {len(smoothing)} arms smooth"
        raise UserError(what, got=arm, expected=", ".join(config.arms))
    return arm


def train(
    smoothed: Annotated[
        str,
        typer.Argument(
            metavar="SMOOTHED", help="Output folder of `ual smooth`, or a Parquet file of rows with alpha; a path or a URI."
        ),
    ],
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    out: Out = "trained",
    validation: Annotated[
        str | None,
        typer.Option(metavar="ROWS", help="Output folder of `ual elicit`, or canonical rows, for the validation NLL."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate memory, steps, tokens and time only. Reads no weights.")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(metavar="GPU", help="GPU to estimate for, such as H100; the local one by default.")
    ] = None,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Stage 3: fine-tune a model with smoothed labels.

    Writes OUT/model, a Hugging Face model directory. An interrupted training resumes from its last checkpoint.
    """
    from ual_ray import columns as col
    from ual_ray import preflight

    config = load(config_file, overrides)
    source = find(smoothed, col.SMOOTHED_FILE, "ual smooth")
    rows = find(validation, col.ROWS_FOLDER, "ual elicit") if validation else None
    if dry_run:
        from ual_ray.train.estimate.dry_run import dry_run as estimate
        from ual_ray.train.estimate.text import show

        preflight.check_train(config.train)
        show(estimate(config, source, gpu, rows), make_console())
        return
    from ual_ray.mirror.output import open_output

    output = open_output(out, "--out")
    preflight.check_validated(config.train, rows is not None)
    preflight.check(config, {"train"})
    with session(config, output, "train", force=force, verbose=verbose) as running:
        from ual_ray.run.step import Place
        from ual_ray.train.step import train_step

        train_step(running, output.root.name, source, rows, Place(output.root, keyed=False))
