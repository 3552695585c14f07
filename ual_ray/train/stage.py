"""Stage 3: rows with alpha in, a fine-tuned model directory out."""

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import closing
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ual_ray import columns as col
from ual_ray.config import Config, TrainConfig
from ual_ray.config.files import write_text
from ual_ray.errors import DivergedError, UserError
from ual_ray.formatting import plural
from ual_ray.parquet import RowFiles
from ual_ray.run.machines import checkpoints_uri, in_a_process
from ual_ray.run.metrics_log import MetricsReader, read_metrics
from ual_ray.run.progress import Meter, polled
from ual_ray.run.side_by_side import in_thread, raise_if_ending
from ual_ray.train.batches import StepPlan
from ual_ray.train.compat_ray_train import NodeTorchConfig
from ual_ray.train.job import CHECKPOINTS, NON_FINITE_FILE, Outcome, TrainingJob
from ual_ray.train.metrics import SKIPPED, Metrics
from ual_ray.train.progress import STOP_FILE
from ual_ray.train.timing import PREFIX, summary
from ual_ray.train.token_store import TokenStore, check_store
from ual_ray.train.tokenize import TOKENS_FOLDER, render_all
from ual_ray.train.worker import run_worker

RUN_NAME_FILE = "run_name"
# Files of the last collectives of each rank of a training on GPUs that hung.
TRACES_FOLDER = "nccl"
# The plan of more rows, as large as in each rank, is in a process of its own that ends before training begins.
PLANNED_HERE = 100_000

OnStep = Callable[[Metrics], None]
MakeMeter = Callable[[int], Meter]

logger = logging.getLogger(__name__)


def train(
    config: Config,
    smoothed: Path,
    rows: Path | None,
    folder: Path,
    make_meter: MakeMeter,
    on_step: OnStep,
    lineage: Mapping[str, str],
    tokens: Path | None = None,
    first: str | None = None,
) -> dict[str, Any]:
    """Fine-tune `config.model` on the smoothed rows; write `folder`/model, of adapters also `folder`/adapter; return metrics.

    `tokens` has the rendered rows that arms share; None = the smoothed rows have texts and are rendered here, with the
    validation rows of `rows` (None = no validation). `on_step` is called with every step's metrics; `lineage` goes into the
    model card; train.dtype is resolved (`with_train_dtype`); `first` is the checkpoint to start from. Interrupted and called
    again with the same folder, it resumes from its last checkpoint. Raises UserError when too many rows cannot be trained on,
    and DivergedError when the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mixture, arm = config.train.mixture, str(smoothed.resolve()) if tokens else None
    sources = smoothed.resolve() if mixture else None
    counts = {} if tokens else render_all(config, smoothed, rows, folder)
    tokens = tokens or folder / TOKENS_FOLDER
    check_store(tokens)
    needed = config, tokens.resolve(), smoothed.resolve() if arm else None, sources
    few = RowFiles(smoothed).count_rows() <= PLANNED_HERE
    counts |= planned(*needed) if few else in_a_process(planned, *needed)
    counts |= {"dtype": config.train.dtype, "num_workers": config.train.num_workers}
    counts["resumed"] = (folder / col.METRICS_FILE).exists()
    job = TrainingJob(
        config.train,
        config.model,
        str(tokens.resolve()),
        str(folder),
        config.seed,
        arm,
        config.trust_remote_code,
        dict(lineage),
        first,
        str(sources) if sources else None,
        config.tracking.system_metrics,
    )
    meter = make_meter(counts["steps"])
    with closing(meter), polled(_Follower(folder / col.METRICS_FILE, meter, on_step).read, seconds=1.0):
        outcome = fit(job)
    if outcome.ending == "non_finite":
        raise DivergedError(
            f"non-finite loss or gradient; stopped before the update: {outcome.message}",
            expected="a finite loss and gradient",
            fix="check these rows; with train.skip_non_finite=N the same command resumes from the last checkpoint and skips "
            "up to N such updates in a row; with another train.learning_rate (and another --out) training starts again, or "
            f"from the last checkpoint with train.continue_from={folder}",
        )
    lines = read_metrics(folder / col.METRICS_FILE)
    last, exported = _last_and_exported(lines, outcome.exported)
    counts |= {"skipped_updates": count_skipped(lines), **summary(lines)}
    alone = config.train.lora.rank and not config.train.lora.merge
    written = folder / (col.ADAPTER_FOLDER if alone else col.MODEL_FOLDER)
    return counts | {"last": last, "exported": exported, "model": str(written)}


def planned(config: Config, tokens: Path, arm: Path | None, sources: Path | None) -> dict[str, Any]:
    """Describe a training before it begins: steps, padding, bins and mixture; and the rows of an arm, if tokens are shared."""
    settings = config.train
    store = TokenStore.open(tokens, col.TRAIN, settings.uncertainty_bins, arm, sources=sources)
    counts: dict[str, Any] = count_shared(store, arm) if arm else {}
    plan = StepPlan(store.lengths, store.target_tokens, settings, config.seed, settings.num_workers, store.sources)
    counts |= {"mixture": plan.by_source()} if settings.mixture else {}
    return counts | {"steps": len(plan), "padding_share": plan.padding_share, "uncertainty_bin_edges": store.bin_edges}


def count_skipped(lines: Sequence[Metrics]) -> int:
    """Count the steps without an update. Raises DivergedError when no step changed the model, which is that before training."""
    steps = [line for line in lines if line["step"] > 0]
    skipped = sum(SKIPPED in line for line in steps)
    if steps and not any(line.get("grad_norm") for line in steps):
        raise DivergedError(
            "no step had a gradient that is finite and above 0: nothing was trained",
            got=f"{plural(len(steps), 'step')}, {skipped} of them skipped as train.skip_non_finite allows",
            fix="lower train.learning_rate or train.loss_strength, or check the rows and their weights",
        )
    return skipped


def count_shared(store: TokenStore, smoothed: Path) -> dict[str, int]:
    """Count an arm's rows that were rendered, and those that were not. Raises UserError when none were."""
    kept, rows = store.count_ids(), RowFiles(smoothed).count_rows()
    if not kept:
        raise UserError(
            "no training row is left",
            got=f"{plural(rows, 'row')} of {smoothed}, all of them dropped",
            fix="raise train.max_length, or check the rows",
        )
    return {"train_rows": kept, "dropped_rows": rows - kept, "train_tokens": int(store.lengths.sum())}


