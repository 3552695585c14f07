"""The MLflow UI in a real browser: a pipeline's runs, a figure, a table, a registered model and a prompt are found by clicking.

Screenshots are kept in $UAL_TEST_OUTPUT, or with the other files of the test.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import TrackingConfig
from ual_ray.plots.training import loss_curves, uncertainty_by_source
from ual_ray.tracking.run import Run
from ual_ray.tracking.tracker import Tracker, default_uri

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright: pip install playwright"),
]
# Milliseconds: the UI's own code is megabytes, and this machine may be busy.
PATIENCE = 45_000
TABLE = "comparison.json"
# Two wordings of one prompt: each is a version.
PROMPT, WORDINGS = "ual_ray.elicit.p_true", ("Is it right? {{response}}", "Is this right: {{response}}?")
# A window in which the UI tells of its new features, over everything else.
NEWS = ".du-bois-light-modal-wrap"


@dataclass
class Pipeline:
    """A small pipeline's runs, as the stages log them."""

    uri: str
    experiment: str
    parent: str
    children: dict[str, str]


def log_training(run: Run, model: Path, arm: str) -> None:
    run.params({"train": {"learning_rate": 1e-5, "max_steps": 20}})
    lines = [{"step": step, "nll": 3 / step, "smoothed_loss": 3.1 / step} for step in range(1, 21)]
    for line in lines:
        run.metrics({"nll": line["nll"], "smoothed_loss": line["smoothed_loss"]}, step=int(line["step"]))
    run.plot(loss_curves({arm: lines}), "plots/loss.png")
    run.model(model, f"ual-{arm}", {"ual_ray.arm": arm})


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Pipeline:
    """Log it."""
    out = tmp_path_factory.mktemp("ui") / "my-pipeline"
    out.mkdir()
    model = out / "model"
    shutil.copytree(tiny_model, model)
    (model / "README.md").write_text("---\ntags: [ual_ray]\n---\n# tiny, fine-tuned\n\nA card for people to read.\n")
    children: dict[str, str] = {}
    with Tracker(TrackingConfig(), out) as tracker:
        with tracker.run(out.name, out, {"ual_ray.stage": "pipeline"}) as parent:
            parent.params({"model": "tiny", "seed": 0})
            parent.environment()
            with tracker.run("elicit", out / "elicit", {"ual_ray.stage": "elicit"}, parent) as run:
                run.dataset("rows", out / "rows.jsonl", "0123456789abcdef", 40, "scoring")
                run.plot(uncertainty_by_source({"alpaca": [1, 3, 5, 3, 1, 0, 2, 1]}), "plots/uncertainty.png")
                for wording in WORDINGS:
                    run.prompt("elicit.p_true", [("user", wording)])
                children["elicit"] = run.id
            for arm in ("sft", "ual"):
                with tracker.run(f"train {arm}", out / arm, {"ual_ray.stage": "train", "ual_ray.arm": arm}, parent) as run:
                    log_training(run, model, arm)
                    children[f"train {arm}"] = run.id
            parent.table({"model": ["base", "sft", "ual"], "NLL per token": [3.21, 2.34, 2.12], "n": [40, 40, 40]}, TABLE)
        assert tracker.failures == 0
        return Pipeline(default_uri(out), tracker.experiment_id, parent.id, children)


