"""What survives a crash: sharded checkpoints, written while training goes on.

    storage/step-00000040-1f0c22ab/    the step and the attempt that wrote it, so that no two writers share a folder
      __0_0.distcp, ...                torch.distributed.checkpoint: each rank's shards of weights and optimizer
      .metadata                        written when all ranks are done
      checksums.sha256                 of the other files: a damaged checkpoint is not resumed from
      progress.json                    written last, at one go: a folder without it does not count, and is removed

Not reported to Ray Train, whose checkpoint manager keeps either the newest or the best, and notes down which there are in a
file that a kill can tear.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from ual_ray.config.files import PROGRESS_FILE, SUMS_FILE, damage_of, from_text, to_text
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.train.arrow_storage import LOCAL, HashingWriter, Planner, Reader, digest_of
from ual_ray.train.compat_torch import HostStager
from ual_ray.train.job import CHECKPOINTS
from ual_ray.train.lora import scale_of
from ual_ray.train.progress import Progress

# In the output folder of a training.
FOLDER_PREFIX = "step-"
# Frozen weights are those of the model that training started from.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)

# Ranks wait for the slowest of them; a rank that dies ends the waiting at once.
SLOWEST_SAVE = timedelta(hours=3)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint in the storage."""

    progress: Progress
    folder: str


