"""Before a run: check the machine and its surroundings, and plan what the run takes."""

from pathlib import Path
from typing import Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Overrides, load, output_file
from ual_ray.formatting import plural
from ual_ray.run.terminal import absolute, make_console

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def complete_rate(incomplete: str) -> list[str]:
    """List the rates that start with `incomplete`, for the shell's completion."""
    from ual_ray.plan.rates import RATES

    return [f"{name}=" for name in RATES if name.startswith(incomplete)]


def doctor(
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check versions, Ray, GPUs, memory, disk, data, models, MLflow and the hub for a configuration. Exit status 1: errors.

    Every finding that is not ok has a fix. Starts no cluster and downloads no model; tokens are named, not shown.
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
    counted = f"{plural(len(findings), 'finding')}, {plural(warnings, 'warning')}, {plural(errors, 'error')}"
    console.print(counted, highlight=False, markup=False)
    raise typer.Exit(int(errors > 0))


def plan(
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    rows: Annotated[
        int | None, typer.Option(min=1, max=10**15, metavar="N", help="Rows to score; those of the data by default.")
    ] = None,
    trial: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Output of a short run, whose measured rates count; may be repeated."),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RATE=NUMBER",
            help="A rate that you measured, such as elicit.rows_per_second=2, in place of the trial's; may be repeated. An "
            "unknown one prints the list.",
            autocompletion=complete_rate,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated failures.")] = 0,
    rayjob: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the run as a RayJob for KubeRay.")] = None,
) -> None:
    """Plan a run: calls, tokens, hours, money, memory, and how many actors are worth it. Calls no model.

    Times come from what a trial measured, and are not given where nothing was. Scoring is also simulated event by event, with
    the failures of --rate failures_per_actor_hour.
    """
    config = load(config_file, overrides)
    from ual_ray.data.peek import peek
    from ual_ray.elicit.stage import expected_rows
    from ual_ray.errors import UserError
    from ual_ray.plan.outline import outline, show
    from ual_ray.plan.rates import Trial, parse_rates, read_trial

    manifest = output_file(rayjob, "--rayjob")
    measured = Trial()
    for folder in trial or []:
        measured.update(read_trial(absolute(folder), config.train.num_workers, config.engine.max_actors))
    measured.rates |= parse_rates(rate or [])
    seen = peek(config.data)
    if (number := rows or expected_rows(config, seen)) is None:
        raise UserError("--rows is missing: the size of the data is not known", got=config.data.path, fix="give --rows N")
    show(outline(config, seen, number, measured, seed), measured.notes, make_console())
    if manifest is not None:
        from ual_ray.plan.rayjob import write_rayjob

        elsewhere = write_rayjob(config, manifest)
        typer.echo(f"RayJob: {rayjob}")
        if elsewhere:
            typer.echo(f"note: the pods need these paths as well: {', '.join(elsewhere)}")
