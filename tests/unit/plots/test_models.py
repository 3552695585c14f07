"""Reliability diagrams and clusters: what is drawn where, and that odd input can be drawn at all."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import each_damage
from matplotlib.figure import Figure

from ual_ray.calibrate.metrics import summary
from ual_ray.config.files import sums_of, write_sums
from ual_ray.errors import UserError
from ual_ray.plots.calibration import clusters, label, read_points, reliability_diagrams
from ual_ray.plots.style import to_svg


def part(rows: int = 200, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    sure = random.uniform(size=rows)
    return summary(sure, random.uniform(size=rows) < sure)


def points(classes: int = 4, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(classes), 6)
    found = {
        "texts": np.array([" the", "\n", "$", "_a", "a very long token indeed"][:classes]),
        "classes": numbers,
        "pca": random.normal(size=(len(numbers), 2)),
    }
    if classes >= 3:
        three = numbers[numbers < 3]
        projected = random.normal(size=(len(three), 2))
        found |= {"mueller": projected, "mueller_classes": three, "mueller_templates": random.normal(size=(3, 2))}
    return found


def drawn(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


@pytest.mark.slow
def test_every_model_has_a_diagram_before_and_after_scaling() -> None:
    models = {name: {"raw": part(seed=seed), "scaled": part(seed=seed + 9)} for seed, name in enumerate(("sft", "ual"))}
    figure = reliability_diagrams(models)
    for axes, (name, parts) in zip(figure.axes, models.items(), strict=True):
        errors = [parts[kind]["ece_width"] for kind in ("raw", "scaled")]
        assert axes.get_title(loc="left") == f"{name}\nECE {errors[0]:.1%}, scaled {errors[1]:.1%}"
        _, *curves = axes.lines
        for curve, kind in zip(curves, ("raw", "scaled"), strict=True):
            bins = parts[kind]["reliability"]
            np.testing.assert_allclose(curve.get_ydata(), [right for right in bins["accuracy"] if right is not None])
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["as trained", "temperature-scaled"]
    assert drawn(figure)


@pytest.mark.slow
def test_what_was_not_scaled_has_one_curve() -> None:
    figure = reliability_diagrams({"base": {"raw": part(1), "scaled": None}, "odd": {"raw": None}})
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    assert figure.axes[1].get_title(loc="left") == "odd\nECE not measured"
    assert drawn(figure)


@pytest.mark.slow
def test_a_row_of_panels_per_model_with_one_colour_per_token() -> None:
    names = ("base", "sft", "constant", "ual")
    figure = clusters({name: points(seed=seed) for seed, name in enumerate(names)})
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == ["base: three tokens", "base: PCA", "sft: three tokens"]
    colours = {tuple(axes.collections[1].get_facecolor()[0]) for axes in figure.axes}
    assert len(colours) == 1
    # Three tokens and their templates on the left, all tokens on the right.
    assert [len(axes.collections) for axes in figure.axes] == [4, 4] * 4
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes] == [6] * 8
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["‘␣the’", "‘↵’", "‘$’", "‘\u200b_a’"]
    assert drawn(figure)


def test_points_are_pixels_in_an_svg() -> None:
    svg = to_svg(clusters({"base": points()}), "clusters")
    assert svg.count("<image ") == 2 and svg.count('href="data:image/png;base64,') == 2
    assert "a very" not in svg and "‘$’" in svg


def test_two_tokens_have_no_plane() -> None:
    figure = clusters({"base": points(2)})
    assert figure.axes[0].texts[0].get_text() == "fewer than three tokens"
    assert drawn(figure)


def test_more_tokens_than_colours_can_be_drawn() -> None:
    many = points(3) | {"classes": np.repeat(np.arange(25), 2), "pca": np.zeros((50, 2)), "texts": np.array(["x"] * 25)}
    assert drawn(clusters({"base": many}))


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" the", "‘␣the’"), ("\n", "‘↵’"), ("\t", "‘→’"), ("$", "‘$’"), ("_a", "‘\u200b_a’"), ("x" * 30, f"‘{'x' * 13}…’")],
)
def test_tokens_can_be_seen(text: str, shown: str) -> None:
    assert label(text) == shown


@pytest.mark.slow
def test_damaged_points_are_refused_by_name(tmp_path: Path) -> None:
    np.savez_compressed(file := tmp_path / "clusters.npz", **(before := points()))
    for _ in each_damage(file, flips=500):  # without a checksum; some of the bits have members left out
        with suppress(UserError):
            read_points(file)
    write_sums(tmp_path, sums_of([file]))
    assert all(np.array_equal(values, before[name]) for name, values in read_points(file).items())
    for _ in each_damage(file, flips=500):
        with pytest.raises(UserError, match=r"(?s)damaged.*clusters\.npz.*restore it from a copy, or remove"):
            read_points(file)
