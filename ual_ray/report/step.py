"""Stage 5: the results of all stages compared, as the last step of a run and as a command."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ual_ray.config import BASE, TrackingConfig
from ual_ray.config.files import write_json, write_record, write_text
from ual_ray.formatting import percent
from ual_ray.report.caveats import RESULTS, absent_lines, guard_lines, notes, unanswered
from ual_ray.report.compare import compare_runs, make_findings
from ual_ray.report.findings import COMPARISON_FILE, FINDINGS_FILE, Findings, copied, regime_of, tried_before, without_primary
from ual_ray.report.gather import StageFolders
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.page import draw, to_html
from ual_ray.report.page_data import collect
from ual_ray.report.power import power_lines, power_title
from ual_ray.report.table import primary_of, sentence, tables
from ual_ray.run.step import STAGE_TAG, Session
from ual_ray.stats.alignment import Absent
from ual_ray.stats.bootstrap import INCONCLUSIVE, MIN_SEEDS
from ual_ray.stats.comparison import Comparison, Comparisons
from ual_ray.stats.primary import CHOSEN_AFTER, measure_of
from ual_ray.stats.results import metrics_of
from ual_ray.tracking.run import Run
from ual_ray.tracking.tracker import Tracker

REPORT_FILE = "report.md"
PAGE_FILE = "report.html"
NOTE = (
    "± is one standard error; [ ] is an interval over questions and, with several training seeds, over these. NLL is "
    "unsmoothed: smoothing costs it by construction, about alpha per easy token, so it does not show whether smoothing helps, "
    "and decides nothing. Adjusted: after removing a temperature and a smoothing floor, both fitted on validation rows of "
    "each model. The adjusted NLL tells what a model knows about the labels, not whether its stated probabilities are right "
    "as they are, which calibration tells. All models answer the same questions, and differences are paired by question. A "
    f"verdict of better or worse needs {MIN_SEEDS} training seeds. Primary measures are tested in their order, each only "
    "where those before it were conclusive for the arm, and are exploratory elsewhere; several arms and references are "
    "corrected for one another. Other verdicts are after Holm's correction over those between arms, and over those with the "
    "untrained model. Scaled: after dividing logits by a temperature fitted on validation rows, the baseline that smoothing "
    "has to beat."
)
ABSENT_TITLE = "Primary measures that could not be computed:"
JUDGED_TITLE = "Open-ended answers, win rate at equal lengths (above 50% = better), tested in this order:"


def print_tables(findings: Findings, console: Console) -> None:
    """Print the short tables, and the primary comparisons in words."""
    for grid in (grid.brief() for grid in tables(findings).values()):
        if grid.rows:
            console.print(grid.rich())
            console.print()
    for line, listed in in_words(findings):
        console.print(line, highlight=False, markup=False)
        for text in listed:
            console.print(f"  {text}", highlight=False, markup=False)


def in_words(findings: Findings) -> Iterator[tuple[str, list[str]]]:
    """Word what was found: paragraphs, each with what is listed below it."""
    if missing := without_primary(findings):
        yield f"{missing[0].upper()}{missing[1:]}.", []
    if found := primary_of(findings.comparisons):
        yield _primary_title(findings.comparisons), [sentence(entry) for entry in found]
    if judged := judged_verdicts(findings):
        yield JUDGED_TITLE, [found.sentence() for found in judged]
    if few := unanswered(findings):
        yield f"{few}{RESULTS}.", []
    if absent := absent_lines(findings.comparisons):
        yield ABSENT_TITLE, absent
    for line in (
        *guard_lines(findings.comparisons),
        *copied(findings),
        *tried_before(findings),
        *filter(None, [regime_of(findings)]),
    ):
        yield line, []
    if power := power_lines(findings, [findings.planned_seeds]):
        yield f"{power_title()}:", power


def write_files(findings: Findings, folder: Path) -> None:
    """Write report.md, comparison.json and findings.json."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"## {grid.title}\n\n{grid.markdown()}" for grid in tables(findings).values()]
    paths = [
        f"- {kind}, {model}: {', '.join(f'`{folder}`' for folder in folders)}"
        for kind, found in findings.folders.items()
        for model, folders in found.items()
    ]
    told = [f"- {label}: {tells}." for label, tells in notes(findings)]
    about = ["## What each measure tells, and what it does not\n", *told, ""] if told else []
    folders = ["## Folders of the rows\n", *paths]
    text = "\n".join(["# Comparison on held-out questions\n", *_words(findings), *parts, NOTE, "", *about, *folders])
    write_text(folder / REPORT_FILE, text + "\n")
    write_json(folder / COMPARISON_FILE, findings.comparisons.as_dict())
    write_record(folder / FINDINGS_FILE, findings.as_dict())


