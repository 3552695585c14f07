"""The training loop of one worker: read, plan, build, resume, step, validate, log, save, export. Independent of Ray."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.models.resolve import resolve_model
from ual_ray.run.folder import HERE, Folder, append
from ual_ray.run.metrics_log import MetricsLog
from ual_ray.train.batches import Batch, Prefetch, Step, StepPlan, collate, validation_steps
from ual_ray.train.checkpoint import Checkpoints
from ual_ray.train.export import Export, export, export_adapter, model_card
from ual_ray.train.job import NON_FINITE_FILE, Outcome, TrainingJob
from ual_ray.train.lora import scale_of
from ual_ray.train.loss_inputs import make_prior
from ual_ray.train.metrics import SKIPPED, Metrics, hardware
from ual_ray.train.model import SmoothedCausalLM, build
from ual_ray.train.optimizer_step import NonFiniteError, learning_rate_share, make_optimizer, train_step, validate
from ual_ray.train.progress import VOTES, Interruptions, Progress
from ual_ray.train.sharding import make_mesh
from ual_ray.train.timing import RankReport, Stopwatch
from ual_ray.train.token_store import Sample, TokenStore

logger = logging.getLogger(__name__)


class Data:
    """One split as this rank sees it: the rows, the plan of all steps, and this rank's micro-batches of each."""

    def __init__(self, job: TrainingJob, split: str, alpha: float | None = None) -> None:
        """Map the rendered rows, and plan the steps: all of training, or the single one of a validation pass.

        alpha: that of all rows, in place of their own, which validation rows do not have.
        """
        config, ranks = job.train, dist.get_world_size()
        train = split == col.TRAIN
        arm = Path(job.arm) if job.arm and train else None
        most = None if train else config.validation_tokens
        sources = Path(job.sources) if job.sources and train else None
        self.store = TokenStore.open(Path(job.tokens), split, config.uncertainty_bins, arm, most, sources=sources)
        lengths, targets = self.store.lengths, self.store.target_tokens
        if train:
            self.plan = StepPlan(lengths, targets, config, job.seed, ranks, self.store.sources)
        else:
            self.plan = validation_steps(lengths, targets, config, ranks)
        self._packed, self._alpha = config.packing, alpha

    def batches(self, step: Step) -> Iterator[Batch]:
        """Collate this rank's micro-batches of a step."""
        for micro_batch in step.micro_batches[dist.get_rank()]:
            sequences = ([self._sample(row) for row in self.plan.sequences[number]] for number in micro_batch)
            yield collate([*sequences], packed=self._packed)

    def _sample(self, row: int) -> Sample:
        sample = self.store[row]
        return sample if self._alpha is None else replace(sample, alpha=self._alpha)


