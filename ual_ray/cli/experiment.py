"""Experiments: the arms of a configuration over several seeds, a pilot of them, and made-up data whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ual_ray.cli.arguments import Force, Overrides, Verbose, load
from ual_ray.cli.health import complete_rate
from ual_ray.errors import UserError
from ual_ray.run.terminal import absolute, make_console, short, terminal

if TYPE_CHECKING:
    from ual_ray.config import Config
    from ual_ray.run.output import Workspace

KNOWN_TRUTH = "known_truth"
CONFIG = Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file with the arms to compare.")]


def experiment(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help=f"Configuration file with the arms to compare, or '{KNOWN_TRUTH}'.",
            autocompletion=lambda: [KNOWN_TRUTH],
        ),
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it will cost and the smallest effect it can find. Calls no model.")
    ] = False,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RATE=NUMBER",
            help="Of a dry run: a rate in place of the measured one, such as price_per_device_hour=2.5; may be repeated.",
            autocompletion=complete_rate,
        ),
    ] = None,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Train every arm with several seeds over one elicitation, and test whether uncertainty helped.

    The keys of the section `experiment` set the seeds, and the sources of rows of every scenario; a verdict needs three
    seeds. Finished steps are not run again: for arms and seeds that are added later nothing is scored again. The report of a
    scenario is in output/SCENARIO/report.

    known_truth: made-up contexts with exactly known answer distributions, an oracle's uncertainty of which a share is
    permuted, and five arms (sft, constant, shuffled, inverted, ual) trained from random weights, to test whether the
    statistics find an effect where there is one, and only there. The keys are those of the section `known_truth`. Needs no
    GPU, Ray or MLflow.
    """
    from ual_ray.run.output import Workspace

    if what == KNOWN_TRUTH:
        if dry_run or force:
            raise UserError(
                f"{KNOWN_TRUTH} takes neither --dry-run nor --force", fix="leave them out, or give another output=..."
            )
        config = load(None, [f"output={KNOWN_TRUTH}", *(overrides or [])])
        workspace = Workspace(absolute(Path(config.output)))
        with workspace.held(), terminal(workspace.log_file, verbose) as console:
            from ual_ray.experiment.known_truth import run as run_known_truth

            run_known_truth(config.known_truth, workspace.root, lambda line: console.print(line, markup=False, highlight=False))
        return
    if not Path(what).is_file():
        raise UserError("there is no such experiment", got=what, expected=f"a configuration file, or '{KNOWN_TRUTH}'")
    config = load(Path(what), overrides)
    workspace = _checked(config)
    _caution(config)
    if dry_run:
        from ual_ray.experiment.forecast import print_forecast
        from ual_ray.plan.rates import parse_rates

        print_forecast(config, workspace.root, make_console(), parse_rates(rate or []))
        return
    _run(config, workspace, force=force, verbose=verbose)


def pilot(
    config_file: CONFIG,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=50, metavar="N", help="Number of rows to take.")] = 400,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Compare UAL with its shuffled control on a slice of the data, before you pay for all of it.

    Takes the first arm that uses uncertainty, adds the control that shuffles its alphas within sources and lengths, and
    trains both with three seeds, those of experiment.seeds first. Writes to `output`-pilot, where `ual experiment CONFIG
    --dry-run` finds how much the seeds differ.
    """
    from ual_ray.experiment.forecast import pilot_of

    config = pilot_of(load(config_file, overrides), rows)
    _run(config, _checked(config), force=force, verbose=verbose)


def _checked(config: Config) -> Workspace:
    import psutil

    from ual_ray import preflight
    from ual_ray.experiment.forecast import check_parallel, check_questions
    from ual_ray.experiment.scenarios import check_scenarios
    from ual_ray.run.output import Workspace

    preflight.check(config, all_sources=not any(config.experiment.scenarios.values()))
    check_questions(config)
    check_parallel(config, psutil.virtual_memory().available)
    check_scenarios(config)
    workspace = Workspace(absolute(Path(config.output)))
    workspace.check_owner(config)
    return workspace


def _caution(config: Config) -> None:
    from ual_ray.experiment.forecast import cautions

    for line in cautions(config):
        make_console().print(f"caution: {line}", style="yellow", highlight=False, markup=False)


def _run(config: Config, workspace: Workspace, *, force: bool, verbose: bool) -> None:
    from ual_ray.run import STAGES

    with terminal(workspace.log_file, verbose) as console:
        from ual_ray.experiment import arms
        from ual_ray.report.findings import REPORT_FOLDER
        from ual_ray.report.step import REPORT_FILE

        given = config.experiment
        seeds, names = ", ".join(map(str, given.seeds)), ", ".join(given.scenarios)
        console.print(
            f"arms {', '.join(config.arms)}; seeds {seeds}; scenarios {names} -> {config.output}", highlight=False, markup=False
        )
        for scenario in arms.run(config, console, workspace, frozenset(STAGES) if force else frozenset()):
            file = short(workspace.root / scenario / REPORT_FOLDER / REPORT_FILE)
            console.print(f"report of {scenario}: {file}", highlight=False, markup=False)
