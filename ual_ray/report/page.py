"""A run's story as one self-contained HTML page: no scripts, nothing loaded from elsewhere, charts as inline SVG.

What rows, names and configurations say is hostile: everything is escaped by the template, and the page's own policy forbids
scripts.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template

from ual_ray.config import BASE
from ual_ray.plots.page import make_environment
from ual_ray.report import charts
from ual_ray.report.comparison import Comparison, groups_of
from ual_ray.report.findings import Findings, Judged, judged_rates, reliability_of
from ual_ray.report.page_data import Arm, Story
from ual_ray.report.table import difference_label, difference_text, models, p_text, rate_text
from ual_ray.stats.metrics import metric_of

TEMPLATE = "page.html.j2"
# Colours of the page; names beyond them begin again.
TONES = 6
MAX_SOURCES = 12


@dataclass(frozen=True)
class Forest:
    """The comparisons on one metric of one benchmark, on one scale; `better` says to which side."""

    benchmark: str
    label: str
    better: str
    primary: bool
    rows: list[tuple[Comparison, charts.Span]]


def to_html(story: Story) -> str:
    """Draw the page."""
    findings = story.findings
    elicited = story.elicit.figures if story.elicit else {}
    return _template().render(
        story=story,
        elicited=elicited,
        findings=findings,
        primary=[entry for entry in findings.comparisons.entries if entry.primary] if findings else [],
        uncertainty=charts.histogram(_largest(elicited.get("histograms") or {}), 1.0, "Uncertainty of the rows", "uncertainty"),
        tones={name: tone % TONES for tone, name in enumerate(_largest(elicited.get("histograms") or {}))},
        arms=[(arm, alphas(arm), by_bin(arm, story.arms)) for arm in story.arms],
        losses=losses(story.arms),
        table=models(findings) if findings and findings.figures else None,
        forests=forests(findings) if findings else [],
        judged=judged(findings) if findings else [],
        calibration=calibration(findings) if findings else [],
        clusters=cluster_image(story.cluster_points),
    )


@cache
def _template() -> Template:
    environment = make_environment(Path(__file__).parent)
    environment.globals.update(
        TONES=TONES,
        BASE=BASE,
        difference_text=difference_text,
        p_text=p_text,
        rate_text=rate_text,
        metric_of=metric_of,
    )
    return environment.get_template(TEMPLATE)


def _largest(histograms: dict[str, list[int]]) -> dict[str, list[int]]:
    ordered = sorted(histograms.items(), key=lambda item: -sum(item[1]))
    return dict(ordered[:MAX_SOURCES])


def alphas(arm: Arm) -> charts.Chart | None:
    """Draw the alphas of an arm; none where every row has the same one, which a sentence says better."""
    if sum(rows > 0 for rows in arm.counts) < 2:
        return None
    return charts.histogram({arm.name: arm.counts}, arm.top, f"Label smoothing of {arm.name}", "alpha")


def losses(arms: list[Arm]) -> charts.Chart | None:
    """Draw the unsmoothed validation NLL of all arms; the training NLL where nothing was validated."""
    trained = [(arm, tone % TONES) for tone, arm in enumerate(arms) if arm.training is not None]
    measured = [(arm.name, tone, arm.training.validation, True) for arm, tone in trained if arm.training]
    label = "Unsmoothed NLL of the validation rows"
    if not any(len(curve[2]) for curve in measured):
        measured = [(arm.name, tone, arm.training.train, False) for arm, tone in trained if arm.training]
        label = "Unsmoothed NLL of the training rows"
    return charts.line_chart(measured, label, "optimizer step", "NLL, nats per token")


def by_bin(arm: Arm, arms: list[Arm]) -> charts.Chart | None:
    """Draw the training NLL of an arm by uncertainty bin, on one scale for all arms."""
    if arm.training is None or not arm.training.by_bin:
        return None
    every = [point for other in arms if other.training for points in other.training.by_bin.values() for point in points]
    edges = arm.training.edges
    curves = []
    for number_of, points in arm.training.by_bin.items():
        bounds = f", {edges[number_of - 1]:.2f} to {edges[number_of]:.2f}" if number_of < len(edges) else ""
        curves.append((f"bin {number_of}{bounds}", (number_of - 1) % TONES, points, False))
    return charts.line_chart(
        curves, f"Training NLL of {arm.name} by uncertainty", "optimizer step", "NLL, nats per token", every
    )


def forests(findings: Findings) -> list[Forest]:
    """Place the comparisons, each group on a scale of its own."""
    found = []
    for group in groups_of(findings.comparisons):
        placed = charts.spans([(entry.ci_low, entry.difference, entry.ci_high) for entry in group])
        first = group[0]
        better = {"lower": "left", "higher": "right"}[metric_of(first.metric).direction or "lower"]
        rows = list(zip(group, placed, strict=True))
        found.append(Forest(first.benchmark, difference_label(first.metric), better, first.primary, rows))
    return found


def judged(findings: Findings) -> list[tuple[Judged, charts.Span | None]]:
    """Place the length-controlled win rates (the raw ones where there are none) on a line from 0 to 100."""
    found: list[tuple[Judged, charts.Span | None]] = []
    for entry in judged_rates(findings.win_rates):
        rate = entry.controlled if entry.controlled.value is not None else entry.raw
        if rate.value is None or rate.low is None or rate.high is None:
            found.append((entry, None))
        else:
            found.append((entry, charts.Span(rate.low, rate.high, rate.value, 50.0)))
    return found


def calibration(findings: Findings) -> list[tuple[str, dict[str, Any], charts.Chart | None]]:
    """Draw the reliability of every model's tokens before and after temperature scaling, beside its figures."""
    found = []
    for model, content in findings.calibration.items():
        curves = [
            (words, tone, reliability_of(content, kind))
            for tone, (kind, words) in enumerate({"raw": "as trained", "scaled": "temperature-scaled"}.items())
        ]
        chart = charts.reliability([(name, tone, [(x, y) for x, y, _ in points]) for name, tone, points in curves], model)
        found.append((model, content, chart))
    return found


def cluster_image(points: dict[str, Path]) -> str | None:
    """Draw the clusters of all models as a picture, as a data address; None where there are no points."""
    if not points:
        return None
    from ual_ray.plots.clusters import clusters

    loaded = {model: dict(np.load(file, allow_pickle=False)) for model, file in points.items()}
    buffer = io.BytesIO()
    clusters(loaded).savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