class Checkpoints:
    """The checkpoints of one training run. Every rank makes one, and calls all methods in the same order."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, root: str, keep: int, *, copies: bool = True) -> None:
        """Take the storage; `keep` of the newest checkpoints stay, and the best. What is incomplete is removed.

        copies: without, a save takes no memory, as training waits until it is written: for a state that is offloaded.
        """
        self._filesystem, self._root, self._keep, self._copies = filesystem, root.rstrip("/"), keep, copies
        # A group of its own: the writing thread's messages must not mix with those of the training step.
        self.group = dist.new_group(backend="gloo", timeout=SLOWEST_SAVE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        attempt = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(attempt, src=0, group=self.group)
        self._attempt = attempt[0]
        if dist.get_rank() == 0:
            self._filesystem.create_dir(self._root, recursive=True)
            self._sweep()
        dist.barrier(self.group)

    @property
    def remedy(self) -> str:
        """What to do about a checkpoint that is gone or damaged."""
        return f"restore it from a copy, or remove {self._root} to train again from the start"

    def saved(self) -> list[Saved]:
        """List the whole checkpoints, oldest step first, the same on every rank; waits for what is being written."""
        self.wait()
        listed = [self._list()] if dist.get_rank() == 0 else [None]
        dist.broadcast_object_list(listed, src=0, group=self.group)
        return listed[0] or []

    def newest(self) -> Saved | None:
        """Find the newest checkpoint that is intact, the same on every rank; later ones are removed, with a warning.

        None without checkpoints. Raises UserError when all are damaged.
        """
        damaged: dict[str, list[str]] = {}
        for one in reversed(self.saved()):
            if not (damage := self._damage(self._filesystem, one.folder)):
                for folder, why in damaged.items() if dist.get_rank() == 0 else ():
                    logger.warning("removing %s, which is damaged: %s; going on from %s", folder, "; ".join(why), one.folder)
                    self._remove(folder)
                dist.barrier(self.group)
                return one
            damaged[one.folder] = damage
        if damaged:
            raise UserError(
                "no checkpoint is intact",
                got="; ".join(f"{folder}: {', '.join(why)}" for folder, why in damaged.items()),
                fix=self.remedy,
            )
        return None

    def check(self, saved: Saved) -> None:
        """Raise UserError, on every rank, when files of a checkpoint are not what was written."""
        self._check(self._filesystem, saved.folder, self.remedy)

    def save(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
        """Have the state written, a copy while training goes on, or itself. Waits for the save before; raises its error."""
        self.wait()
        folder = f"{self._root}/{FOLDER_PREFIX}{progress.step:08d}-{self._attempt}"
        storage = HashingWriter(folder, self._filesystem)
        written = dcp.async_save(
            _state(model, optimizer),
            storage_writer=storage,
            process_group=self.group,
            async_stager=HostStager(copies=self._copies),
        )
        self._pending = self._thread.submit(self._commit, written, storage, Saved(progress, folder))
        if not self._copies:
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is whole. Raises what it raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def load(self, saved: Saved, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Put a checkpoint's state back, written at any world size; without an optimizer the weights alone."""
        self._load(self._filesystem, saved.folder, model, optimizer)

    def load_other(self, folder: str, model: nn.Module, optimizer: Optimizer) -> None:
        """Take weights and moments from another training's checkpoint, at a local path; the optimizer keeps its settings.

        Raises UserError when they are damaged, not of this model, or not of the same trained weights.
        """
        fix = "restore it from a copy, or remove it: the newest of those that are left is taken then"
        self._check(LOCAL, folder, fix)
        if unlike := _unlike(Path(folder), model):
            raise _does_not_fit(folder, unlike)
        settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        try:
            self._load(LOCAL, folder, model, optimizer)
        except (RuntimeError, ValueError, KeyError, dcp.api.CheckpointException) as error:
            raise _does_not_fit(folder, str(error).strip().splitlines()[-1]) from error
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)

    def _load(self, filesystem: pyarrow.fs.FileSystem, folder: str, model: nn.Module, optimizer: Optimizer | None) -> None:
        state, storage = _state(model, optimizer), Reader(folder, filesystem)
        if optimizer is not None:
            # A weight that no step has used, such as a vision tower's in training on texts, has no moments until one does.
            stored, moments = storage.read_metadata().state_dict_metadata, state["optimizer"]["state"]
            for name in [name for name in moments if f"optimizer.state.{name}.step" not in stored]:
                del moments[name]
        dcp.load(state, storage_reader=storage, planner=Planner(), process_group=self.group)
        if optimizer is None:
            set_model_state_dict(model, state["model"], options=TRAINED)
        else:
            set_state_dict(
                model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=TRAINED
            )

    def _commit(self, written: Future[Any], storage: HashingWriter, saved: Saved) -> None:
        written.result()
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.gather_object(storage.sums, ranks if dist.get_rank() == 0 else None, group=self.group)
        if dist.get_rank() != 0:
            return
        progress = json.dumps(asdict(saved.progress)).encode()
        sums = {name: digest for own in ranks for name, digest in own.items()}
        self._write(
            f"{saved.folder}/{SUMS_FILE}", to_text(sums | {PROGRESS_FILE: hashlib.sha256(progress).hexdigest()}).encode()
        )
        self._write(f"{saved.folder}/{PROGRESS_FILE}", progress)
        for old in outdated(self._list(), self._keep, saved.progress.best_step):
            self._remove(old.folder)

    def _write(self, path: str, content: bytes) -> None:
        with self._filesystem.open_output_stream(f"{path}.part") as stream:
            stream.write(content)
        self._filesystem.move(f"{path}.part", path)

    def _check(self, filesystem: pyarrow.fs.FileSystem, folder: str, fix: str) -> None:
        if damage := self._damage(filesystem, folder):
            raise UserError(f"the checkpoint {folder} is damaged: a disk or a copy changed it", got="; ".join(damage), fix=fix)

    def _damage(self, filesystem: pyarrow.fs.FileSystem, folder: str) -> list[str]:
        """Describe what of a checkpoint is not what was written, the same on every rank, each of which reads its share.

        Of one without checksums, which an earlier version wrote, only the progress is looked at.
        """
        whole: list[Any] = [None]
        if dist.get_rank() == 0:
            whole = [_sums(filesystem, folder)]
        dist.broadcast_object_list(whole, src=0, group=self.group)
        (sums,) = whole
        if isinstance(sums, str):
            return [sums]
        mine = sorted(sums)[dist.get_rank() :: dist.get_world_size()]
        own: list[str | None] | OSError
        try:
            own = [damage_of(name, sums[name], partial(digest_of, filesystem, f"{folder}/{name}")) for name in mine]
        except OSError as error:
            own = error
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own, group=self.group)
        if errors := [rank for rank in ranks if isinstance(rank, OSError)]:
            # Where a storage does not answer, an older one is not taken.
            raise UserError(f"the checkpoint {folder} cannot be read", got=errors[0], fix="run the same command again")
        return [*filter(None, sum(ranks, []))]

    def _list(self) -> list[Saved]:
        found = (self._read(folder) for folder in self._folders())
        return sorted(filter(None, found), key=lambda saved: saved.progress.step)

    def _read(self, folder: str) -> Saved | None:
        path = f"{folder}/{PROGRESS_FILE}"
        if self._filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
            return None
        with self._filesystem.open_input_stream(path) as stream:
            return Saved(_progress(stream.read()) or Progress("damaged", 0, step_of(folder)), folder)

    def _folders(self) -> list[str]:
        selector = pyarrow.fs.FileSelector(self._root, allow_not_found=True)
        return [info.path for info in self._filesystem.get_file_info(selector) if info.base_name.startswith(FOLDER_PREFIX)]

    def _sweep(self) -> None:
        for folder in self._folders():
            if self._read(folder) is None:
                logger.warning("removing %s: a checkpoint that was not finished", folder)
                self._filesystem.delete_dir(folder)

    def _remove(self, folder: str) -> None:
        # First what makes it count: half of a checkpoint must not look like one.
        self._filesystem.delete_file(f"{folder}/{PROGRESS_FILE}")
        self._filesystem.delete_dir(folder)


