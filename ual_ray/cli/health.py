"""Before a run: check the machine and its surroundings."""

from __future__ import annotations

from typing import Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Overrides, load
from ual_ray.run.terminal import make_console

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def doctor(
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check versions, Ray, GPUs, memory, disk, MLflow and the hub for a configuration. Exit status 1: there are errors.

    Every finding that is not ok has a fix. Starts no cluster and downloads nothing; tokens are named, not shown.
    """
    config = load(config_file, overrides)
    from json import dumps

    from rich.markup import escape

    from ual_ray.doctor.checks import CHECKS, SECONDS
    from ual_ray.doctor.findings import examine

    findings = examine(config, CHECKS, SECONDS)
    errors = sum(finding.status == "error" for finding in findings)
    if json:
        typer.echo(dumps({"errors": errors, "findings": [finding.to_dict() for finding in findings]}, indent=2))
        raise typer.Exit(int(errors > 0))
    console = make_console()
    for finding in findings:
        shown = finding.to_dict()
        style = STYLES[finding.status]
        text = escape(str(shown["text"]))
        console.print(f"[{style}]{finding.status:<8}[/{style}] {finding.check:<10} {text}", highlight=False)
        if shown["fix"]:
            console.print(f"{'':<19} fix: {escape(str(shown['fix']))}", highlight=False)
    warnings = sum(finding.status == "warning" for finding in findings)
    console.print(f"{len(findings)} findings, {warnings} warnings, {errors} errors", highlight=False)
    raise typer.Exit(int(errors > 0))
