"""The commands. No maths and no Ray in here: what a command needs is imported inside it, so that `ual --help` is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ual_ray import command, settings
from ual_ray.errors import USER_ERROR_EXIT_CODE, UserError
from ual_ray.quiet import SIGTERM_EXIT_CODE, end_on_sigterm, ended_by_sigterm, make_console

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

PORT = 5000
RAY_TOKEN = Path.home() / ".ray" / "auth_token"
HOST = "127.0.0.1"
# Where `ual elicit` puts its results within its folder.
ROWS_IN, SCORED_IN = "rows", "scored"


@app.command()
def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, then overrides.")
    ] = None,
    config_file: ConfigFile = None,
    force: Annotated[
        list[str] | None, typer.Option("--force", help="Stage to do again: elicit, smooth, train or evaluate.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Do the whole pipeline: elicit, then smooth and train every arm, evaluate, report.

    Finished stages are recognised by a hash of their inputs and settings and are not done again.
    """
    from ual_ray import preflight
    from ual_ray.workspace import Workspace

    config = command.load(arguments, config_file)
    stages = command.check_stages(force or [])
    workspace = Workspace(command.absolute(Path(config.output)))
    preflight.check(config)
    workspace.check_owner(config)
    with command.terminal(workspace.log_file, verbose) as console:
        from ual_ray import pipeline

        arms = ", ".join(config.arms)
        console.print(f"data {config.data.path}, model {config.model}, arms {arms} -> {config.output}", highlight=False)
        pipeline.run(config, console, workspace, stages)
        uri = config.tracking.uri
        where = settings.redact_uri(uri) if uri else f"`ual ui --output {command.short(workspace.root)}`"
        console.print(
            f"\nreport: {command.short(workspace.root / 'report' / pipeline.REPORT_FILE)}; MLflow: {where}", highlight=False
        )


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

    config = command.load([*(overrides or []), f"data.path={data}"], config_file)
    preflight.check(config, {"elicit"})
    with command.session(config, out, force, verbose, "elicit") as session:
        from ual_ray.steps import elicit_step
        from ual_ray.workspace import point_to

        root = command.absolute(out)
        done = elicit_step(session, lambda key: root / key, lambda key: root / "store" / key, retry=retry_failed)
        point_to(root, done.folder)


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
    config = command.load(overrides, None)
    source = command.find(scored, SCORED_IN, "ual elicit")
    from ual_ray.inspection import inspect_scores

    inspect_scores(config, source, labels, command.absolute(html) if html else None, make_console())


@app.command()
def preview(
    data: Annotated[str, typer.Argument(help="File, folder, cloud address or hub name of the rows, or 'demo'.")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows to show.")] = 3,
    config_file: ConfigFile = None,
) -> None:
    """Show what the elicitor will read, and which tokens will be trained on, before anything runs."""
    config = command.load([*(overrides or []), f"data.path={data}"], config_file)
    from ual_ray.preview import preview as show

    show(config, rows, make_console())


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
    keys = [f"arms.ual.{item}" if "=" in item else item for item in overrides or []]
    config = settings.load(None, [*keys, f"seed={seed}"])
    source = command.find(scored, SCORED_IN, "ual elicit")
    from ual_ray.steps import Session, smooth_step
    from ual_ray.workspace import Workspace

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
    from ual_ray import preflight

    config = command.load(overrides, config_file)
    source = command.find(smoothed, "smoothed.parquet", "ual smooth")
    rows = command.find(validation, ROWS_IN, "ual elicit") if validation else None
    if dry:
        from ual_ray.report.dry_run import show
        from ual_ray.train.dry_run import dry_run

        preflight.check_train(config.train)
        show(dry_run(config, source, gpu), make_console())
        return
    preflight.check_validated(config.train, rows is not None)
    preflight.check(config, {"train"})
    with command.session(config, out, force, verbose, "train") as session:
        from ual_ray.steps import train_step

        train_step(session, out.name, source, rows, command.at(out))


@app.command()
def evaluate(
    rows: Annotated[Path, typer.Argument(help="Canonical rows, or the --out of `ual elicit`; the test split is used.")],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Model to evaluate: directory, hub name, or 'demo'.")] = "demo",
    name: Annotated[str | None, typer.Option(help="What the report calls it; the directory's name by default.")] = None,
    out: Out = Path("evaluated"),
    config_file: ConfigFile = None,
    force: Again = False,
    verbose: Verbose = False,
) -> None:
    """Stage 4: NLL and exact match of one model on the test split; OUT/predictions and OUT/figures.json."""
    from ual_ray import preflight

    config = command.load([*(overrides or []), f"model={model}"], config_file)
    source = command.find(rows, ROWS_IN, "ual elicit")
    preflight.check(config, {"evaluate"})
    with command.session(config, out, force, verbose, "evaluate") as session:
        from ual_ray.steps import evaluate_step

        folder = Path(model)
        title = name or (folder.parent.name if folder.name == "model" else folder.name)
        evaluate_step(session, title, model, source, command.at(out))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Outputs of `ual run` or of `ual evaluate`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write report.md here too, and log it to MLflow here.")
    ] = None,
) -> None:
    """Stage 5: the newest figures of every model in the folders, side by side."""
    from ual_ray.pipeline import report_on
    from ual_ray.workspace import LOG_FILE

    if out is None:
        report_on(folders, None, make_console())
        return
    with command.terminal(out / LOG_FILE, verbose=False) as console:
        report_on(folders, out, console)


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
    from ual_ray.ui import serve

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
        Console(stderr=True).print(f"[bold red]error:[/bold red] {command.escape(error)}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR_EXIT_CODE)
