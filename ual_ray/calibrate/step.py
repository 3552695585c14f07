"""The step that measures one model's calibration and clustering: its digest, its Ray task, its run in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.dataset import field

from ual_ray import columns as col
from ual_ray.calibrate.metrics import ANSWERS_FILE
from ual_ray.config import Config
from ual_ray.config.files import write_text
from ual_ray.config.keys import affecting
from ual_ray.models.chat import RENDERING_VERSION
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import RowFiles, content_digest, rows_digest
from ual_ray.run.progress import meter, polled
from ual_ray.run.side_by_side import raise_if_ending
from ual_ray.run.stage_cache import Done
from ual_ray.run.step import ARM_TAG, MODEL_TAG, Place, Run, Session, Step, run_logged_step, run_step
from ual_ray.stats.metrics import AURC, AUROC, BRIER_SCORE, ECE_MASS, ECE_WIDTH, NLL

if TYPE_CHECKING:
    from ual_ray.calibrate.rows import ProbeJob

    Probe = Callable[[ProbeJob, Callable[[int], None]], dict[str, Any]]

PROGRESS_FILE = "tokens_seen"
# The data set's name in MLflow.
ROWS = "validation and test rows"
TOKEN_METRICS = (NLL, ECE_WIDTH, ECE_MASS, BRIER_SCORE, "confidence", "accuracy")
ANSWER_METRICS = (ECE_WIDTH, ECE_MASS, BRIER_SCORE, AUROC, AURC, "prr")
CLUSTER_METRICS = ("nc1", "silhouette", "scatter_ratio")


def calibrate_step(session: Session, name: str, model: str, rows: Path, results: Path | None, place: Place) -> Done:
    """Measure one model in one Ray task; `folder` gets calibration.json, clusters.json and .npz, tokens and answers.parquet.

    rows: canonical rows of all splits. results: `columns.RESULTS` rows of this model; None = its answers are not measured.
    """
    config = session.config
    inputs: dict[str, Any] = {
        "rows": rows_digest(rows, [col.ID, col.SPLIT]),
        "results": content_digest(results, [col.ID, col.PREDICTION, col.SCORES, col.CONFIDENCE, col.STATUS])
        if results
        else None,
        "model": model_fingerprint(model),
        "rendering": RENDERING_VERSION,
        "evaluate": affecting(config.evaluate, "calibration"),
        "statistics": col.TOKEN_STATISTICS.names,
        "max_model_len": config.engine.max_model_len,
    }
    tags = {ARM_TAG: name, MODEL_TAG: model}
    step = Step("calibrate", f"calibrate {name}", inputs, place, tags, forced_by=frozenset({"evaluate"}))

    def work(run: Run, folder: Path) -> dict[str, Any]:
        run.params({"evaluate": inputs["evaluate"], "model": model})
        count = RowFiles(rows).count_rows(filter=field(col.SPLIT) != col.TRAIN)
        run.dataset(ROWS, rows, inputs["rows"], count, "calibration")
        metrics = _in_a_task(session, name, _job(config, model, rows, results, folder))
        logged = session.logged_model(model, name, col.digest(inputs["model"]))
        run.metrics(metrics_of(metrics), model=logged, dataset=(ROWS, inputs["rows"]))
        _log(run, name, folder, metrics)
        return metrics

    return run_logged_step(session, step, work, _line)


def validation_step(session: Session, name: str, model: str, rows: Path, place: Place) -> Done:
    """Measure one model's scaled NLL on validation rows in one Ray task; its metrics are those of `stage.probe_validation`.

    rows: canonical rows of all splits.
    """
    from ual_ray.calibrate.stage import probe_validation

    config = session.config
    inputs: dict[str, Any] = {
        "rows": rows_digest(rows, [col.ID, col.SPLIT]),
        "model": model_fingerprint(model),
        "max_tokens": config.evaluate.calibration.max_tokens,
        "dtype": config.evaluate.dtype,
        "max_model_len": config.engine.max_model_len,
    }
    step = Step("calibrate", f"validate {name}", inputs, place, forced_by=frozenset({"evaluate"}))

    def work(folder: Path) -> dict[str, Any]:
        session.connect()
        return _in_a_task(session, name, _job(config, model, rows, None, folder), probe_validation)

    def line(metrics: dict[str, Any]) -> str:
        return f"NLL {metrics['scaled_nll']:.4f} of {metrics['tokens']:,} tokens at temperature {metrics['temperature']:.2f}"

    return run_step(session, step, work, line)


def _job(config: Config, model: str, rows: Path, results: Path | None, folder: Path) -> ProbeJob:
    from ual_ray.calibrate.rows import ProbeJob

    return ProbeJob(
        model=model,
        rows=str(rows.resolve()),
        results=str(results.resolve()) if results else None,
        folder=str(folder.resolve()),
        evaluate=config.evaluate,
        max_model_len=config.engine.max_model_len,
        trust_remote_code=config.trust_remote_code,
        device="cuda" if config.engine.gpus_per_actor else "cpu",
    )


def _in_a_task(session: Session, name: str, job: ProbeJob, probe: Probe | None = None) -> dict[str, Any]:
    """Probe the model in a Ray task: the driver never loads a model. probe: None = the whole calibration."""
    import ray

    from ual_ray.run.cluster import cores_for_one

    engine = session.config.engine
    cores = engine.cpus_per_actor if engine.gpus_per_actor else cores_for_one(engine)
    task = ray.remote(num_cpus=cores, num_gpus=engine.gpus_per_actor or None, max_retries=1)(_probe)
    seen = Path(job.folder) / PROGRESS_FILE
    seen.unlink(missing_ok=True)
    with (
        meter(session.console, session.titled(f"calibrate {name}"), None, "tokens") as shown,
        polled(lambda: shown.update(_tokens_seen(seen)), seconds=1.0),
    ):
        measured = task.remote(job, cores, probe)
        while not ray.wait([measured], timeout=0.5)[0]:
            raise_if_ending()
        metrics = ray.get(measured)
    seen.unlink(missing_ok=True)
    return metrics


def _probe(job: ProbeJob, cores: float, given: Probe | None) -> dict[str, Any]:
    import torch

    from ual_ray.calibrate.stage import probe
    from ual_ray.run.machines import output_folder

    torch.set_num_threads(max(1, int(cores)))
    output, seen, total = output_folder(), Path(job.folder) / PROGRESS_FILE, 0

    def count(tokens: int) -> None:
        nonlocal total
        total += tokens
        output.call(write_text, seen, str(total))

    read: dict[str, Any] = {
        name: str(output.fetched(Path(path))) for name in ("rows", "results") if (path := getattr(job, name))
    }
    with output.writing(Path(job.folder)) as folder:
        own = replace(job, model=output.fetched_model(job.model), folder=str(folder), **read)
        return (given or probe)(own, count)


def _tokens_seen(file: Path) -> int:
    # The file is empty while it is being rewritten.
    return int(file.read_text() or 0) if file.is_file() else 0


def metrics_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of calibration.json for MLflow: `_scaled` = with a temperature, `_adjusted` = and without the floor."""
    named: dict[str, float | None] = {"calibration/temperature": metrics["temperature"]}
    groups = [("token_", metrics["token"], TOKEN_METRICS)]
    groups += [(f"{benchmark}/answer_", answer, ANSWER_METRICS) for benchmark, answer in metrics["answer"].items()]
    for prefix, group, wanted in groups:
        for ending, values in (("", group["raw"]), ("_scaled", group["scaled"]), ("_adjusted", group.get("adjusted"))):
            for metric in wanted if values else ():
                named[f"calibration/{prefix}{metric}{ending}"] = values[metric]
        named[f"calibration/{prefix}n"] = group["raw"]["n"]
    clusters = metrics["clusters"] or {}
    for where in ("before_norm", "after_norm"):
        for metric in CLUSTER_METRICS if clusters.get(where) else ():
            named[f"clustering/{metric}_{where}"] = clusters[where][metric]
    if clusters.get("mueller"):
        named["clustering/mueller_scatter_ratio"] = clusters["mueller"]["scatter_ratio"]
    return {metric: value for metric, value in named.items() if value is not None}


