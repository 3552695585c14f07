"""The `ual` command: the list of its commands, and its entry point."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import ual_ray
from ual_ray.cli import experiment, health, inspect, pipeline, stages, tracking
from ual_ray.errors import USER_ERROR_EXIT_CODE, UserError
from ual_ray.run.terminal import SIGTERM_EXIT_CODE, end_on_sigterm, ended_by_sigterm, user_error_in

COMMANDS = {
    "Pipeline": (pipeline.run, pipeline.submit),
    "Single stages": (stages.elicit, stages.smooth, stages.train, stages.evaluate, stages.judge, stages.report),
    "Data, scores and configuration": (inspect.preview, inspect.inspect, inspect.config),
    "Before a run": (health.doctor, health.plan),
    "Experiments": (experiment.experiment, experiment.pilot),
    "MLflow and model hubs": (tracking.ui, tracking.sync, tracking.promote, tracking.push),
}
RAY_TOKEN = Path.home() / ".ray" / "auth_token"
# Nothing is sent to the makers of libraries, unless the user sets these; vLLM's is turned off where its engine starts.
NO_USAGE_STATISTICS = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}

app = typer.Typer(name="ual", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")
for panel, functions in COMMANDS.items():
    for function in functions:
        app.command(rich_help_panel=panel)(function)
app.add_typer(pipeline.jobs, name="jobs", rich_help_panel="Pipeline")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ual {ual_ray.__version__}")
        raise typer.Exit


@app.callback()
def _ual(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Uncertainty-Aware Learning on Ray: score rows by uncertainty, smooth their labels, fine-tune, evaluate, report.

    Configuration keys are set in a YAML file (--config FILE) and by KEY=VALUE overrides; `ual config` lists them.
    """


def main(*command: str) -> None:
    """Run `ual` with the arguments `command`, then those of the process.

    A UserError, and a full disk, is one message and exit code USER_ERROR_EXIT_CODE, without a traceback.
    """
    end_on_sigterm()
    for name, value in NO_USAGE_STATISTICS.items():
        os.environ.setdefault(name, value)
    if RAY_TOKEN.is_file():
        # Ray makes a token on first use and then asks every client for it, but only a client in this mode sends it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        app([*command, *sys.argv[1:]], prog_name="ual")
    except SystemExit:
        if ended_by_sigterm():
            sys.exit(SIGTERM_EXIT_CODE)
        raise
    except Exception as error:
        if (told := error if isinstance(error, UserError) else user_error_in(error)) is None:
            raise
        from rich.console import Console
        from rich.markup import escape

        from ual_ray.config.redact import redact_uri

        text = redact_uri(str(told))
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(text)}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR_EXIT_CODE)
