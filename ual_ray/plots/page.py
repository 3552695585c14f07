"""What the HTML pages share: the template environment, the formatting of numbers, and the style (page.css)."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

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
    environment.filters.update(number=number, share=share, count=count, duration=duration, code=code, together=together)
    environment.globals.update(MISSING=MISSING, TONES=TONES)
    return environment


def code(text: str) -> Markup:
    """Escape a text, with what stands between two backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup().join(Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts))


def together(cell: str) -> str:
    """Let a line of a table's cell break before an interval or an error only."""
    return cell.replace(", ", ",\u00a0").replace("± ", "±\u00a0").replace(" of ", "\u00a0of\u00a0")
