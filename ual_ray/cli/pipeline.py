"""The whole pipeline on this machine or cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Force, Overrides, Verbose, load
from ual_ray.errors import UserError
from ual_ray.run import STAGES
from ual_ray.run.terminal import absolute, short, terminal


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
    from ual_ray.config.redact import redact_uri
    from ual_ray.run.output import Workspace

    if unknown := sorted(set(rerun or []) - set(STAGES)):
        raise UserError("--rerun: unknown stage", got=", ".join(unknown), expected=", ".join(STAGES))
    config = load(config_file, overrides)
    workspace = Workspace(absolute(Path(config.output)))
    preflight.check(config)
    workspace.check_owner(config)
    with terminal(workspace.log_file, verbose) as console:
        from ual_ray import pipeline
        from ual_ray.report.findings import REPORT_FOLDER
        from ual_ray.report.write import REPORT_FILE

        arms = ", ".join(config.arms)
        data = redact_uri(config.data.path)
        console.print(f"data {data}, model {config.model}, arms {arms} -> {config.output}", highlight=False, markup=False)
        pipeline.run(config, console, workspace, frozenset(stage for stage in STAGES if force or stage in (rerun or [])))
        uri = config.tracking.uri
        where = redact_uri(uri) if uri else f"`ual ui {short(workspace.root)}`"
        file = short(workspace.root / REPORT_FOLDER / REPORT_FILE)
        console.print(f"\nreport: {file}; MLflow: {where}", highlight=False, markup=False)
