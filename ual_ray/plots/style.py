"""The look of every plot, and plots as inline SVG for the HTML pages; what these share: templates, numbers, page.css.

A plot is one phone screen wide, and more panels make it taller: its text is legible at 400 pixels. Names of arms, sources and
tokens come from data; they are drawn as they are, never as markup or formulas.
"""

import io
import re
import threading
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ual_ray.formatting import MISSING, count, duration, number, percent, share, shorten

# Inches; 1 inch is 72 units of the SVG.
WIDTH = 5.5
LONGEST_NAME = 26
RASTER_DPI = 130
LEGEND_ROW = 0.22

# The colours of a light page, and the variables of page.css by which a page in dark mode replaces them.
INK, MUTED, LINE = "#1b1f24", "#636b75", "#e2e5e9"
TONES = ("#2460a7", "#a75a00", "#2f7d4f", "#7a4aa0", "#b03060", "#007d8a")
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"} | {tone: f"tone{number}" for number, tone in enumerate(TONES)}

# Untyped, as the keys are those of the installed matplotlib.
STYLE: Any = {
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# matplotlib's settings are those of the whole process, and trainings that end side by side draw at the same time.
_drawing = threading.RLock()
Parameters = ParamSpec("Parameters")
Drawn = TypeVar("Drawn")
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
REFERENCE = re.compile(r"#([\w.-]+)")
COLOUR = re.compile(r"#[0-9a-f]{6}")
FONT_FAMILY = re.compile(r"; font-family: [^;]*")


def styled(draw: Callable[Parameters, Drawn]) -> Callable[Parameters, Drawn]:
    """Decorate a function that draws: one at a time, in the style of every plot, with its panels laid out."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Drawn:
        with _drawing, rc_context(STYLE):
            found = draw(*args, **kwargs)
            if isinstance(found, Figure) and (layout := found.get_layout_engine()):
                # A figure with a layout engine is drawn twice each time it is saved.
                layout.execute(found)
                found.set_layout_engine(None)
            return found

    return drawn


def grid_of(panels: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of so many panels (one at least), each `height` inches high; the rest of the last row stays empty."""
    rows = max(1, -(-panels // columns))
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[max(1, panels) :]:
        empty.set_axis_off()
    return figure, axes[: max(1, panels)]


def legend(figure: Figure, handles: dict[str, Any], columns: int = 2) -> None:
    """Put a legend below the panels; a figure with one name needs none."""
    if len(handles) > 1:
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * -(-len(handles) // columns))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def line_style(number: int) -> dict[str, Any]:
    """Give the colour of the n-th name, from 0, and the style of its line, which tells names of one colour apart."""
    rounds, tone = divmod(number, len(TONES))
    return {"color": TONES[tone], "linestyle": ("-", "--", ":")[rounds % 3]}


def readable(name: str, longest: int = LONGEST_NAME) -> str:
    """Write a name of the data for a plot: shortened, on one line, without control characters."""
    shown = shorten("".join(mark if mark.isprintable() else "␣" for mark in name), longest)
    # matplotlib leaves names that begin with an underscore out of a legend.
    return f"\u200b{shown}" if shown.startswith("_") else shown


def to_svg(figure: Figure, label: str) -> str:
    """Turn a figure into an `<svg>` element for a page: no script, no address, colours and font those of the page.

    The same figure and label give the same text. label: what the plot shows, for readers who do not see it; it also keeps the
    ids of the plots of one page apart.
    """
    buffer = io.StringIO()
    with _drawing, rc_context({"svg.fonttype": "none", "svg.hashsalt": label}), warnings.catch_warnings():
        # The reader's browser has other fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, dpi=RASTER_DPI, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314  # written by matplotlib
    for child in root.findall(f"{SVG}metadata"):
        root.remove(child)
    for parent in root.iter(f"{SVG}defs"):
        for child in parent.findall(f"{SVG}style"):
            parent.remove(child)
    used = {name for element in root.iter() for value in element.attrib.values() for name in REFERENCE.findall(value)}
    for element in root.iter():
        _localise(element, used)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": label,
        "class": "plot",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _localise(element: ElementTree.Element, used: set[str]) -> None:
    """Take out of an element what HTML does not need: namespaces, unused ids, the font; name its colours by variables."""
    element.tag = element.tag.removeprefix(SVG)
    element.tail = None
    if element.tag != "text" and element.text and not element.text.strip():
        element.text = None
    kept = {key.removeprefix(XLINK): value for key, value in element.attrib.items() if key != "id" or value in used}
    if "style" in kept:
        kept["style"] = COLOUR.sub(
            lambda x: f"var(--{VARIABLES[x[0]]})" if x[0] in VARIABLES else x[0], FONT_FAMILY.sub("", kept["style"])
        )
    element.attrib = kept


def make_environment(folder: Path) -> Environment:
    """Read templates from `folder` and from here; all text is escaped, and an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, share=share, count=count, percent=percent, duration=duration, code=code, together=together
    )
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
