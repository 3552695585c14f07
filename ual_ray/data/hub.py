"""Hub data sets, streamed shard by shard."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ual_ray.config import DataConfig
from ual_ray.data.files import LEGAL_PATHS
from ual_ray.data.formats import BadRow, Record
from ual_ray.data.shard import Piece, safe_name
from ual_ray.errors import UserError

HUB_SECONDS = 5
COMMIT = re.compile(r"[0-9a-f]{40}")
# Messages of `datasets` for a missing or unknown configuration, which list the existing ones.
NO_SUBSET = re.compile("config name is missing|BuilderConfig '.*' not found", re.IGNORECASE)
AVAILABLE = re.compile(r"available[^\[]*(\[.*\])", re.IGNORECASE)
QUOTED = re.compile(r"""(['"])(.*?)\1""")


def hub_pieces(config: DataConfig) -> list[Piece]:
    """List the shards of a data set. Raises UserError."""
    split = config.split or "train"
    # Pinned to a commit, so that workers that start later read the same files.
    revision = hub_commit(config.path, config.revision)
    dataset = load_hub(config.path, config.subset, split, revision)
    shards = dataset.num_shards
    info = (dataset.info.splits or {}).get(split)
    total = info.num_examples if info else None
    piece = Piece("", config.path, "hub", subset=config.subset, split=split, revision=revision, shards=shards)
    return [
        replace(
            piece,
            name=f"{index:05d}-{safe_name(config.path)}-{safe_name(split)}",
            first=index,
            last=index + 1,
            rows=total * (index + 1) // shards - total * index // shards if total else None,
        )
        for index in range(shards)
    ]


def read_hub(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the rows of a shard. Raises UserError."""
    dataset = load_hub(piece.path, piece.subset, piece.split or "train", piece.revision)
    try:
        yield from dataset.shard(num_shards=piece.shards, index=piece.first)
    except Exception as error:  # see load_hub
        raise _hub_error(piece.path, piece.subset, piece.split, error) from error


def load_hub(name: str, subset: str | None, split: str, revision: str | None) -> Any:
    """Open a hub data set as an IterableDataset, fetching only metadata. Raises UserError."""
    import datasets

    try:
        return datasets.load_dataset(name, name=subset, split=split, revision=revision, streaming=True)
    except Exception as error:  # datasets raises many types of errors; each ends the run before anything is started
        raise _hub_error(name, subset, split, error) from error


def hub_commit(name: str, revision: str | None) -> str | None:
    """Resolve a revision to its current commit on the hub; returns the revision itself if that fails."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS).sha or revision
    except Exception:  # offline, a mirror, a private data set: use the revision's name
        return revision


def _hub_error(name: str, subset: str | None, split: str | None, error: Exception) -> UserError:
    where = f"{name}, split {split}" if subset is None else f"{name}, subset {subset}, split {split}"
    text = f"{where}: {type(error).__name__}: {error}"
    told = f"{type(error).__name__}: {error}".replace(name, "")
    if NO_SUBSET.search(told):
        return _subset_error(where, subset, str(error))
    for words, what, fix in HUB_ERRORS:
        if re.search(words, told, re.IGNORECASE):
            return UserError(what, got=text, fix=fix)
    return UserError("data.path cannot be read", got=text, fix="check the name, or download the data and give its path")


def _subset_error(where: str, subset: str | None, told: str) -> UserError:
    """List the existing configurations, if the error of `datasets` contains them."""
    listed = AVAILABLE.search(told)
    names = [quoted[1] for quoted in QUOTED.findall(listed[1])] if listed else []
    problem = "has several configurations" if subset is None else "has no such configuration"
    return UserError(
        f"data.subset: the data set on the hub {problem}",
        got=where if names else f"{where}: {told}",
        expected=", ".join(names) or None,
        fix=f"set data.subset to one of them, such as data.subset={names[0]}" if names else "set data.subset=NAME",
    )


HUB_ERRORS = (
    (
        r"gated|\b401\b|\b403\b|authenticat",
        "data.path: the hub denies access to this data set",
        "request access on its page, then set HF_TOKEN or run `hf auth login`",
    ),
    (
        "bad split|unknown split",
        "data.split: the data set on the hub has no such split",
        "set data.split to one of those available",
    ),
    (
        r"DatasetNotFound|RepositoryNotFound|doesn't exist|\b404\b",
        "data.path does not exist, neither here nor on the hub",
        f"check the name, the revision and the working directory; expected: {LEGAL_PATHS}",
    ),
    (
        "ConnectionError|ConnectError|offline|resolve|reach|timed? ?out|network",
        "data.path is not a local file or folder, and the hub cannot be reached",
        "check the network (HF_ENDPOINT, HF_HUB_OFFLINE), or give a file or folder",
    ),
)
