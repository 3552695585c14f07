"""Look at data, scores and the configuration without running a stage."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ual_ray.cli.arguments import ConfigFile, Data, Overrides, find, load, output_file
from ual_ray.errors import UserError
from ual_ray.run.terminal import is_uri, make_console, terminal

if TYPE_CHECKING:
    from ual_ray.config import Config


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
        str,
        typer.Argument(
            metavar="SCORED", help="Output folder of `ual elicit` or `ual run`, or a Parquet file or folder; a path or a URI."
        ),
    ],
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV or JSONL file of (id, correct) labels, to measure how well each score predicts errors."
        ),
    ] = None,
    self_check: Annotated[
        int | None,
        typer.Option(
            "--self-check",
            metavar="N",
            help="Score N of the rows again, a fifth of them with another row's response, to measure how well each score "
            "finds these; needs no labels. Give the --config of the scores.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write; inspection.html next to the scores by default.")
    ] = None,
) -> None:
    """Report the quality of uncertainty scores: an HTML page, a summary on the terminal, and both in MLflow."""
    from ual_ray import columns as col
    from ual_ray.config.redact import redact_uri

    if is_uri(scored) and (html is None or self_check):
        raise UserError(
            "what is at a URI is only read" if self_check else "--html is missing: what is at a URI is only read",
            got=redact_uri(scored),
            fix="copy it to a local folder" if self_check else "give a local file, such as --html inspection.html",
        )
    checked = [] if self_check is None else [f"elicit.self_check={self_check}"]
    config = load(config_file, [*(overrides or []), *checked])
    source, page = find(scored, col.SCORED_FOLDER, "ual elicit"), output_file(html, "--html")
    if self_check:
        _self_check(config, source)
    from ual_ray.inspect.command import inspect_scores

    inspect_scores(config, source, labels, page, make_console())


def _self_check(config: Config, scored: Path) -> None:
    """Ask the elicitor about a few rows; the result is written next to the scores, where the report reads it."""
    from ual_ray import preflight
    from ual_ray.elicit.step import check_scored
    from ual_ray.run.precision import INFERENCE_FILE, with_inference_dtype
    from ual_ray.run.stage_cache import LOG_FILE
    from ual_ray.run.step import Session

    preflight.check_elicitor(config)
    with terminal(scored.parent / LOG_FILE, verbose=False) as console:
        # The folder of `ual elicit` or that of `ual run`, whose scores are a folder further down.
        output = next((place for place in scored.parents if (place / INFERENCE_FILE).exists()), scored.parent)
        config = with_inference_dtype(config, output, keep=False)
        session = Session(config, console, tracker=None, stages=frozenset({"elicit"}))
        with session.cluster:
            check_scored(session, scored)


def config(
    overrides: Overrides = None,
    config_file: ConfigFile = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of configuration files instead.")] = False,
) -> None:
    """Print the resolved configuration as YAML, with a comment on every key.

    The output is a valid file for --config.
    """
    if schema:
        if given := [*([f"--config {config_file}"] if config_file else []), *(overrides or [])]:
            fix = "leave them out; or leave out --schema, and the resolved configuration is printed"
            raise UserError("--schema prints what any configuration may have, without values", got=" ".join(given), fix=fix)
        import json

        from ual_ray.config import Config

        typer.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    from ual_ray.config.load import dump

    typer.echo(dump(load(config_file, overrides)), nl=False)
