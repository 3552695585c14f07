"""The commands. No maths and no Ray in here: what a command needs is imported inside it, so that `ual --help` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ual_ray import settings
from ual_ray.config import DEMO
from ual_ray.errors import USER_ERROR_EXIT_CODE, UserError
from ual_ray.quiet import SIGTERM_EXIT_CODE, end_on_sigterm, ended_by_sigterm, make_console, quiet, tail

if TYPE_CHECKING:
    from ual_ray.config import Config
    from ual_ray.steps import Place, Session

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

    config = _load(arguments, config_file)
    stages = _check_stages(force or [])
    workspace = Workspace(_absolute(Path(config.output)))
    preflight.check(config)
    workspace.check_owner(config)
    with _terminal(workspace.log_file, verbose) as console:
        from ual_ray import pipeline

        arms = ", ".join(config.arms)
        console.print(f"data {config.data.path}, model {config.model}, arms {arms} -> {config.output}", highlight=False)
        pipeline.run(config, console, workspace, stages)
        uri = config.tracking.uri
        where = settings.redact_uri(uri) if uri else f"`ual ui --output {_short(workspace.root)}`"
        console.print(f"\nreport: {_short(workspace.root / 'report' / pipeline.REPORT_FILE)}; MLflow: {where}", highlight=False)


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

    config = _load([*(overrides or []), f"data.path={data}"], config_file)
    preflight.check(config, {"elicit"})
    with _session(config, out, force, verbose, "elicit") as session:
        from ual_ray.steps import elicit_step
        from ual_ray.workspace import point_to

        root = _absolute(out)
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
    config = _load(overrides, None)
    source = _find(scored, SCORED_IN, "ual elicit")
    from ual_ray.inspection import inspect_scores

    inspect_scores(config, source, labels, _absolute(html) if html else None, make_console())


@app.command()
def preview(
    data: Annotated[str, typer.Argument(help="File, folder, cloud address or hub name of the rows, or 'demo'.")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows to show.")] = 3,
    config_file: ConfigFile = None,
) -> None:
    """Show what the elicitor will read, and which tokens will be trained on, before anything runs."""
    config = _load([*(overrides or []), f"data.path={data}"], config_file)
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
    source = _find(scored, SCORED_IN, "ual elicit")
    from ual_ray.steps import Session, smooth_step
    from ual_ray.workspace import Workspace

    session = Session(config, make_console(), None, frozenset({"smooth"} if force else ()))
    with Workspace(_absolute(out)).held():
        smooth_step(session, out.name, config.arms["ual"], source, _at(out))


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

    config = _load(overrides, config_file)
    source = _find(smoothed, "smoothed.parquet", "ual smooth")
    rows = _find(validation, ROWS_IN, "ual elicit") if validation else None
    if dry:
        from ual_ray.report.dry_run import show
        from ual_ray.train.dry_run import dry_run

        preflight.check_train(config.train)
        show(dry_run(config, source, gpu), make_console())
        return
    preflight.check_validated(config.train, rows is not None)
    preflight.check(config, {"train"})
    with _session(config, out, force, verbose, "train") as session:
        from ual_ray.steps import train_step

        train_step(session, out.name, source, rows, _at(out))


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

    config = _load([*(overrides or []), f"model={model}"], config_file)
    source = _find(rows, ROWS_IN, "ual elicit")
    preflight.check(config, {"evaluate"})
    with _session(config, out, force, verbose, "evaluate") as session:
        from ual_ray.steps import evaluate_step

        folder = Path(model)
        title = name or (folder.parent.name if folder.name == "model" else folder.name)
        evaluate_step(session, title, model, source, _at(out))


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
    with _terminal(out / LOG_FILE, verbose=False) as console:
        report_on(folders, out, console)


@app.command(name="config")
def show_config(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...")] = None,
    config_file: ConfigFile = None,
) -> None:
    """Print the resolved configuration with a comment on every key; it can be saved and given to --config."""
    typer.echo(settings.dump(_load(arguments, config_file)), nl=False)


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

    config = _read(arguments, config_file)
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
        Console(stderr=True).print(f"[bold red]error:[/bold red] {_escape(error)}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR_EXIT_CODE)


def _load(arguments: list[str] | None, config_file: Path | None) -> Config:
    """Read the configuration and the accelerate file it names, with paths that hold in every process of this machine."""
    return _with_accelerate_config(_with_absolute_paths(_read(arguments, config_file)))


def _read(arguments: list[str] | None, config_file: Path | None) -> Config:
    """Read [CONFIG] [KEY=VALUE]...: the first argument without '=' is the file."""
    items = list(arguments or [])
    if items and "=" not in items[0]:
        if config_file is not None:
            raise UserError("two configuration files were given", value=f"{items[0]} and --config {config_file}")
        config_file = Path(items.pop(0))
    return settings.load(config_file, items)


def _with_absolute_paths(config: Config) -> Config:
    """Ray's workers have working directories of their own: local models and files get paths that hold there too."""
    given = config.elicit.model_dump(include={"model", "adapter", "embedding_model", "templates", "calibrate_with"})
    elicit = config.elicit.model_copy(update={key: _absolute_name(name) for key, name in given.items() if name})
    data = config.data.model_copy(update={"path": _absolute_name(config.data.path)})
    storage = config.train.storage
    if storage and "://" not in storage:
        storage = str(_absolute(Path(storage)))
    train = config.train.model_copy(update={"storage": storage})
    return config.model_copy(update={"model": _absolute_name(config.model), "elicit": elicit, "data": data, "train": train})


