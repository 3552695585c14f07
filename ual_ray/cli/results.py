"""Stages 4 and 5: evaluate models, compare their answers, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Force, Out, Overrides, RetryFailed, Verbose, load, output_file
from ual_ray.cli.session import find, local, session
from ual_ray.run.terminal import absolute, make_console, terminal


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
        str | None, typer.Option(metavar="NAME", help="Name of the model in reports; its directory's name by default.")
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
    folder = Path(model)
    title = name or (folder.parent.name if folder.name == "model" else folder.name)
    from ual_ray.mirror.output import open_output

    output = open_output(out, "--out")
    if lm_eval is None:
        preflight.check_benchmarks(config, source is not None)
    else:
        preflight.check_harness(lm_eval.split(","))
    preflight.check(config, {"evaluate"})
    with session(config, output, "evaluate", force=force, verbose=verbose) as running:
        from ual_ray import pipeline

        if lm_eval is not None:
            pipeline.run_harness(running, title, lm_eval.split(","), output.root)
        else:
            pipeline.evaluate_alone(running, title, source, output.root, retry=retry_failed)


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
    from ual_ray import preflight
    from ual_ray.config import REFERENCE_ANSWERS

    config = load(config_file, overrides, {"judge.against": REFERENCE_ANSWERS})
    answers = [None if name == REFERENCE_ANSWERS else _find_answers(name) for name in (candidate, reference)]
    from ual_ray.mirror.output import open_output

    output = open_output(out, "--out")
    preflight.check(config, {"judge"})
    with session(config, output, "judge", force=force, verbose=verbose) as running:
        from ual_ray import pipeline

        pipeline.judge_alone(running, answers[0], answers[1], output.root, retry=retry_failed)


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