def _last_and_exported(lines: Sequence[Metrics], step: int | None) -> tuple[Metrics, Metrics]:
    """Collect the latest value of every metric but those of nodes, and the metrics of the exported step."""
    last = {name: value for line in lines for name, value in line.items() if not name.startswith(PREFIX)}
    return last, next((line for line in lines if line["step"] == step != last["step"]), last)


def fit(job: TrainingJob) -> Outcome:
    """Train under Ray Train, which restarts workers that died, and restart its controller if that died.

    On SIGTERM or Ctrl-C, give the workers train.grace_seconds to save a checkpoint, then re-raise the exception.
    """
    settings, folder = job.train, Path(job.folder)
    stop_file = folder / STOP_FILE
    stop_file.unlink(missing_ok=True)
    (folder / NON_FINITE_FILE).unlink(missing_ok=True)

    def work() -> Outcome:
        for failures in range(settings.max_failures + 1):
            try:
                return _trainer(job, folder).fit().return_value
            except RayActorError:
                # The controller; deaths of workers are for it to see to.
                if failures == settings.max_failures:
                    raise
                logger.exception("the controller of Ray Train has died: restarting from the last checkpoint")
        raise AssertionError("the loop returns or raises")

    return _in_thread(work, stop_file.touch, settings.grace_seconds)


def _in_thread(work: Callable[[], Outcome], ask_to_stop: Callable[[], None], grace_seconds: float) -> Outcome:
    """Run work in a thread and wait for it, so that a signal is handled at once and the work can end cleanly."""
    done = in_thread(work, "training")
    try:
        # In short waits: a signal delivered to another thread does not end a wait in this one.
        while not done.done():
            raise_if_ending()
            wait([done], timeout=0.5)
    except (KeyboardInterrupt, SystemExit):
        if not done.done():
            ask_to_stop()
            wait([done], timeout=grace_seconds)
            how = (done.exception() or done.result()) if done.done() else "no checkpoint was saved within train.grace_seconds"
            logger.warning("told to end: %s", how)
        raise
    return done.result()


def _trainer(job: TrainingJob, folder: Path) -> TorchTrainer:
    settings = job.train
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    smallest = settings.min_workers or settings.num_workers
    return TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers if smallest == settings.num_workers else (smallest, settings.num_workers),
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=NodeTorchConfig(backend=_backend(settings), traces=_traces(settings, folder)),
        run_config=RunConfig(
            name=_run_name(folder) if settings.storage or checkpoints_uri() else CHECKPOINTS,
            storage_path=_storage(settings, folder),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )


def _backend(settings: TrainConfig) -> str:
    if not settings.gpus_per_worker:
        return "gloo"
    # The norm of gradients kept in host memory is computed there too.
    return "cpu:gloo,cuda:nccl" if settings.cpu_offload else "nccl"


def _traces(settings: TrainConfig, folder: Path) -> str:
    if not settings.gpus_per_worker or checkpoints_uri():  # there is no folder that all ranks see
        return ""
    traces = folder.resolve() / TRACES_FOLDER
    traces.mkdir(exist_ok=True)
    return str(traces)


def _storage(settings: TrainConfig, folder: Path) -> str:
    storage = settings.storage or checkpoints_uri()
    if storage is None:
        return str(folder.resolve())
    return storage if "://" in storage else str(Path(storage).expanduser().resolve())


def _run_name(folder: Path) -> str:
    """Return this training run's folder name in a shared storage; an emptied folder counts as another run."""
    file = folder / RUN_NAME_FILE
    if not file.exists():
        write_text(file, f"{folder.name}-{uuid.uuid4().hex[:8]}")
    return file.read_text()


class _Follower:
    """Reads the workers' metrics file during training and passes each new line on once."""

    def __init__(self, path: Path, meter: Meter, on_step: OnStep) -> None:
        self._reader, self._meter, self._on_step = MetricsReader(path), meter, on_step
        self._steps, self._tokens, self._note = 0, 0.0, ""

    def read(self) -> None:
        """Pass new lines on, and update the progress bar."""
        for line in self._reader.read():
            self._steps = int(line["step"])
            self._tokens += line.get("tokens", 0.0)
            self._on_step(line)
            self._note = f"NLL {line['nll']:.3f}" if "nll" in line else ""
        self._meter.update(self._steps, rate_done=self._tokens, note=self._note)