@pytest.fixture(scope="module")
def address(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the store as `ual ui` does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path_factory.mktemp("server") / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--backend-store-uri", pipeline.uri], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{uri}/health")
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(address: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError as error:
            assert time.monotonic() < deadline, error
            time.sleep(0.2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("UAL_TEST_OUTPUT")
    folder = Path(given) / "mlflow_ui" if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nscreenshots: {folder}")
    return folder


@pytest.fixture
def page(browser: Any, screenshots: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Open a page; a picture of how it ends is kept too, for a test that fails."""
    page = browser.new_page(viewport={"width": 1800, "height": 1000})
    page.set_default_timeout(PATIENCE)
    news = page.locator(NEWS)
    page.add_locator_handler(news, lambda: news.press("Escape"))
    try:
        yield page
    finally:
        page.screenshot(path=screenshots / f"end_of_{request.node.name}.png")
        page.close()


def shoot(page: Any, folder: Path, name: str) -> None:
    """Take a picture once nothing moves."""
    page.wait_for_timeout(1000)
    page.screenshot(path=folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 10_000


def see(page: Any, text: str) -> Any:
    """Wait until a text can be seen, and return where."""
    place = page.get_by_text(text, exact=True).filter(visible=True).first
    place.wait_for()
    return place


def test_the_list_shows_the_parent_with_its_children(page: Any, address: str, pipeline: Pipeline, screenshots: Path) -> None:
    page.goto(f"{address}/#/experiments/{pipeline.experiment}/runs")
    see(page, "my-pipeline")
    # Children are folded into their parent's row.
    page.locator(".ag-cell").filter(has=page.get_by_text("my-pipeline", exact=True)).get_by_role("button").first.click()
    for child in pipeline.children:
        see(page, child)
    shoot(page, screenshots, "runs")


def test_the_parent_leads_to_its_children_and_says_its_commit(
    page: Any, address: str, pipeline: Pipeline, screenshots: Path
) -> None:
    page.goto(f"{address}/#/experiments/{pipeline.experiment}/runs")
    see(page, "my-pipeline").click()
    page.wait_for_url(re.compile(f"/runs/{pipeline.parent}"))
    see(page, "Child runs")
    for child in pipeline.children:
        see(page, child)
    shoot(page, screenshots, "parent")


def test_the_comparison_is_a_table(page: Any, address: str, pipeline: Pipeline, screenshots: Path) -> None:
    page.goto(f"{address}/#/experiments/{pipeline.experiment}/runs/{pipeline.parent}/artifacts/{TABLE}")
    see(page, TABLE)
    see(page, "NLL per token")
    see(page, "2.12")
    shoot(page, screenshots, "table")


def test_a_figure_is_shown(page: Any, address: str, pipeline: Pipeline, screenshots: Path) -> None:
    run = pipeline.children["elicit"]
    page.goto(f"{address}/#/experiments/{pipeline.experiment}/runs/{run}/artifacts/plots/uncertainty.png")
    see(page, "uncertainty.png")
    image = page.locator("img[src^='blob:'], img[src*='uncertainty.png'], [class*='image'] img").filter(visible=True).first
    image.wait_for()
    page.wait_for_function("element => element.naturalWidth > 100", arg=image.element_handle())
    shoot(page, screenshots, "figure")


def test_a_training_has_its_curves(page: Any, address: str, pipeline: Pipeline, screenshots: Path) -> None:
    run = pipeline.children["train ual"]
    page.goto(f"{address}/#/experiments/{pipeline.experiment}/runs/{run}/model-metrics")
    see(page, "smoothed_loss")
    shoot(page, screenshots, "curves")


def test_the_registered_model_is_the_candidate_and_has_its_card(
    page: Any, address: str, pipeline: Pipeline, screenshots: Path
) -> None:
    page.goto(f"{address}/#/models")
    see(page, "ual-ual").click()
    page.get_by_text("candidate").first.wait_for()
    shoot(page, screenshots, "registered_model")
    page.goto(f"{address}/#/models/ual-ual/versions/1")
    see(page, "A card for people to read.")
    shoot(page, screenshots, "model_version")


def test_the_experiment_leads_to_its_prompts_and_their_wordings(
    page: Any, address: str, pipeline: Pipeline, screenshots: Path
) -> None:
    page.goto(f"{address}/#/experiments/{pipeline.experiment}/prompts")
    see(page, PROMPT).click()
    page.wait_for_url(re.compile(re.escape(f"/prompts/{PROMPT}")))
    page.get_by_text(WORDINGS[1]).first.wait_for()
    shoot(page, screenshots, "prompt")
    see(page, "Version 1").click()
    page.get_by_text(WORDINGS[0]).first.wait_for()


def test_a_run_shows_the_prompts_that_it_asked(page: Any, address: str, pipeline: Pipeline, screenshots: Path) -> None:
    for run in (pipeline.children["elicit"], pipeline.parent):
        page.goto(f"{address}/#/experiments/{pipeline.experiment}/runs/{run}")
        page.get_by_text(PROMPT).first.wait_for()
    shoot(page, screenshots, "run_with_prompts")
