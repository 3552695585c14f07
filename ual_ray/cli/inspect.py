"""Look at data, scores and the configuration without running a stage."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Data, Overrides, load
from ual_ray.cli.session import find
from ual_ray.run.terminal import absolute, make_console


def preview(
    data: Data,
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Number of rows to show.")] = 3,
) -> None:
    """Show the prompts of elicitation and the tokens that training uses, for the first rows.

    Reads tokenizers, but no model weights.
    """
    config = load(config_file, overrides, {"data.path": data})
    from ual_ray.elicit.estimators import make_estimators, requests_of
    from ual_ray.inspect.preview import preview as show

    show(config, rows, make_console(), partial(requests_of, make_estimators(config.elicit, config.seed)))


def inspect(
    scored: Annotated[
        Path, typer.Argument(metavar="SCORED", help="Output folder of `ual elicit` or `ual run`, or a Parquet file or folder.")
    ],
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV or JSONL file of (id, correct) labels, to measure how well each score predicts errors."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write; inspection.html next to the scores by default.")
    ] = None,
) -> None:
    """Report the quality of uncertainty scores: an HTML page, a summary on the terminal, and both in MLflow."""
    from ual_ray import columns as col

    config = load(config_file, overrides)
    source = find(scored, col.SCORED_FOLDER, "ual elicit")
    from ual_ray.inspect.command import inspect_scores

    inspect_scores(config, source, labels, absolute(html) if html else None, make_console())


def config(
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of configuration files instead.")] = False,
) -> None:
    """Print the resolved configuration as YAML, with a comment on every key.

    The output is a valid file for --config.
    """
    if schema:
        import json

        from ual_ray.config import Config

        typer.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    from ual_ray.config.load import dump

    typer.echo(dump(load(config_file, overrides)), nl=False)