def _words(findings: Findings) -> list[str]:
    """Write what was found as lines of Markdown."""
    words: list[str] = []
    for line, listed in in_words(findings):
        words += [line, "", *(f"- {text}" for text in listed), *([""] if listed else [])]
    return words


def write_page(root: Path, page: Path, findings: Findings | None = None, plots: Path | None = None) -> list[Path]:
    """Write the page of a run's folder, and its plots as PNG to the folder `plots`; return the paths of these.

    findings: those of the last report where none are given.
    """
    data = collect(root, findings)
    drawn = draw(data)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, to_html(data, drawn, results_from(page)))
    if plots is None:
        return []
    for name, figure in drawn.items():
        figure.savefig(plots / f"{name}.png", dpi=150)
    return [plots / f"{name}.png" for name in drawn]


def results_from(page: Path) -> str | None:
    """Give the relative address of the results, for a page in a clone of the repository; None elsewhere."""
    place, clone = page.resolve().parent, Path(__file__).resolve().parents[2]
    return os.path.relpath(clone / RESULTS, place) if place.is_relative_to(clone) and (clone / RESULTS).is_file() else None


def log(run: Run, findings: Findings, folder: Path) -> None:
    """Log the files of a report, its tables, its numbers, and as the run's description its words to MLflow."""
    run.describe("\n".join(_words(findings)))
    for name in (REPORT_FILE, COMPARISON_FILE, FINDINGS_FILE):
        run.artifact(folder / name)
    for name, grid in tables(findings).items():
        run.table(grid.columns(), f"tables/{name}.json")
    values: dict[str, Any] = {}
    for model, found in findings.metrics.items():
        values |= {f"{model}.{key}": number for key, number in metrics_of([value.as_dict() for value in found]).items()}
    for entry in findings.comparisons.entries:
        values[f"{entry.arm}-vs-{entry.reference}.{entry.benchmark}.{entry.metric}"] = entry.difference
    run.metrics(values)
    primary = [entry for entry in findings.comparisons.entries if entry.primary and entry.reference != BASE]
    run.tags({_tag(entry, findings.comparisons.primary): entry.verdict for entry in primary})
    run.tags({_tag(entry, findings.comparisons.primary): INCONCLUSIVE for entry in findings.comparisons.absent})
    judged = {f"{found.rate.arm}-vs-{found.rate.reference}": found.verdict for found in judged_verdicts(findings)}
    run.tags({f"verdict.win_rate.{pair}": verdict for pair, verdict in judged.items()})


def _tag(entry: Comparison | Absent, primary: tuple[str, ...]) -> str:
    """Name the tag of a verdict; it names the measure where there are several."""
    measure = f".{measure_of(entry)}" if len(primary) > 1 else ""
    return f"verdict{measure}.{entry.arm}-vs-{entry.reference}"


def _primary_title(comparisons: Comparisons) -> str:
    order = ", then ".join(comparisons.primary)
    when = CHOSEN_AFTER if comparisons.chosen_after else "fixed before the results"
    return f"Primary measures, tested in this order: {order} ({when}; {percent(comparisons.level)} intervals):"


def report(session: Session, by_seed: Mapping[int, StageFolders], folder: Path) -> Findings:
    """Compare all models of all training seeds; print the tables, and write them, plots and page to `folder` and to MLflow."""
    config = session.config
    findings = make_findings(by_seed, config.evaluate, config.seed, folder.parent)
    session.console.print()
    if session.label:  # several scenarios have the same tables
        session.say("scenario", session.label)
    print_tables(findings, session.console)
    write_files(findings, folder)
    plots = write_page(folder.parent, folder / PAGE_FILE, findings, plots=folder)
    if session.parent is not None:
        log(session.parent, findings, folder)
        session.parent.artifact(folder / PAGE_FILE)
        for plot in plots:
            session.parent.artifact(plot, "plots")
    return findings


def report_on(folders: Sequence[Path], out: Path | None, console: Console, page: Path | None = None) -> Findings:
    """Compare the newest results of every model below the folders; write the report to `out` and log it there.

    An arm that several folders trained with different seeds is one arm with these seeds. page: an HTML file to write, about
    the first folder. Raises UserError when there are no results, and when two folders have the same arm with the same seed.
    """
    findings = compare_runs(folders)
    print_tables(findings, console)
    if out is not None:
        write_files(findings, out)
        with Tracker(TrackingConfig(), out) as tracker, tracker.run("report", out, {STAGE_TAG: "report"}) as run:
            log(run, findings, out)
    if page is not None:
        write_page(folders[0], page, findings)
        console.print(f"page: {page}", highlight=False, markup=False)
    return findings
