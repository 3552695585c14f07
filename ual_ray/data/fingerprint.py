"""Fingerprint of a data set: a digest of its content or, where that is too large to read, of its metadata."""

import hashlib
from typing import Any

from ual_ray.columns import digest
from ual_ray.config import DEMO, DataConfig
from ual_ray.data.demo import sample_rows
from ual_ray.data.files import DataFile, find_files, naming, refuse_subset
from ual_ray.data.hub import hub_commit

HASHED_WHOLE = 1 << 30
SAMPLE = 1 << 20


def fingerprint(config: DataConfig) -> str:
    """Return a digest of a data set's content: 16 hexadecimal digits, independent of its path. Raises UserError."""
    if config.path == DEMO:
        refuse_subset(config)
        return digest([DEMO, sample_rows()])
    files = find_files(config)
    if files is None:
        commit = hub_commit(config.path, config.revision)
        return digest(["hub", config.path, config.subset, config.split or "train", commit])
    local = not files[0].root
    whole = sum(file.size for file in files) < HASHED_WHOLE
    return digest([_identity(file, local, whole) for file in files])


def _identity(file: DataFile, local: bool, whole: bool) -> list[Any]:
    if not local:
        return [file.name, file.size, file.changed]
    with naming(file.path), open(file.path, "rb") as stream:
        if whole:
            return [file.name, hashlib.file_digest(stream, "sha256").hexdigest()]
        first = hashlib.sha256(stream.read(SAMPLE)).hexdigest()
        stream.seek(max(file.size - SAMPLE, 0))
        return [file.name, file.size, file.changed, first, hashlib.sha256(stream.read(SAMPLE)).hexdigest()]
