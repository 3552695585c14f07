"""What the HTML pages share: how their templates are read, how they write figures, and their style (page.css)."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ual_ray.report.inspection_text import MISSING, count, duration, number, share


def make_environment() -> Environment:
    """Read templates from this folder; what rows say is escaped, and a name that does not exist is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, share=share, count=count, duration=duration)
    environment.globals.update(MISSING=MISSING)
    return environment
