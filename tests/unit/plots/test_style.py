"""Plots as SVG in a page: names from data stay text, nothing is loaded or run, the same figure gives the same text."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from ual_ray.plots.intervals import Interval, Panel, draw
from ual_ray.plots.style import TONES, code, readable, styled, to_svg
from ual_ray.plots.training import alpha_by_arm, uncertainty_by_source

UNTRUSTED = '<script>1</script>&"$x^2$'


@pytest.mark.parametrize(
    "figure",
    [
        lambda: uncertainty_by_source({UNTRUSTED: [1, 2], "_b": [3, 4]}),
        lambda: alpha_by_arm({UNTRUSTED: [0.1, 0.2], "_b": [0.1]}),
        lambda: draw([Panel(UNTRUSTED, [Interval(UNTRUSTED, 1.0, 0.5, 1.5), Interval("_b", 1.0, None, None)], 0.0)]),
    ],
    ids=["histogram", "lines", "tick labels"],
)
def test_a_name_is_text_and_no_markup_or_formula(figure: Any, read_page: Any) -> None:
    found = read_page(to_svg(figure(), f"plot of {UNTRUSTED}"))
    assert "script" not in {tag for tag, _ in found.tags}
    assert UNTRUSTED in found.text
    assert "_b" in found.text, "a name with an underscore has its place in the legend"
    assert found.tags[0][1]["aria-label"] == f"plot of {UNTRUSTED}"


def test_nothing_is_loaded_and_no_address_is_left() -> None:
    svg = to_svg(uncertainty_by_source({"a": [1, 2]}), "a plot")
    assert svg.startswith("<svg viewBox=")
    assert not re.search(r"https?:|xmlns|<metadata|<style|DOCTYPE|font-family", svg)
    assert set(re.findall(r"url\((.)", svg)) <= {"#"}


def test_colours_are_those_of_the_page() -> None:
    svg = to_svg(uncertainty_by_source({"a": [1, 2], "b": [1, 2]}), "a plot")
    assert {"var(--tone0)", "var(--tone1)", "var(--ink)", "var(--muted)", "var(--line)"} <= set(
        re.findall(r"var\([^)]*\)", svg)
    )
    assert not re.search(r"#[0-9a-f]{6}\b", svg)


@pytest.mark.slow
def test_the_same_figure_gives_the_same_text_and_plots_share_no_ids() -> None:
    def ids(svg: str) -> set[str]:
        return set(re.findall(r'\bid="([^"]*)"', svg))

    def make() -> Any:
        return draw([Panel("t", [Interval("a", 1.0, 0.5, 1.5)], 0.0)])

    first, again, other = to_svg(make(), "one"), to_svg(make(), "one"), to_svg(make(), "other")
    assert first == again
    assert ids(first) and not ids(first) & ids(other)
    used = set(re.findall(r'href="#([^"]*)"', first)) | set(re.findall(r"url\(#([^)]*)\)", first))
    assert ids(first) == used


def test_a_plot_is_drawn_once_each_time_it_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Figure] = []
    draw_figure = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda figure, *rest: (drawn.append(figure), draw_figure(figure, *rest))[1])
    figure = uncertainty_by_source({"a": [1, 2], "b": [1, 2]})
    to_svg(figure, "a plot")
    assert drawn == [figure]
    figure.savefig(tmp_path / "plot.png")
    assert drawn == [figure, figure]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a", "a"), ("x" * 40, "x" * 25 + "…"), ("a\x00\nb\x1b", "a␣␣b␣"), ("_a", "\u200b_a"), ("$a$", "$a$"), ("", "")],
)
def test_names_are_written_on_one_short_line(name: str, shown: str) -> None:
    assert readable(name) == shown


def test_control_characters_make_no_invalid_svg() -> None:
    assert "a␣b" in to_svg(uncertainty_by_source({"a\x00b": [1], "c": [1]}), "a plot")


def test_more_sources_than_colours_are_counted_together() -> None:
    figure = uncertainty_by_source({f"s{n}": [n + 1, 0] for n in range(9)})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(TONES) + 1
    assert labels[0] == "s8 (9)" and labels[-1] == "3 other sources (6)"
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 45


@pytest.mark.slow
def test_plots_that_are_drawn_at_the_same_time_keep_their_style_and_leave_none_behind() -> None:
    begun, overlapping, ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[bool] = []

    @styled
    def first() -> None:
        begun.set()
        overlapping.wait(0.3)
        seen.append(rcParams["text.parse_math"])

    @styled
    def second() -> None:
        overlapping.set()
        ended.wait(5)
        seen.append(rcParams["text.parse_math"])

    def draw_first() -> None:
        first()
        ended.set()

    def draw_second() -> None:
        begun.wait(5)
        second()

    threads = [threading.Thread(target=draw_first), threading.Thread(target=draw_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [False, False]
    assert rcParams["text.parse_math"] is True, "as matplotlib has it"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("set `map: none`, or `<b>`", "set <code>map: none</code>, or <code>&lt;b&gt;</code>"),
        ("one ` alone & <b>", "one ` alone &amp; &lt;b&gt;"),
    ],
)
def test_what_stands_in_backticks_is_code_and_nothing_else_is_markup(text: str, html: str) -> None:
    assert code(text) == html