def train_worker(
    job: TrainingJob,
    device: torch.device,
    storage: pyarrow.fs.FileSystem,
    root: str,
    preempted: Callable[[], bool] = lambda: False,
    output: Folder = HERE,
) -> Outcome:
    """Run on every rank of a process group; checkpoints go to the folder `root` of `storage`.

    `preempted` checks, on all ranks together, whether one of their nodes is about to be preempted. output: reaches the job's
    paths. Raises UserError when the model cannot be trained, or the checkpoints belong to another training run.
    """
    read: dict[str, Any] = {
        name: str(output.fetched(Path(path))) for name in ("tokens", "arm", "sources") if (path := getattr(job, name))
    }
    job = replace(job, **read)
    # The same on every rank: it determines the initial values of adapters.
    torch.manual_seed(job.seed)
    config, folder, path = job.train, Path(job.folder), resolve_model(job.model)
    writes = dist.get_rank() == 0
    data = Data(job, col.TRAIN)
    held_out = Data(job, col.VALIDATION, alpha=data.store.mean_alpha(data.plan.draws))
    model = build(
        path,
        config,
        make_mesh(config, device),
        device,
        job.trust_remote_code,
        lambda vocabulary: make_prior(config, data.store, vocabulary),
        int(max(data.store.lengths.max(), held_out.store.lengths.max(initial=0))),
    )
    optimizer = make_optimizer(model, config)
    checkpoints = Checkpoints(storage, root, config.keep_checkpoints, copies=not config.cpu_offload)
    progress = resume(checkpoints, model, optimizer, Progress(data.plan.digest, job.seed, lora_scale=scale_of(model)))
    log = MetricsLog(folder / col.METRICS_FILE, progress.step, writes=writes, output=output)
    interruptions = Interruptions(folder, preempted, votes=writes, output=output)
    ranks = RankReport(dist.get_rank(), dist.get_world_size(), device, system_metrics=job.system_metrics)
    batches = Prefetch(lambda step: [*data.batches(data.plan[step])], len(data.plan), pin=device.type == "cuda")
    training = Training(job, data, held_out, model, optimizer, checkpoints, log, interruptions, device, ranks, batches, output)
    if progress.step == 0:
        if job.first is not None:
            checkpoints.load_other(job.first, model, optimizer)
        log.write(0, training.validate())
    training.clock.lap()
    outcome, progress = training.run(progress)
    checkpoints.wait()
    if outcome.ending == "finished":
        progress = training.write_model(path, progress)
        outcome = replace(outcome, exported=progress.step)
    return outcome


@dataclass(frozen=True)
class Training:
    """The state that the steps of a run share."""

    job: TrainingJob
    data: Data
    held_out: Data
    model: SmoothedCausalLM
    optimizer: Optimizer
    checkpoints: Checkpoints
    log: MetricsLog
    interruptions: Interruptions
    device: torch.device
    ranks: RankReport
    batches: Prefetch
    output: Folder = HERE
    clock: Stopwatch = field(default_factory=Stopwatch)

    def run(self, progress: Progress) -> tuple[Outcome, Progress]:
        """Run the remaining steps; return how and at which step training ended."""
        config, plan = self.job.train, self.data.plan
        machine = hardware(self.model, config, dist.get_world_size(), self.device)
        while not progress.over(config, len(plan)):
            started, step = time.monotonic(), plan[progress.step]
            rows, tokens = plan.rows(step), plan.tokens(step)
            try:
                metrics, votes = self.take(step, progress)
                metrics |= machine.speed(tokens, len(rows), time.monotonic() - started)
                metrics |= {"epoch": step.epoch, "padding_share": 1 - tokens / metrics.pop("positions")}
            except NonFiniteError as error:
                outcome = self.blame(rows, progress, error)
                if progress.skipped_in_a_row >= config.skip_non_finite:
                    return outcome, progress
                logger.warning("the update is skipped: %s", outcome.message)
                self.optimizer.zero_grad(set_to_none=True)
                metrics, votes = {"epoch": step.epoch, SKIPPED: 1.0}, error.votes
            metrics |= self.ranks.metrics(votes[VOTES:])
            progress = progress.stepped(len(rows), tokens, skipped=SKIPPED in metrics)
            if progress.validation_due(config, len(plan), ends_epoch=plan.ends_epoch(progress.step)) and (
                measured := self.validate()
            ):
                metrics |= measured
                progress = progress.validated(measured[col.VALIDATION_LOSS])
            metrics |= {"samples_seen": progress.samples, "tokens_seen": progress.tokens, **self.clock.lap()}
            self.log.write(progress.step, metrics)
            stop, save = self.interruptions.decide(votes[:VOTES])
            if stop or save or progress.checkpoint_due(config, len(plan)):
                with self.clock("checkpoint"):
                    self.checkpoints.save(self.model, self.optimizer, progress)
            if stop:
                return Outcome("stopped", progress.step), progress
        return Outcome("finished", progress.step), progress

    def take(self, step: Step, progress: Progress) -> tuple[Metrics, list[float]]:
        """Run one optimizer step; return its metrics, and the ranks' votes and reports. Raises what `train_step` raises."""
        config, steps = self.job.train, len(self.data.plan)
        share = learning_rate_share(progress.step, steps, config)
        seed_generators(self.job.seed, progress.step, dist.get_rank())
        with self.clock("data"):
            batches = self.batches.take(progress.step)
        votes = [*self.interruptions.votes(), *self.ranks.values(self.clock.work)]
        with self.clock("step"):
            return train_step(
                self.model,
                self.optimizer,
                batches,
                self.data.plan.target_tokens(step),
                config.learning_rate * share,
                config.max_grad_norm,
                self.device,
                votes,
            )

    def validate(self) -> Metrics:
        """Measure all validation rows; empty without validation rows."""
        with self.clock("validation"):
            steps = [validate(self.model, self.held_out.batches(step), self.device) for step in self.held_out.plan]
        return steps[0] if steps else {}

    def blame(self, rows: Sequence[int], progress: Progress, error: NonFiniteError) -> Outcome:
        """Add the row ids of a step with a non-finite loss or gradient to a file; the weights are not updated."""
        file = Path(self.job.folder) / NON_FINITE_FILE
        if dist.get_rank() == 0:
            self.output.call(append, file, "".join(f"{self.data.store.ids[row]}\n" for row in rows))
        return Outcome(
            "non_finite", progress.step, f"step {progress.step + 1}: {error}; ids of its {plural(len(rows), 'row')}: {file}"
        )

    def write_model(self, source: str, progress: Progress) -> Progress:
        """Write the model and its adapters, with the weights of the last step or of the best; return the progress of these."""
        job, config, folder = self.job, self.job.train, Path(self.job.folder)
        progress, origin = choose(self.checkpoints, self.model, progress, config)
        if config.lora.rank:
            export_adapter(self.model, source, folder / col.ADAPTER_FOLDER, self.output)
        if not config.lora.rank or config.lora.merge:
            card = model_card(job.model, config, progress, job.lineage, self.log.at(progress.step))
            dtype = "float32" if config.export_dtype == "auto" else config.export_dtype
            settings = Export(source, card, dtype, origin, job.trust_remote_code)
            export(self.model, settings, folder / col.MODEL_FOLDER, self.checkpoints.group, self.output)
        return progress