def step_of(folder: str) -> int:
    """Read the step of a checkpoint from the name of its folder; 0 for a name of others."""
    step = folder.rpartition("/")[2].removeprefix(FOLDER_PREFIX).partition("-")[0]
    return int(step) if step.isdecimal() else 0


def _progress(content: bytes) -> Progress | None:
    """Read a checkpoint's progress; None when it is damaged."""
    try:
        return Progress(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _sums(filesystem: pyarrow.fs.FileSystem, folder: str) -> dict[str, str] | str:
    """Read a checkpoint's checksums, none of an earlier version's; what is wrong if they or the progress are damaged."""
    with filesystem.open_input_stream(f"{folder}/{PROGRESS_FILE}") as stream:
        if _progress(stream.read()) is None:
            return f"{PROGRESS_FILE} cannot be read"
    path = f"{folder}/{SUMS_FILE}"
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
        return {}
    try:
        with filesystem.open_input_stream(path) as stream:
            return from_text(stream.read())
    except ValueError:
        return f"{SUMS_FILE} cannot be read"


def _unlike(folder: Path, model: nn.Module) -> str | None:
    """Describe what of a checkpoint the model would not take or not use alike, though it has all that the model needs."""
    stored = Reader(str(folder)).read_metadata().state_dict_metadata
    prefix, own = "model.", _state(model, None)["model"]
    left = sorted(
        name.removeprefix(prefix) for name in stored if name.startswith(prefix) and name.removeprefix(prefix) not in own
    )
    if left:
        return f"{plural(len(left), 'weight')} that the model does not have, or not trains, such as {left[0]}"
    scale, own_scale = json.loads((folder / PROGRESS_FILE).read_text()).get("lora_scale"), scale_of(model)
    if scale is not None and scale != own_scale:
        return f"adapters of lora.alpha / lora.rank = {scale:g}, here it is {own_scale:g}"
    return None


def _does_not_fit(folder: str, why: str) -> UserError:
    return UserError(
        "train.continue_from: the checkpoint does not fit the model",
        got=f"{folder}: {why}",
        expected="a training of the same model with the same train.lora",
        fix="set model and train.lora as in that training, or leave train.continue_from out",
    )


def newest_checkpoint(training: Path) -> Path:
    """Find the newest whole checkpoint in the output folder of a training. Raises UserError when there is none."""
    whole = sorted(training.glob(f"{CHECKPOINTS}/{FOLDER_PREFIX}*/{PROGRESS_FILE}"))
    if not whole:
        raise UserError(
            "train.continue_from holds no checkpoint",
            got=str(training),
            expected=f"the output folder of a training, with {CHECKPOINTS}/{FOLDER_PREFIX}*",
            fix="give the folder of `ual train --out`, or OUTPUT/arms/ARM/train/KEY of a run; train.storage is not searched",
        )
    return whole[-1].parent


def outdated(saved: Sequence[Saved], keep: int, best: int | None) -> list[Saved]:
    """Choose what to remove: all but the `keep` newest and that of the step `best`. Oldest first in `saved`."""
    return [old for old in saved[:-keep] if old.progress.step != best]


def _state(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Sharded state by parameter name, a tied weight once: the tensors themselves, not copies of them."""
    if optimizer is None:
        weights, rest = get_model_state_dict(model, options=TRAINED), {}
    else:
        new = not optimizer.state
        weights, moments = get_state_dict(model, optimizer, options=TRAINED)
        rest = {"optimizer": moments}
        # torch makes the moments of a new optimizer by a step, which must not count as one.
        for own in optimizer.state.values() if new else ():
            own["step"].zero_()
    once = {name for name, _ in model.named_parameters()}
    return {"model": {name: value for name, value in weights.items() if name in once}, **rest}
