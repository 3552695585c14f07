"""Two ranks: each hashes what it writes, each reads a share of what is compared, and both go on from the same checkpoint."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow.fs
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ual_ray.config.files import damage_in, read_sums
from ual_ray.errors import UserError
from ual_ray.train.checkpoint import Checkpoints
from ual_ray.train.progress import Progress

RANKS = 2


def work(root: Path) -> None:
    """Save steps 1 and 2, or load the newest checkpoint, on one of two ranks; note what was found there."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Linear(8, 6)
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(pyarrow.fs.LocalFileSystem(), str(root), keep=2)
    if not checkpoints.saved():
        for step in (1, 2):
            with torch.no_grad():
                model.weight.fill_(float(step))
            checkpoints.save(model, optimizer, Progress("plan", 7, step=step))
        checkpoints.wait()
    else:
        try:
            newest = checkpoints.newest()
            assert newest is not None
            checkpoints.load(newest, model, optimizer)
            found = f"step {newest.progress.step}, weights {model.weight.full_tensor().unique().tolist()}"
        except UserError as error:
            found = str(error)
        note(root, dist.get_rank()).write_text(found)
    dist.destroy_process_group()


def note(root: Path, rank: int) -> Path:
    return root.with_name(f"{root.name}.{rank}")


def ranks(root: Path) -> list[str]:
    """Run two ranks; return what each noted."""
    done = run_ranks(RANKS, Path(__file__), str(root), timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return [note(root, rank).read_text() for rank in range(RANKS) if note(root, rank).exists()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    ranks(root)
    for folder in root.iterdir():
        assert set(read_sums(folder)) == {"__0_0.distcp", "__1_0.distcp", ".metadata", "progress.json"}
        assert damage_in(folder) == []
    return root


def test_a_damaged_shard_of_any_rank_is_found_by_all(saved: Path, tmp_path: Path) -> None:
    for rank in range(RANKS):
        root = Path(shutil.copytree(saved, tmp_path / str(rank)))
        (file,) = root.glob(f"step-00000002-*/__{rank}_0.distcp")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert ranks(root) == ["step 1, weights [1.0]"] * RANKS
    (file,) = root.glob("step-00000001-*/__1_0.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    one, two = ranks(root)
    assert one == two and "no checkpoint is intact" in one and "__1_0.distcp does not match" in one


if __name__ == "__main__":
    work(Path(sys.argv[1]))
