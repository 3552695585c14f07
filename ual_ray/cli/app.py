"""The commands. No maths and no Ray in here: what a command needs is imported inside it, so that `ual --help` is quick."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ual_ray.cli import arguments as command
from ual_ray.config import DEMO, REFERENCE_ANSWERS
from ual_ray.config import load as settings
from ual_ray.config.redact import redact_uri
from ual_ray.errors import USER_ERROR_EXIT_CODE, UserError
from ual_ray.run.console import escape, short
from ual_ray.run.terminal import SIGTERM_EXIT_CODE, end_on_sigterm, ended_by_sigterm, make_console

app = typer.Typer(
    name="ual",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Uncertainty-Aware Learning on Ray: score rows, smooth labels by the score, fine-tune, evaluate, report.",
)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; `ual config` prints all its keys.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.epochs=3.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray, vLLM and transformers say.")]
Again = Annotated[bool, typer.Option("--force", help="Do it again from the start, even if it is done.")]

HOST, PORT = "127.0.0.1", 5000
RAY_TOKEN = Path.home() / ".ray" / "auth_token"


@app.command()
def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, then overrides.")
    ] = None,
    config_file: ConfigFile = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", help="Stage to do again: elicit, smooth, train, evaluate, calibrate or judge."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Do the whole pipeline: elicit, then smooth and train every arm, evaluate, report.

    Finished stages are recognised by a hash of their inputs and settings and are not done again.
    """
    from ual_ray import preflight
    from ual_ray.run.output import Workspace

    config = command.load(arguments, config_file)
    stages = command.check_stages(force or [])
    workspace = Workspace(command.absolute(Path(config.output)))
    preflight.check(config)
    workspace.check_owner(config)
    with command.terminal(workspace.log_file, verbose) as console:
        from ual_ray import pipeline
        from ual_ray.report import step as reporting

        arms = ", ".join(config.arms)
        data = redact_uri(config.data.path)
        console.print(f"data {data}, model {config.model}, arms {arms} -> {config.output}", highlight=False)
        pipeline.run(config, console, workspace, stages)
        uri = config.tracking.uri
        where = redact_uri(uri) if uri else f"`ual ui --output {short(workspace.root)}`"
        console.print(f"\nreport: {short(workspace.root / 'report' / reporting.REPORT_FILE)}; MLflow: {where}", highlight=False)


@app.command()
def elicit(
    data: Annotated[str, typer.Argument(help="File, folder, cloud address or hub name of the rows, or 'demo'.")],
    overrides: Overrides = None,
    out: Out = Path("scored"),
    config_file: ConfigFile = None,
    force: Again = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Send the rows again that an engine failed on.")] = False,
    verbose: Verbose = False,
) -> None:
    """Stage 1: score rows, whatever their number; OUT/<key>/rows holds the canonical rows, OUT/<key>/scored the scored ones.

    Rows that were scored before, by the same model, prompts and settings, are not sent again; other settings score beside
    the old. `ual smooth OUT` reads the newest.
    """
    from ual_ray import preflight

    config = command.load([*(overrides or []), command.override("data.path", data)], config_file)
    preflight.check(config, {"elicit"})
    with command.session(config, out, force, verbose, "elicit") as session:
        from ual_ray.elicit.step import elicit_step
        from ual_ray.run.step import Place

        elicit_step(session, Place(command.absolute(out)), retry=retry_failed)


