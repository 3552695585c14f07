"""The whole pipeline on this machine, or as a job on a Ray cluster: submit, list, follow and stop jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Force, Overrides, Verbose, check_names, load
from ual_ray.errors import UserError
from ual_ray.run import STAGES
from ual_ray.run.terminal import make_console, terminal

if TYPE_CHECKING:
    from ual_ray.config import Config
    from ual_ray.mirror.output import Output
    from ual_ray.run import StageName
    from ual_ray.run.output import Workspace


def run(
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    force: Force = False,
    rerun: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help=f"Re-run one stage from scratch ({', '.join(STAGES)}); may be repeated.",
            autocompletion=lambda: list(STAGES),
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run the whole pipeline: elicit, smooth and train every arm, evaluate, report.

    Without a configuration it uses the defaults of `ual config`: the demo data and model.
    Finished stages are cached by a hash of their inputs and settings; an interrupted run resumes where it stopped.
    """
    from ual_ray import preflight
    from ual_ray.mirror.output import open_output
    from ual_ray.run.output import Workspace

    if unknown := sorted(set(rerun or []) - set(STAGES)):
        raise UserError("--rerun: unknown stage", got=", ".join(unknown), expected=", ".join(STAGES))
    config = load(config_file, overrides)
    output = open_output(config.output)
    preflight.check(config)
    with output.held() as root:
        _run(config, output, Workspace(root), frozenset(stage for stage in STAGES if force or stage in (rerun or [])), verbose)


def _run(config: Config, output: Output, workspace: Workspace, force: frozenset[StageName], verbose: bool) -> None:
    from ual_ray.config.redact import redact_uri

    workspace.check_owner(config)
    with terminal(workspace.log_file, verbose) as console:
        from ual_ray import pipeline
        from ual_ray.report.findings import REPORT_FOLDER
        from ual_ray.report.step import REPORT_FILE

        arms = ", ".join(config.arms)
        data, place = redact_uri(config.data.path), redact_uri(config.output)
        console.print(f"data {data}, model {config.model}, arms {arms} -> {place}", highlight=False, markup=False)
        pipeline.run(config, console, workspace, force)
        uri = config.tracking.uri
        where = redact_uri(uri) if uri else f"`ual ui {output.name()}`"
        file = output.name(REPORT_FOLDER, REPORT_FILE)
        console.print(f"\nreport: {file}; MLflow: {where}", highlight=False, markup=False)


Address = Annotated[str, typer.Option(metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="Address of the Ray job server.")]
Job = Annotated[str, typer.Argument(metavar="ID", help="Submission id of a job, as `ual jobs list` prints it.")]
LOCAL = "http://127.0.0.1:8265"

jobs = typer.Typer(no_args_is_help=True, help="List, follow and stop the jobs of a Ray cluster.")


def submit(
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    address: Address = LOCAL,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Give the job an environment variable of yours; may be repeated. Ray writes its value to a log on the nodes.",
        ),
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Submit another job although one with this configuration ended.")] = False,
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
) -> None:
    """Submit `ual run` to a Ray cluster as a job.

    The job gets the configuration, this package, and the data, prompt and label files that the configuration names. Its id
    follows from these: submitted again while it runs, its log is followed and no second job starts; once it has ended, --new
    starts another one, which continues from the output.
    """
    from ual_ray.config.load import load
    from ual_ray.jobs.submit import submit as submit_job

    config = load(config_file, overrides or [])
    check_names(config)
    raise typer.Exit(submit_job(config, address, make_console(), environment=env or (), new=new, wait=follow))


@jobs.command("list")
def list_jobs(address: Address = LOCAL) -> None:
    """List the submitted jobs, the newest last."""
    from rich.markup import escape
    from rich.table import Table

    from ual_ray.jobs.server import connect, describe, submitted

    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("job", "status", "started", "took", "output")
    for name in names:
        table.add_column(name, no_wrap=True)
    for job in submitted(connect(address)):
        facts = dict(describe(job))
        table.add_row(*(escape(facts.get(name, "")) for name in names))
    make_console().print(table if table.row_count else "no job was submitted to this cluster yet", highlight=False)


@jobs.command()
def status(job: Job, address: Address = LOCAL) -> None:
    """Print what is known of a job. Exit status 1: it failed or was stopped."""
    from ray.job_submission import JobStatus

    from ual_ray.jobs.server import connect, describe, find

    found = find(connect(address), job)
    for name, text in describe(found):
        make_console().print(f"{name:<12} {text}", markup=False, highlight=False)
    raise typer.Exit(int(found.status in (JobStatus.FAILED, JobStatus.STOPPED)))


@jobs.command()
def logs(
    job: Job,
    address: Address = LOCAL,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print the log until the job ends.")] = False,
) -> None:
    """Print the log of a job. With --follow, exit status 1: it failed or was stopped."""
    from ray.job_submission import JobStatus

    from ual_ray.jobs import server

    client, console = server.connect(address), make_console()
    if not follow:
        console.print(server.logs(client, job), end="", markup=False, highlight=False)
        return
    server.find(client, job)
    raise typer.Exit(int(server.follow(client, job, console) != JobStatus.SUCCEEDED))


@jobs.command()
def stop(job: Job, address: Address = LOCAL) -> None:
    """Stop a job, and wait until it has ended. Submitted again with --new, it continues from its output."""
    from ual_ray.jobs import server

    found = server.stop(server.connect(address), job)
    make_console().print(f"job {job}: {found.status.value}", highlight=False)
