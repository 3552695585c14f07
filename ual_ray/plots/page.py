"""What the HTML pages share: the template environment, the formatting of numbers, and the style (page.css)."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ual_ray.formatting import MISSING, count, duration, number, share
from ual_ray.plots.style import TONES


def make_environment(folder: Path) -> Environment:
    """Read templates from `folder` and from here; all text is escaped, and an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, share=share, count=count, duration=duration)
    environment.globals.update(MISSING=MISSING, TONES=TONES)
    return environment
