"""Training as a step of a run."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.config import Config, TrainConfig
from ual_ray.config.files import REGISTERED, REGISTERED_FILE, read_json, read_object, write_record
from ual_ray.config.keys import affecting
from ual_ray.errors import DivergedError, UserError
from ual_ray.formatting import plural
from ual_ray.models.chat import NO_END
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import RowFiles, alphas_digest, content_digest, mapped, recorded_map, rows_digest
from ual_ray.plots import training
from ual_ray.run.progress import Meter
from ual_ray.run.stage_cache import STARTED_FILE, Done, stage_digest
from ual_ray.run.step import (
    ARM_TAG,
    LINEAGE_CONTINUED,
    LINEAGE_MAP,
    LINEAGE_MIXTURE,
    LINEAGE_MODEL,
    LINEAGE_SCORED,
    LINEAGE_SMOOTHED,
    STAGE_TAG,
    UNKNOWN,
    LoggedWork,
    Place,
    Run,
    Session,
    Step,
    run_logged_step,
    run_step,
)
from ual_ray.train.export_dtype import with_export_dtype
from ual_ray.train.job import CHECKPOINTS, NON_FINITE_FILE

# Why a trial did not end with a model: it is not trained again.
DIVERGED_FILE = "diverged.json"
# Raise it when train.loss=eaft weighs tokens otherwise.
EAFT_VERSION = 2
# Raise it when rows that do not all count alike are validated at another mean alpha.
VALIDATION_VERSION = 2
# All names of a training's folder; a test compares those of modules that are not imported here.
WRITTEN = (
    *(col.MODEL_FOLDER, col.ADAPTER_FOLDER, col.METRICS_FILE, CHECKPOINTS, "tokens", "nccl", "dropped_ids.txt"),
    *(NON_FINITE_FILE, DIVERGED_FILE, REGISTERED_FILE, "run_name", "stop", "mlflow_run.json", "mlflow_steps.json"),
)


def tokens_step(session: Session, scored: Path, rows: Path, place: Place) -> Path:
    """Render the scored rows and the validation rows once for all arms; return the folder of their tokens."""
    from ual_ray.train.tokenize import TOKENS_FOLDER, render_all

    config = session.config
    inputs = {
        "scored": content_digest(scored, [col.ID, col.SPLIT]),
        "rows": content_digest(rows, [col.ID, col.SPLIT]),
        "train": affecting(config.train, "tokens"),
        "model": model_fingerprint(config.model),
        "trust_remote_code": config.trust_remote_code,
    }

    def work(folder: Path) -> dict[str, Any]:
        session.connect()
        return render_all(config, scored, rows, folder, shared=True)

    step = Step("tokens", "tokens", inputs, place, forced_by=frozenset({"train"}))
    return run_step(session, step, work, _rendered).folder / TOKENS_FOLDER


def _rendered(counts: Mapping[str, Any]) -> str:
    rows = f"{counts['train_rows']} training and {counts['validation_rows']} validation rows"
    return (
        f"{rows} rendered, {counts['train_tokens']:,} tokens to train on; {counts['dropped_rows']} rows dropped{_cut(counts)}"
    )


def train_step(
    session: Session,
    name: str,
    smoothed: Path,
    rows: Path | None,
    place: Place,
    train: TrainConfig | None = None,
    tokens: Path | None = None,
    *,
    register: bool = True,
    trial: bool = False,
) -> Done:
    """Fine-tune one arm, by its own training settings where it has some; `folder`/model.

    tokens: the rendered rows that arms share; None = the smoothed rows have texts, and are rendered for this arm alone.
    register: register the model in MLflow; `register_model` can do it later. trial: a training that diverged before is not
    repeated. Raises what `stage.train` raises.
    """
    config, lineage = _described(session, name, smoothed, train)
    prior, first, model = config.train.prior_file, first_checkpoint(config.train), model_fingerprint(config.model)
    inputs = {
        "smoothed": lineage[LINEAGE_SMOOTHED],
        "rows": rows_digest(rows, [col.ID, col.SPLIT]) if rows else None,
        "train": affecting(config.train, "weights"),
        "model": model,
        "seed": config.seed,
        **({"first": first.name} if first else {}),
        **({"eaft": EAFT_VERSION} if config.train.loss == "eaft" else {}),
        **({} if _count_alike(config.train, smoothed) else {"validation": VALIDATION_VERSION}),
        "prior": hashlib.sha256(Path(prior).read_bytes()).hexdigest() if prior else None,
    }
    if first and config.train.lora.rank:
        _check_base(first.parent.parent, model)

    def work(run: Run, folder: Path) -> dict[str, Any]:
        metrics = _train_and_log(session, config, run, name, smoothed, rows, folder, lineage, tokens, first)
        return metrics | ({REGISTERED: _register(session, config, run, name, folder, lineage)} if register else {})

    step = Step("train", f"train {name}", inputs, place, lineage, written=WRITTEN)
    if trial:
        return _remembering_divergence(session, step, config.train.skip_non_finite, work)
    done = run_logged_step(session, step, work, _line)
    if register:
        register_model(session, name, smoothed, done, train)
    return done


def register_model(session: Session, name: str, smoothed: Path, trained: Done, train: TrainConfig | None = None) -> None:
    """Register the model of a finished training in MLflow, unless it was before. The arguments are those of `train_step`."""
    known = REGISTERED in trained.metrics or (trained.folder / REGISTERED_FILE).exists()
    if known or session.config.tracking.models == "none":
        return
    config, lineage = _described(session, name, smoothed, train)
    with session.tracked(session.titled(f"train {name}"), trained.folder, {STAGE_TAG: "train", **lineage}) as run:
        version = _register(session, config, run, name, trained.folder, lineage)
        write_record(trained.folder / REGISTERED_FILE, {"version": version})


def _described(session: Session, name: str, smoothed: Path, train: TrainConfig | None) -> tuple[Config, dict[str, str]]:
    """Return the configuration of a training, and the tags of its lineage."""
    config = with_export_dtype(session.config.model_copy(update={"train": train or session.config.train}))
    first, mixture = first_checkpoint(config.train), config.train.mixture
    lineage = _lineage(name, config.model, smoothed, alphas_digest(smoothed, sources=bool(mixture)))
    if first is not None:
        lineage[LINEAGE_CONTINUED] = str(first)
    if mixture:
        lineage[LINEAGE_MIXTURE] = ", ".join(f"{source}: {weight:g}" for source, weight in sorted(mixture.items()))
    return config, lineage


def _count_alike(train: TrainConfig, smoothed: Path) -> bool:
    """Whether every row counts once in the loss."""
    return not train.mixture and col.LOSS_WEIGHT not in RowFiles(smoothed).schema.names


def _remembering_divergence(session: Session, step: Step, skipped: int, work: LoggedWork) -> Done:
    """Run a training; one that diverged with as many updates to skip raises DivergedError at once the next time."""
    file = step.place.folder(stage_digest(step.inputs)) / DIVERGED_FILE
    known = None if "train" in session.force else read_json(file)
    if known is not None and known["skip_non_finite"] == skipped:
        raise DivergedError(known["reason"])
    try:
        return run_logged_step(session, step, work, _line)
    except DivergedError as error:
        write_record(file, {"skip_non_finite": skipped, "reason": str(error)})
        raise


def _line(metrics: Mapping[str, Any]) -> str:
    last, exported = metrics["last"], metrics["exported"]
    early = "" if last["step"] == metrics["steps"] else f"{last['step']:.0f} of "
    text = f"{early}{plural(metrics['steps'], 'step')} over {plural(metrics['train_rows'], 'row')}"
    text += f"; {plural(metrics['dropped_rows'], 'row')} dropped"
    if skipped := metrics.get("skipped_updates"):
        text += f"; WARNING: {plural(skipped, 'update')} skipped, their loss or gradient was not finite"
    text += f"{_cut(metrics)}; training NLL {last['nll']:.3f}"
    if col.VALIDATION_NLL in last:
        text += f", validation NLL {metrics['first_validation_nll']:.3f} -> {exported[col.VALIDATION_NLL]:.3f}"
        text += f" (best, step {exported['step']:.0f})" if exported["step"] != last["step"] else ""
    text += f"; {metrics['median_tokens_per_second']:.0f} tokens/s"
    return text + (f", {metrics['goodput']:.0%} of the time in steps" if "goodput" in metrics else "")


def first_checkpoint(train: TrainConfig) -> Path | None:
    """Find the checkpoint of another training that this one starts from. Raises UserError when there is none."""
    if not train.continue_from:
        return None
    # It imports torch, which most commands do without.
    from ual_ray.train.checkpoint import newest_checkpoint

    return newest_checkpoint(Path(train.continue_from).expanduser().resolve())


def _check_base(training: Path, model: str) -> None:
    """Raise UserError when the adapters of a training, which it recorded, would be continued on another model than theirs."""
    started = read_object(training / STARTED_FILE, "digest", "inputs")
    if started is not None and started["inputs"].get("model") not in (None, model):
        raise UserError(
            "train.continue_from: its adapters are of another model",
            got=f"{started['inputs']['model']} in {training}, {model} now",
            expected="the same weights below the adapters",
            fix="set model as in that training",
        )


def _cut(counts: Mapping[str, Any]) -> str:
    text = ""
    if truncated := counts.get("truncated_rows"):
        text += f"; {truncated} truncated at train.max_length, without their end of turn"
    if endless := counts.get("endless_rows"):
        text += f"; WARNING: {NO_END} ({plural(endless, 'row')})"
    return text


def _lineage(arm: str, model: str, smoothed: Path, digest: str) -> dict[str, str]:
    """Tags that link scored data -> alpha map -> training run -> registered model."""
    recorded = recorded_map(smoothed)
    return {
        ARM_TAG: arm,
        LINEAGE_MODEL: model,
        LINEAGE_SCORED: recorded.get(col.SCORED_DIGEST, UNKNOWN),
        LINEAGE_MAP: recorded.get("map", UNKNOWN),
        LINEAGE_SMOOTHED: digest,
    }


def _train_and_log(
    session: Session,
    config: Config,
    run: Run,
    name: str,
    smoothed: Path,
    rows: Path | None,
    folder: Path,
    lineage: Mapping[str, str],
    tokens: Path | None,
    first: Path | None,
) -> dict[str, Any]:
    from ual_ray.run.metrics_log import read_metrics
    from ual_ray.run.precision import with_train_dtype
    from ual_ray.train import stage

    assert session.tracker is not None, "training logs"
    config = with_train_dtype(config, session.tracker.output)
    run.params({"train": config.train.model_dump(), "smooth": recorded_map(smoothed)})
    run.params({"model": config.model, "seed": config.seed})
    run.dataset(f"smoothed {name}", smoothed, lineage[LINEAGE_SMOOTHED], RowFiles(smoothed).count_rows(), "training")
    # A run that was interrupted is reopened, and holds the steps up to there already.
    logged = run.last_step("smoothed_loss")

    def make_meter(steps: int) -> Meter:
        return Meter(session.console, session.titled(f"train {name}"), steps, "tokens")

    def on_step(line: dict[str, float]) -> None:
        if line["step"] > logged:
            run.metrics({key: value for key, value in line.items() if key != "step"}, step=int(line["step"]))

    metrics = stage.train(config, smoothed, rows, folder, make_meter, on_step, lineage, tokens, str(first) if first else None)
    lines = read_metrics(folder / col.METRICS_FILE)
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    metrics["median_tokens_per_second"] = speeds[len(speeds) // 2]
    metrics["first_validation_nll"] = next((x[col.VALIDATION_NLL] for x in lines if col.VALIDATION_NLL in x), None)
    run.metrics({key: value for key, value in metrics.items() if key != "last"}, step=int(metrics["last"]["step"]))
    run.plot(training.loss_curves({name: lines}), "plots/loss.png")
    run.plot(training.loss_by_uncertainty({name: lines}, metrics["uncertainty_bin_edges"]), "plots/loss_by_uncertainty.png")
    with mapped(smoothed, [col.ALPHA]) as table:
        run.plot(training.alpha_by_arm({name: table[col.ALPHA].to_numpy()}), "plots/alpha.png")
    return metrics


def _register(session: Session, config: Config, run: Run, name: str, folder: Path, lineage: Mapping[str, str]) -> Any:
    """Register the trained model; return its version, None where it is not registered, or MLflow gets it later."""
    exported, registered = folder / col.MODEL_FOLDER, f"{config.tracking.register_as}-{name}"
    title = f"{name}, {session.label}" if session.label else name
    settings = {"arm": name, "seed": config.seed, "map": lineage[LINEAGE_MAP], "loss": config.train.loss}
    settings |= {"learning_rate": config.train.learning_rate, "epochs": config.train.epochs}
    kept = config.tracking.models
    # There is only an adapter where train.lora.merge is off.
    if kept == "none" or not exported.is_dir():
        return None
    return run.model(exported, registered, lineage, title, settings, upload=kept == "upload")