@app.command()
def inspect(
    scored: Annotated[Path, typer.Argument(help="What `ual elicit` or `ual run` wrote, or a Parquet file or folder.")],
    html: Annotated[Path | None, typer.Option(help="The page to write; inspection.html beside the scores by default.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV or JSONL of (id, correct): the quality of each estimator is measured on these.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Look at scores before training on them: one HTML page, its short form here, and both in MLflow."""
    from ual_ray import columns as col

    config = command.load(overrides, None)
    source = command.find(scored, col.SCORED_FOLDER, "ual elicit")
    from ual_ray.inspect.command import inspect_scores

    inspect_scores(config, source, labels, command.absolute(html) if html else None, make_console())


@app.command()
def preview(
    data: Annotated[str, typer.Argument(help="File, folder, cloud address or hub name of the rows, or 'demo'.")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows to show.")] = 3,
    config_file: ConfigFile = None,
) -> None:
    """Show what the elicitor will read, and which tokens will be trained on, before anything runs."""
    config = command.load([*(overrides or []), command.override("data.path", data)], config_file)
    from ual_ray.elicit.estimators import make_estimators, requests_of
    from ual_ray.inspect.preview import preview as show

    estimators = make_estimators(config.elicit, config.seed)
    show(config, rows, make_console(), partial(requests_of, estimators))


@app.command()
def smooth(
    scored: Annotated[Path, typer.Argument(help="What `ual elicit` wrote: its --out, or a Parquet file or folder.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The arm's keys, such as map=rank alpha_max=0.3."),
    ] = None,
    out: Out = Path("smoothed"),
    seed: Annotated[int, typer.Option(help="Seed of the control 'shuffled'.")] = 0,
    force: Again = False,
) -> None:
    """Stage 2: turn uncertainty into alpha, print the distribution; OUT/smoothed.parquet. No model is called."""
    from ual_ray import columns as col

    keys = [f"arms.ual.{item}" if "=" in item else item for item in overrides or []]
    config = settings.load(None, [*keys, f"seed={seed}"])
    source = command.find(scored, col.SCORED_FOLDER, "ual elicit")
    from ual_ray.run.output import Workspace
    from ual_ray.run.step import Session
    from ual_ray.smooth.step import smooth_step

    session = Session(config, make_console(), None, frozenset({"smooth"} if force else ()))
    with Workspace(command.absolute(out)).held():
        smooth_step(session, out.name, config.arms["ual"], source, command.at(out))


@app.command()
def train(
    smoothed: Annotated[Path, typer.Argument(help="What `ual smooth` wrote: its --out, or a Parquet file.")],
    overrides: Overrides = None,
    out: Out = Path("trained"),
    validation: Annotated[
        Path | None,
        typer.Option(help="Canonical rows, or the --out of `ual elicit`, whose validation split is measured."),
    ] = None,
    config_file: ConfigFile = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it takes: memory, steps, tokens, time. Reads no weights.")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help="For --dry-run: the workers' GPU, such as H100, where it is not the one here.")
    ] = None,
    force: Again = False,
    verbose: Verbose = False,
) -> None:
    """Stage 3: fine-tune on rows with alpha; OUT/model is a Hugging Face directory."""
    from ual_ray import columns as col
    from ual_ray import preflight

    config = command.load(overrides, config_file)
    source = command.find(smoothed, col.SMOOTHED_FILE, "ual smooth")
    rows = command.find(validation, col.ROWS_FOLDER, "ual elicit") if validation else None
    if dry:
        from ual_ray.train.estimate.dry_run import dry_run
        from ual_ray.train.estimate.text import show

        preflight.check_train(config.train)
        show(dry_run(config, source, gpu), make_console())
        return
    preflight.check_validated(config.train, rows is not None)
    preflight.check(config, {"train"})
    with command.session(config, out, force, verbose, "train") as session:
        from ual_ray.train.step import train_step

        train_step(session, out.name, source, rows, command.at(out))


@app.command()
def evaluate(
    rows: Annotated[
        Path | None,
        typer.Argument(
            help="Canonical rows, or the --out of `ual elicit`: its test split is asked where a benchmark has no path."
        ),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Model to evaluate: directory, hub name, or 'demo'.")] = DEMO,
    name: Annotated[str | None, typer.Option(help="What the report calls it; the directory's name by default.")] = None,
    out: Out = Path("evaluated"),
    config_file: ConfigFile = None,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", help="Tasks of lm-evaluation-harness, such as gsm8k,arc_easy, and nothing else.")
    ] = None,
    force: Again = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what an engine failed on.")] = False,
    verbose: Verbose = False,
) -> None:
    """Stage 4: one model's answers to every benchmark of the configuration, and its calibration; `ual report OUT` shows them.

    OUT/evaluate/KEY holds the answers as rows, and figures.json. Answers that are there are not asked for again.
    """
    from ual_ray import columns as col
    from ual_ray import preflight

    items = list(overrides or [])
    if rows is not None and "=" in str(rows) and not rows.exists():
        rows, items = None, [str(rows), *items]
    config = command.load([*items, command.override("model", model)], config_file)
    source = command.find(rows, col.ROWS_FOLDER, "ual elicit") if rows else None
    folder = Path(model)
    title = name or (folder.parent.name if folder.name == "model" else folder.name)
    if lm_eval is None:
        preflight.check_benchmarks(config, source is not None)
    preflight.check(config, {"evaluate"})
    with command.session(config, out, force, verbose, "evaluate") as session:
        from ual_ray import pipeline

        if lm_eval is not None:
            pipeline.run_harness(session, title, lm_eval.split(","), command.absolute(out))
        else:
            pipeline.evaluate_alone(session, title, source, command.absolute(out), retry=retry_failed)


@app.command()
def judge(
    candidate: Annotated[
        Path, typer.Argument(help="Answers: the --out of `ual evaluate`, or AlpacaEval's model_outputs.json.")
    ],
    reference: Annotated[
        Path, typer.Argument(help="Answers to compare with, likewise; 'reference' = those that the benchmark's file gives.")
    ],
    overrides: Overrides = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge", help="The judge: hub name, directory, 'demo'; judge.model by default.")
    ] = None,
    out: Out = Path("judged"),
    config_file: ConfigFile = None,
    force: Again = False,
    verbose: Verbose = False,
) -> None:
    """Compare two models' open-ended answers pair by pair.

    OUT/judge/KEY holds win_rates.json, verdicts.parquet, and annotations.json for AlpacaEval's own tools.
    """
    from ual_ray import preflight

    items = [*(overrides or []), *([command.override("judge.model", judge_model)] if judge_model else [])]
    config = command.load([*items, f"judge.against={REFERENCE_ANSWERS}"], config_file)
    paths = [_answers(path) for path in (candidate, reference)]
    preflight.check(config, {"judge"})
    with command.session(config, out, force, verbose, "judge") as session:
        from ual_ray import pipeline

        pipeline.judge_alone(session, paths[0], paths[1], command.absolute(out))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Outputs of `ual run` or of `ual evaluate`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write report.md here too, and log it to MLflow here.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the whole story of the first folder as one HTML page.")] = None,
) -> None:
    """Stage 5: the newest results of every model in the folders, side by side, with what can be told and what cannot."""
    from ual_ray.report.step import report_on
    from ual_ray.run.stage_cache import LOG_FILE

    page = command.absolute(html) if html else None
    if out is None:
        report_on(folders, None, make_console(), page)
        return
    with command.terminal(out / LOG_FILE, verbose=False) as console:
        report_on(folders, out, console, page)


@app.command()
def promote(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Output of `ual run`.")],
    arm: Annotated[str | None, typer.Option(help="The arm; by default the only one that may be promoted.")] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow store, where its address holds a password.")] = None,
) -> None:
    """Make an arm's registered model the champion, if the comparison says that it is better and in nothing worse."""
    from ual_ray.report.promote import promote as promote_arm

    promote_arm(command.absolute(run_folder), make_console(), arm, uri)


@app.command()
def sync(
    output: Annotated[Path, typer.Argument(help="Output folder of a command whose MLflow server was away.")],
    uri: Annotated[str | None, typer.Option(help="MLflow store, where its address holds a password.")] = None,
) -> None:
    """Send to MLflow what could not be logged while its server was away."""
    from ual_ray.tracking.catch_up import catch_up

    done = catch_up(command.absolute(output), uri)
    typer.echo(f"{done.sent} operations sent, {done.refused} refused, {done.waiting} still wait")
    raise typer.Exit(1 if done.waiting else 0)


@app.command(name="config")
def show_config(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...")] = None,
    config_file: ConfigFile = None,
) -> None:
    """Print the resolved configuration with a comment on every key; it can be saved and given to --config."""
    typer.echo(settings.dump(command.load(arguments, config_file)), nl=False)


@app.command()
def ui(
    output: Annotated[Path, typer.Option(help="Output folder whose store to show.")] = Path("runs/demo"),
    uri: Annotated[str | None, typer.Option(help="Another MLflow store, in place of the output folder's.")] = None,
    port: Annotated[int, typer.Option(help="Port on localhost.")] = PORT,
    host: Annotated[str, typer.Option(help="Address to listen on; others than localhost expose it to the network.")] = HOST,
) -> None:
    """Serve the MLflow UI."""
    from ual_ray.preflight import check_port
    from ual_ray.tracking.ui import serve

    check_port(host, port)
    typer.echo(f"MLflow: http://{host}:{port} (Ctrl-C stops it)")
    raise typer.Exit(serve(uri, output, host, port))


@app.command()
def submit(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...")] = None,
    address: Annotated[str, typer.Option(help="Ray job server.")] = "http://127.0.0.1:8265",
    config_file: ConfigFile = None,
    follow: Annotated[bool, typer.Option(help="Show the job's log until it ends.")] = True,
) -> None:
    """Submit `ual run CONFIG` to a Ray cluster as a job; local data, prompt and label files are uploaded with it."""
    from ual_ray.submit import submit as submit_job

    config = command.read(arguments, config_file)
    raise typer.Exit(submit_job(config, address, follow, make_console()))


def _answers(path: Path) -> Path | None:
    """Find a model's answers, or None for those that the benchmark's file gives."""
    if str(path) == REFERENCE_ANSWERS:
        return None
    if path.suffix == ".json" and path.is_file():
        return command.absolute(path)
    from ual_ray import columns as col

    return command.find(path, col.RESULTS_FOLDER, "ual evaluate")


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, never a traceback."""
    end_on_sigterm()
    if RAY_TOKEN.is_file():
        # Ray makes a token on first use and then asks every client for it, but only a client in this mode sends it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        app()
    except SystemExit:
        if ended_by_sigterm():
            sys.exit(SIGTERM_EXIT_CODE)
        raise
    except UserError as error:
        text = escape(redact_uri(str(error)))
        Console(stderr=True).print(f"[bold red]error:[/bold red] {text}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR_EXIT_CODE)
