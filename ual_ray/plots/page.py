"""What the HTML pages share: how their templates are read, how they write figures, and their style (page.css)."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ual_ray.formatting import MISSING, count, duration, number, share


def make_environment(folder: Path) -> Environment:
    """Read templates from `folder` and from here; what rows say is escaped, and a name that does not exist is an error."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, share=share, count=count, duration=duration)
    environment.globals.update(MISSING=MISSING)
    return environment
