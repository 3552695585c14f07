"""The whole pipeline on this machine or cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Force, Overrides, Verbose, load
from ual_ray.errors import UserError
from ual_ray.run import STAGES
from ual_ray.run.terminal import terminal

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
        from ual_ray.report.write import REPORT_FILE

        arms = ", ".join(config.arms)
        data, place = redact_uri(config.data.path), redact_uri(config.output)
        console.print(f"data {data}, model {config.model}, arms {arms} -> {place}", highlight=False, markup=False)
        pipeline.run(config, console, workspace, force)
        uri = config.tracking.uri
        where = redact_uri(uri) if uri else f"`ual ui {output.name()}`"
        file = output.name(REPORT_FOLDER, REPORT_FILE)
        console.print(f"\nreport: {file}; MLflow: {where}", highlight=False, markup=False)
