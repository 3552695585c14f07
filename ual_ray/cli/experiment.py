"""Experiments on made-up data whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Out, Overrides, Verbose, load
from ual_ray.errors import UserError
from ual_ray.run.terminal import absolute, terminal

EXPERIMENTS = ("known_truth",)


def experiment(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=f"Experiment: {', '.join(EXPERIMENTS)}.", autocompletion=lambda: list(EXPERIMENTS)),
    ],
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    out: Out = Path("experiment"),
    verbose: Verbose = False,
) -> None:
    """Check the method on made-up data whose truth is known: does it find an effect where there is one, and only there?

    known_truth: contexts with exactly known answer distributions, an oracle's uncertainty of which a share is permuted, and
    five arms (sft, constant, shuffled, inverted, ual) trained from random weights. Prints the KL divergence of the truth from
    each model, and UAL's differences from the other arms over seeds. The keys are those of the section `experiment`.
    Finished trainings are read from OUT. Needs no GPU, Ray or MLflow. Writes OUT/known_truth.json, .md and .svg.
    """
    if name not in EXPERIMENTS:
        raise UserError("unknown experiment", got=name, expected=", ".join(EXPERIMENTS))
    config = load(config_file, overrides)
    from ual_ray.run.output import Workspace

    workspace = Workspace(absolute(out))
    with workspace.held(), terminal(workspace.log_file, verbose) as console:
        from ual_ray.experiment.known_truth import run

        run(config.experiment, workspace.root, lambda line: console.print(line, markup=False, highlight=False))
