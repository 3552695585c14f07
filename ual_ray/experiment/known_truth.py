"""`ual experiment known_truth`: arms, seeds and corruptions of an oracle's uncertainty, against the exact truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ual_ray import __version__
from ual_ray.calibrate.metrics import fit_temperature
from ual_ray.columns import digest
from ual_ray.config.files import read_json, write_json, write_record, write_text
from ual_ray.config.keys import affecting
from ual_ray.config.known_truth import KnownTruthConfig
from ual_ray.config.names import CONSTANT, NO_SMOOTHING, SFT, SHUFFLED, UAL
from ual_ray.experiment.findings import KL, METRICS, REGRET, SCALED_KL, Case, Finding, compare, tables
from ual_ray.experiment.training import only_rank, train
from ual_ray.experiment.truth import World, corrupt, divergence, draw_world, oracle_uncertainty, regret
from ual_ray.smooth import assign_alpha

ARMS = {SFT: NO_SMOOTHING, CONSTANT: "constant", SHUFFLED: "shuffled", "inverted": "inverted", UAL: "mean_matched"}
CASES_FOLDER = "cases"
RESULTS_FILE, TABLES_FILE, PLOT_FILE = "known_truth.json", "known_truth.md", "known_truth.svg"

Show = Callable[[str], None]


def run(settings: KnownTruthConfig, out: Path, show: Show) -> list[Finding]:
    """Train every arm under every seed and corruption, compare them, and write tables, JSON and a plot into `out`.

    A training that is finished is read from `out`; its key is a hash of the settings and its alphas, so an arm that does not
    depend on the corruption is trained once. show: prints a line.
    """
    cases: list[Case] = []
    with only_rank():
        for corruption in settings.corruptions:
            for seed in settings.seeds:
                cases += run_seed(settings, corruption, seed, out / CASES_FOLDER, show)
    findings = [finding for corruption in settings.corruptions for finding in compare(cases, corruption, UAL)]
    text = tables(cases, findings)
    show(f"\n{text}")
    write_text(out / TABLES_FILE, f"{text}\n")
    content = {"settings": settings.model_dump(), "version": __version__, "cases": [case.summary() for case in cases]}
    write_json(out / RESULTS_FILE, content | {"comparisons": [asdict(finding) for finding in findings]})
    if len(settings.corruptions) > 1:
        write_plot(findings, out / PLOT_FILE)
    return findings


def run_seed(settings: KnownTruthConfig, corruption: float, seed: int, folder: Path, show: Show) -> Iterator[Case]:
    """Train the arms of one seed and corruption, which differ in their alphas alone."""
    world = draw_world(settings.contexts, settings.symbols, settings.answers, seed)
    uncertainty = corrupt(oracle_uncertainty(world.truth[: world.train]), corruption, seed)
    for arm, name in ARMS.items():
        alpha = assign_alpha(uncertainty, {"map": name, "alpha_mean": settings.alpha_mean}, seed=seed)
        file = folder / f"{digest([__version__, affecting(settings, 'weights'), seed, alpha.tolist()])}.json"
        content = read_json(file)
        if content is None:
            content = measure(settings, world, alpha, seed)
            folder.mkdir(parents=True, exist_ok=True)
            write_record(file, content)
        values = {name: np.array(content[name]) for name in METRICS}
        case = Case(arm, seed, corruption, values, world.strata[world.validation :], content["temperature"], content["seconds"])
        parts = [f"{name} {case.mean(name):.3f}" for name in METRICS]
        show(f"corruption {corruption:g}, seed {seed}, {arm}: {', '.join(parts)}, {content['seconds']:.1f} s")
        yield case


def measure(settings: KnownTruthConfig, world: World, alpha: np.ndarray, seed: int) -> dict[str, Any]:
    """Train one arm; return the metrics of every test context, the temperature, the mean alpha and the duration."""
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        logits = train(settings, world, alpha, seed, Path(folder))
    seen, test = slice(world.train, world.validation), slice(world.validation, None)
    temperature = fit_temperature(logits[seen], world.labels[seen])
    truth = world.truth[test]
    return {
        "seed": seed,
        "mean_alpha": float(alpha.mean()),
        "temperature": temperature,
        "seconds": time.monotonic() - started,
        KL: divergence(truth, logits[test]).tolist(),
        SCALED_KL: divergence(truth, logits[test], temperature).tolist(),
        REGRET: regret(truth, logits[test]).tolist(),
    }


def write_plot(findings: Sequence[Finding], file: Path) -> None:
    """Draw the differences in KL from every other arm, by corruption."""
    from ual_ray.plots.known_truth import by_corruption

    drawn: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {METRICS[name]: {} for name in (KL, SCALED_KL)}
    for found in findings:
        if (references := drawn.get(METRICS[found.metric])) is not None:
            point = (found.corruption, found.difference, found.ci_low, found.ci_high)
            references.setdefault(found.reference, []).append(point)
    by_corruption(drawn, UAL).savefig(file)
