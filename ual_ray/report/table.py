"""The comparison table: one row per figure, one column per model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from ual_ray.evaluate.metrics import Figure

LABELS = {
    "nll": "NLL per token (nats)",
    "nll_difference": "NLL, paired difference from",
    "exact_match_strict": "exact match, strict",
    "exact_match_flexible": "exact match, flexible",
}
ARROWS = {"lower": "↓", "higher": "↑"}
MISSING = "-"


@dataclass(frozen=True)
class Comparison:
    """Cells by row; `rows` holds (label, n, cells in the order of `models`)."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]

    def markdown(self) -> str:
        """Write the table as Markdown."""
        head = ["metric", "n", *self.models]
        lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---', '---:', *['---:'] * len(self.models)])} |"]
        lines += [f"| {' | '.join([label, n, *cells])} |" for label, n, cells in self.rows]
        return "\n".join(lines) + "\n"

    def rich(self, title: str) -> Table:
        """Draw the table for a terminal."""
        table = Table(title=title, title_justify="left")
        table.add_column("metric", no_wrap=True)
        table.add_column("n", justify="right")
        for model in self.models:
            table.add_column(model, justify="right", no_wrap=True)
        for label, n, cells in self.rows:
            table.add_row(label, n, *cells)
        return table

    def columns(self) -> dict[str, list[str]]:
        """Give the table by column, as MLflow logs it."""
        by_model = {model: [cells[index] for _, _, cells in self.rows] for index, model in enumerate(self.models)}
        return {"metric": [row[0] for row in self.rows], "n": [row[1] for row in self.rows], **by_model}


def compare(results: Mapping[str, Sequence[Figure]], alphas: Mapping[str, float]) -> Comparison:
    """Put the figures of all models side by side, each with its standard error; `alphas` holds arms' mean alphas."""
    models = tuple(results)
    keys: dict[tuple[str, str], int] = {}
    for figures in results.values():
        for figure in figures:
            keys.setdefault((figure.metric, figure.source), figure.n)
    by_key = {model: {(figure.metric, figure.source): figure for figure in figures} for model, figures in results.items()}
    rows = []
    if alphas:
        cells = tuple(f"{alphas[model]:.3f}" if model in alphas else MISSING for model in models)
        rows.append(("mean alpha per training row", MISSING, cells))
    for key, n in sorted(keys.items(), key=lambda item: (list(LABELS).index(item[0][0]), item[0][1] != "overall", item[0][1])):
        found = [by_key[model].get(key) for model in models]
        direction = next(figure.direction for figure in found if figure is not None)
        joint = " " if key[0] == "nll_difference" else ", "
        name = LABELS[key[0]] + ("" if key[1] == "overall" else f"{joint}{key[1]}")
        rows.append((f"{name} {ARROWS[direction]}", str(n), tuple(cell(figure) for figure in found)))
    return Comparison(models, tuple(rows))


def cell(figure: Figure | None) -> str:
    """Write a value with its standard error, in percent for shares."""
    if figure is None:
        return MISSING
    scale, digits, unit = (100, 1, "%") if figure.direction == "higher" else (1, 3, "")
    error = "" if figure.standard_error is None else f" ± {scale * figure.standard_error:.{digits}f}"
    return f"{scale * figure.value:.{digits}f}{unit}{error}"
