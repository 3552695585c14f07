"""The stages one by one. Each writes to its --out; stages 1 to 3 each take what the one before has written as their input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ual_ray.cli.arguments import (
    ConfigFile,
    Data,
    Force,
    Out,
    Overrides,
    RetryFailed,
    Verbose,
    find,
    load,
    local,
    output_file,
    session,
)
from ual_ray.errors import UserError
from ual_ray.run.terminal import absolute, make_console, terminal

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
    config = load(config_file, overrides, {"data.path": data})
    if dry_run:
        _forecast(config, local(out), force=force, retry=retry_failed)  # of a URI a copy: nothing is marked as in use
        return
    with session(config, out, "elicit", force=force, verbose=verbose) as (running, folder):
        from ual_ray.elicit.step import elicit_step
        from ual_ray.run.step import Place

        elicit_step(running, Place(folder), retry=retry_failed)


def _forecast(config: Config, out: Path, *, force: bool, retry: bool) -> None:
    """Print what the elicitation will cost, without what is answered already in OUT or elicit.store."""
    from ual_ray.elicit.forecast import ask_sample, forecast
    from ual_ray.elicit.stage import expected_rows
    from ual_ray.elicit.step import kept_replies
    from ual_ray.preflight import check_data
    from ual_ray.run.precision import with_inference_dtype
    from ual_ray.run.step import Place

    config = with_inference_dtype(config, out, keep=False)
    seen, console = check_data(config.data), make_console()
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
    preflight.check_validated(config.train, rows is not None)
    if dry_run:
        from ual_ray.train.estimate.dry_run import dry_run as estimate
        from ual_ray.train.estimate.text import show

        preflight.check_train(config.train)
        show(estimate(config, source, gpu, rows), make_console())
        return
    with session(config, out, "train", force=force, verbose=verbose) as (running, folder):
        from ual_ray.run.step import Place
        from ual_ray.train.step import train_step

        train_step(running, folder.name, source, rows, Place(folder, keyed=False))


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model to evaluate: local directory, hub name, or 'demo'.")],
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS",
            help="Output folder of `ual elicit`, or canonical rows: questions for benchmarks without a path, and calibration.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the model in reports; by default that of its directory, or of the parent of a directory `model`.",
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval", metavar="TASKS", help="Run these tasks of lm-evaluation-harness instead: gsm8k,arc_easy,own.yaml."
        ),
    ] = None,
    out: Out = "evaluated",
    force: Force = False,
    retry_failed: RetryFailed = False,
    verbose: Verbose = False,
) -> None:
    """Stage 4: run a model on every benchmark of the configuration, and measure its calibration.

    Questions answered before are not asked again.
    Writes OUT/evaluate/KEY, with the answers as rows and figures.json; `ual report OUT` reads the newest KEY.
    KEY is a hash of the inputs and settings.
    """
    from ual_ray import columns as col
    from ual_ray import preflight

    config = load(config_file, overrides, {"model": model})
    source = find(rows, col.ROWS_FOLDER, "ual elicit") if rows else None
    place = Path(model)
    title = name or (place.parent.name if place.name == "model" else place.name)
    if lm_eval is None:
        preflight.check_benchmarks(config, source is not None)
    else:
        preflight.check_harness(lm_eval.split(","))
    with session(config, out, "evaluate", force=force, verbose=verbose) as (running, folder):
        from ual_ray import pipeline
        from ual_ray.evaluate.step import harness_step
        from ual_ray.run.step import Place

        if lm_eval is not None:
            harness_step(running, title, lm_eval.split(","), Place(folder / "lm_eval"))
        else:
            pipeline.evaluate_alone(running, title, source, folder, retry=retry_failed)


def judge(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="CANDIDATE", help="Answers: output folder of `ual evaluate`, or model_outputs.json of AlpacaEval."
        ),
    ],
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE", help="Answers to compare with, or 'reference' for the reference answers of the benchmark."
        ),
    ],
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    out: Out = "judged",
    force: Force = False,
    retry_failed: RetryFailed = False,
    verbose: Verbose = False,
) -> None:
    """Stage 4: compare the open-ended answers of two models pair by pair, judged by the model of judge.model.

    Writes OUT/judge/KEY: win_rates.json, verdicts.parquet, and annotations.json for AlpacaEval's own tools.
    KEY is a hash of the inputs and settings.
    """
    from ual_ray.config import REFERENCE_ANSWERS

    config = load(config_file, overrides, {"judge.against": REFERENCE_ANSWERS})
    answers = [None if name == REFERENCE_ANSWERS else _find_answers(name) for name in (candidate, reference)]
    with session(config, out, "judge", force=force, verbose=verbose) as (running, folder):
        from ual_ray import pipeline

        pipeline.judge_alone(running, answers[0], answers[1], folder, retry=retry_failed)


def _find_answers(place: str) -> Path:
    from ual_ray import columns as col

    outputs = place.endswith(".json") and Path(place).is_file()
    return absolute(Path(place)) if outputs else find(place, col.RESULTS_FOLDER, "ual evaluate")


def report(
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER", help="Output folders of `ual run` or `ual evaluate`; paths or URIs.")
    ],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="OUT", help="Folder to write report.md to, and to log it to MLflow.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write: a page about the whole run in the first folder.")
    ] = None,
) -> None:
    """Stage 5: compare the newest results of all models in the folders, with significance verdicts."""
    from ual_ray.mirror.output import open_output
    from ual_ray.report.step import report_on
    from ual_ray.run.output import Workspace
    from ual_ray.run.stage_cache import LOG_FILE

    page = output_file(html, "--html")
    if out is None:
        report_on([*map(local, folders)], None, make_console(), page)
        return
    output = open_output(out, "--out")
    places = [*map(local, folders)]
    with output.held() as folder, Workspace(folder).held(), terminal(folder / LOG_FILE, verbose=False) as console:
        report_on(places, folder, console, page)
