"""Stage 5: the results of all stages compared, as the last step of a run and as a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ual_ray.config import TrackingConfig
from ual_ray.report.compare import compare_runs, make_findings
from ual_ray.report.findings import Findings
from ual_ray.report.gather import StageFolders
from ual_ray.report.write import PAGE_FILE, log, print_tables, write_files, write_page
from ual_ray.run.step import STAGE_TAG, Session
from ual_ray.tracking.tracker import Tracker


def report(session: Session, by_seed: Mapping[int, StageFolders], folder: Path) -> Findings:
    """Compare all models of all training seeds; print the tables, and write them, plots and page to `folder` and to MLflow."""
    config = session.config
    findings = make_findings(by_seed, config.evaluate, config.seed, folder.parent)
    session.console.print()
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