def resume(checkpoints: Checkpoints, model: nn.Module, optimizer: Optimizer, start: Progress) -> Progress:
    """Load the newest intact checkpoint and return its progress; `start` if there is none.

    Raises UserError when it belongs to another plan of steps, that is, to other rows, and when all are damaged.
    """
    newest = checkpoints.newest()
    if newest is None:
        return start
    found = newest.progress
    if (found.plan, found.seed) != (start.plan, start.seed):
        raise UserError(
            "the checkpoints are of another training run",
            got=f"{newest.folder}: other rows, batches, epochs or seed",
            fix="give another output folder, or --force to train again from the start",
        )
    checkpoints.load(newest, model, optimizer)
    return found


def choose(checkpoints: Checkpoints, model: nn.Module, progress: Progress, config: TrainConfig) -> tuple[Progress, str | None]:
    """Load the weights to export: the last, or those with the lowest validation loss; return their progress and checkpoint.

    progress: of the last step. Raises UserError when the best are not known, or their checkpoint is gone or damaged.
    """
    step = progress.best_step if config.export == "best" else progress.step
    chosen = next((one for one in reversed(checkpoints.saved()) if one.progress.step == step), None)
    if step == progress.step:
        return progress, chosen.folder if chosen else None
    if chosen is None:
        raise UserError(
            "train.export=best: there is no checkpoint of the best validation",
            got="no validation had a finite loss" if step is None else f"that of step {step} is gone",
            fix="check the validation rows, or set train.export=last" if step is None else checkpoints.remedy,
        )
    checkpoints.check(chosen)
    checkpoints.load(chosen, model)
    return chosen.progress, chosen.folder


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Seed the torch generators of all devices for a step, so that a resumed step draws the same numbers."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))