def _with_accelerate_config(config: Config) -> Config:
    """Put the settings of train.accelerate_config in the place of its name: what it says counts, not where it lies."""
    if config.train.accelerate_config is None:
        return config
    from ual_ray.train.accelerate_config import read_accelerate_config

    train = read_accelerate_config(Path(config.train.accelerate_config).expanduser(), config.train)
    return config.model_copy(update={"train": train.model_copy(update={"accelerate_config": None})})


def _absolute_name(name: str) -> str:
    return str(_absolute(Path(name))) if name != DEMO and Path(name).expanduser().exists() else name


def _check_stages(force: list[str]) -> frozenset[str]:
    from ual_ray.workspace import STAGES

    for name in force:
        if name not in STAGES:
            raise UserError("--force names no stage", value=name, legal=", ".join(STAGES))
    return frozenset(force)


@contextmanager
def _session(config: Config, out: Path, force: bool, verbose: bool, stage: str) -> Iterator[Session]:
    """Hold the folder, the terminal and the MLflow store for a single stage."""
    from ual_ray.workspace import LOG_FILE, Workspace

    out = _absolute(out)
    with Workspace(out).held(), _terminal(out / LOG_FILE, verbose) as console:
        from ual_ray.steps import Session
        from ual_ray.tracking import Tracker

        session = Session(config, console, Tracker(config.tracking, out), frozenset({stage} if force else ()))
        with session.cluster:
            yield session
        session.say_failures(out / LOG_FILE)


@contextmanager
def _terminal(log_file: Path, verbose: bool) -> Iterator[Console]:
    """Give a console; keep other output in the log unless it is asked for; explain a crash by the log's last lines."""
    if verbose:
        yield make_console()
        return
    failure: BaseException | None = None
    with quiet(log_file) as console:
        console.print(f"log of Ray, vLLM and transformers: {_short(log_file)}", highlight=False)
        try:
            yield console
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            import logging

            logging.getLogger(__name__).exception("the command failed")
            failure = error
    if failure is not None:
        if (user_error := _user_error_in(failure)) is not None:
            raise user_error
        Console(stderr=True).print(
            f"[bold red]failed:[/bold red] {type(failure).__name__}: {_escape(failure)[:500]}\n\n"
            f"[dim]{_escape(tail(log_file))}[/dim]\n\nthe whole log: {log_file}",
            highlight=False,
        )
        raise typer.Exit(1) from failure


def _user_error_in(error: BaseException) -> UserError | None:
    """Find the user's mistake that a Ray worker reported, wrapped in Ray's own errors."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(str(seen).rsplit("UserError: ", 1)[-1])
        workers = getattr(seen, "worker_failures", None) or {}
        seen = next(iter(workers.values()), None) or getattr(seen, "cause", None) or seen.__cause__
    return None


def _at(folder: Path) -> Place:
    return lambda _: _absolute(folder)


def _absolute(path: Path) -> Path:
    """Name a path so that Ray's workers, which may have another working directory, find it too."""
    return path.expanduser().absolute()


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _find(path: Path, inside: str, made_by: str) -> Path:
    """Find a stage's result in the folder that the stage was given, in its newest part, or take the path itself."""
    from ual_ray.preflight import check_input
    from ual_ray.workspace import newest

    path = _absolute(path)
    found = next(
        (place for place in (path / inside, newest(path) / inside, newest(path / "elicit") / inside) if place.exists()), path
    )
    check_input(found, made_by)
    return found


def _escape(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))