def _log(run: Run, name: str, folder: Path, metrics: Mapping[str, Any]) -> None:
    from ual_ray.plots.calibration import clusters, read_points, reliability_diagrams

    for file in (col.CALIBRATION_FILE, col.TOKENS_FILE, ANSWERS_FILE):
        run.artifact(folder / file)
    run.plot(reliability_diagrams({f"{name}, test tokens": metrics["token"]}), "plots/reliability_tokens.png")
    for benchmark, answer in metrics["answer"].items():
        run.plot(reliability_diagrams({f"{name}, {benchmark}": answer}), f"plots/reliability_{benchmark}.png")
    if metrics["clusters"]:
        run.artifact(folder / col.CLUSTERS_FILE)
        run.plot(clusters({name: read_points(folder / col.CLUSTER_POINTS_FILE)}), "plots/clusters.png")


def _line(metrics: Mapping[str, Any]) -> str:
    raw, scaled = metrics["token"]["raw"], metrics["token"]["scaled"]
    tokens = f"{raw['n']:,} test tokens; ECE {raw[ECE_WIDTH]:.3f}"
    if scaled is None:
        tokens += f", no temperature ({metrics['temperature_note']})"
    else:
        tokens += f", {scaled[ECE_WIDTH]:.3f} at temperature {metrics['temperature']:.2f}"
    answers = "".join(
        f"; {benchmark}: ECE {answer['raw'][ECE_WIDTH]:.3f} over {answer['n']} answers"
        for benchmark, answer in metrics["answer"].items()
    )
    after = (metrics["clusters"] or {}).get("after_norm")
    return tokens + answers + (f"; NC1 {after['nc1']:.2f}, silhouette {after['silhouette']:.2f}" if after else "")
