"""`ual inspect`: the uncertainty report as a page, on the terminal, and in the MLflow run of the elicitation."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ual_ray.config import Config
from ual_ray.config.files import STORE_FILE, write_json, write_text
from ual_ray.inspect.measure import inspect
from ual_ray.inspect.page import to_console, to_html
from ual_ray.run.step import STAGE_TAG
from ual_ray.tracking.tracker import Tracker, default_uri

PAGE_FILE = "inspection.html"


def inspect_scores(config: Config, scored: Path, labels: Path | None, page: Path | None, console: Console) -> None:
    """Write the page (by default next to the scores) and its metrics as JSON, print a summary, and log both.

    Raises UserError for scores or labels that cannot be read.
    """
    inspection = inspect(scored, labels, config.engine)
    page = page or scored.with_name(PAGE_FILE)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, to_html(inspection))
    metrics = page.with_suffix(".json")
    write_json(metrics, asdict(inspection))
    to_console(inspection, console)
    # The output folder that the scores belong to: the nearest one above with an MLflow store.
    store = next((place for place in scored.parents if (place / STORE_FILE).is_file()), page.parent)
    tags = {STAGE_TAG: "elicit"}
    with Tracker(config.tracking, store) as tracker, tracker.run("elicit", scored.parent, tags) as run:
        run.artifact(page)
        run.artifact(metrics)
        if inspection.self_check is not None:
            run.metrics({"self_check": asdict(inspection.self_check)})
    where = config.tracking.uri or default_uri(store)
    console.print(f"\npage: {page}; MLflow: {where}", highlight=False, markup=False)
