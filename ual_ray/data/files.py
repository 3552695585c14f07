"""List the files of data.path by their metadata, local or in a cloud, through pyarrow.fs."""

import csv
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from gzip import BadGzipFile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs

from ual_ray.config import DataConfig
from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError
from ual_ray.formatting import shorten_list

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
SUFFIXES = ", ".join(KINDS)
LEGAL_FILES = f"a file ending in {SUFFIXES} (all but .parquet also .gz), or a folder of them"
LEGAL_PATHS = f"{LEGAL_FILES}, a datasets directory, a hub name (owner/name), a cloud address (s3://...), or 'demo'"
CONVERT = "convert it, such as to .jsonl with one object per line"
# Metadata files that `datasets` writes next to the data, also in folders cloned from the hub.
NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}

# Folders of Delta Lake, Hudi and Spark next to files with rows that were deleted, replaced or not committed.
UNFINISHED = {"_delta_log", ".hoodie", "_temporary"}

# Data that would be left out of a folder in silence.
OTHER_DATA = re.compile(
    r"(?i)\.(?:jsonl|ndjson|json|csv|tsv)\.(?:zst|zstd|bz2|xz|lz4|snappy|br|zip|gzip|\d+)$|\.parquet\.\w+$"
    r"|\.(?:arrow|feather|orc|avro|xlsx|jsonlines|jl)(?:\.gz)?$"
)
# A column that Spark and Hive write into the names of folders.
PARTITION = re.compile(r"(?:^|/)([A-Za-z_]\w*)=([^/]+)(?=/)")
# What a clone has in place of a file that was not downloaded.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# What names of files and folders call the splits of a data set.
SPLIT_WORD = re.compile(
    r"(?i)(?<![a-z])(?:(?P<train>train(?:ing)?)|(?P<validation>validation|valid|val|dev)|(?P<test>test(?:ing)?|eval(?:uation)?))(?![a-z])"
)

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*|[\w-]+")

SAVE_AS_UTF_8 = "save it in UTF-8, such as with `iconv -f UTF-16 -t UTF-8` or `iconv -f CP1252 -t UTF-8`"
UNREADABLE = (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error, pa.ArrowException)


@dataclass(frozen=True)
class DataFile:
    """A file to read: its path on its file system, and its name relative to the folder in data.path."""

    root: str
    path: str
    name: str
    kind: str
    size: int
    changed: float

    @property
    def packed(self) -> bool:
        """Whether the file is gzip-compressed."""
        return self.path.lower().endswith(".gz")


def find_files(config: DataConfig) -> list[DataFile] | None:
    """List the files of a path, sorted by name; None for a hub name. Raises UserError when there are none."""
    where = redact_uri(config.path)
    if not where.strip():
        raise UserError("data.path is empty", expected=LEGAL_PATHS, fix="set data.path to one of them")
    with naming(where):
        root, path = _locate(config.path)
        info = filesystem_of(root).get_file_info(path)
        if info.type == pyarrow.fs.FileType.NotFound:
            if not root and HUB_NAME.fullmatch(config.path) and _kind_of(config.path) is None:
                return None
            pattern = re.search(r"[*?{\[,]", where)
            alone = "patterns and lists are not read: give a folder, whose data files are all read"
            fix = alone if pattern else "correct data.path"
            raise UserError("data.path does not exist", got=where, expected=LEGAL_PATHS, fix=fix)
        refuse_subset(config)
        if info.type == pyarrow.fs.FileType.Directory:
            return _files_in(config, root, path)
        if config.split is not None:
            raise UserError(
                "data.split is for hub names and datasets directories", got=f"{where} is a file", fix="leave data.split out"
            )
        kind = _kind_of(path)
        if kind is None:
            raise UserError("data.path has an unsupported file type", got=where, expected=LEGAL_FILES, fix=CONVERT)
        return [_data_file(root, path, info, kind)]


def refuse_subset(config: DataConfig) -> None:
    """Raise UserError if data.subset is set and data.path is not a hub name."""
    if config.subset is not None:
        found = f"{config.subset}, with data.path={redact_uri(config.path)}"
        raise UserError("data.subset is for hub names", got=found, fix="leave data.subset out, or give a hub name")


def _locate(path: str) -> tuple[str, str]:
    """Split a path into the address of its file system ("" = local) and the path there."""
    if not ADDRESS.match(path):
        return "", os.path.abspath(Path(path).expanduser())
    try:
        filesystem, inner = from_address(path)
    except pa.ArrowInvalid as error:
        expected = "file://, s3://, gs://, abfs://, hdfs://, hf://"
        fix = "give an address of one of these, or download the data and give a path"
        got = f"{redact_uri(path)}: {error}"
        raise UserError("data.path: unsupported URI scheme", got=got, expected=expected, fix=fix) from error
    local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    return "" if local else path, inner.rstrip("/") or inner


@cache
def from_address(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a URI, and the path there."""
    # Cached per process, as each call would look up the region of an S3 bucket.
    return pyarrow.fs.FileSystem.from_uri(address)


def filesystem_of(root: str) -> pyarrow.fs.FileSystem:
    """Return the file system of an address; "" is local."""
    return from_address(root)[0] if root else pyarrow.fs.LocalFileSystem()


def _kind_of(path: str) -> str | None:
    name = path.lower()
    plain = name.removesuffix(".gz")
    kind = KINDS.get(os.path.splitext(plain)[1])
    return None if kind == "parquet" and plain != name else kind


def _files_in(config: DataConfig, root: str, path: str) -> list[DataFile]:
    arrow = _arrow_files(config, root, path)
    if arrow is not None:
        return arrow
    where = redact_uri(config.path)
    found = []
    for info in filesystem_of(root).get_file_info(pyarrow.fs.FileSelector(path, recursive=True)):
        name = os.path.relpath(info.path, path)
        kind = _kind_of(name)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if info.type == pyarrow.fs.FileType.File and UNFINISHED.intersection(name.split("/")):
            what = "data.path is a folder whose files are not all data: a table with a log, or a job that did not finish"
            raise UserError(what, got=f"{where}: {name}", fix="export the rows to a folder of their own")
        if info.type == pyarrow.fs.FileType.File and not hidden and OTHER_DATA.search(name):
            what = "data.path has a file of an unsupported kind or compression among others"
            fix = f"{CONVERT}; or take it out of the folder"
            raise UserError(what, got=f"{where}: {name}", expected=LEGAL_FILES, fix=fix)
        if info.type == pyarrow.fs.FileType.File and kind and not hidden and info.base_name not in NO_DATA:
            found.append(_data_file(root, info.path, info, kind, name))
    if not found:
        expected = f"files ending in {SUFFIXES}"
        raise UserError("data.path is a folder without data files", got=where, expected=expected, fix=CONVERT)
    return sorted(_of_split(found, config.split, where), key=lambda file: file.name)


def _of_split(files: list[DataFile], split: str | None, where: str) -> list[DataFile]:
    """Keep the files of one split, where their names tell splits apart, as in a copy of a hub data set. Raises UserError."""
    words = {file.name: SPLIT_WORD.search(file.name) for file in files}
    of = {name: str(word.lastgroup) if word else "" for name, word in words.items()}
    known = sorted({*of.values()} - {""})
    if split is None and len(known) < 2 or split == "all":
        return files
    if not known:
        fix = "leave data.split out"
        raise UserError("data.split is for hub names and datasets directories", got=f"{where} is a folder of files", fix=fix)
    if split not in known:
        raise UserError(
            "data.path is a folder with files of several splits" if split is None else f"data.split: no file of '{split}'",
            got=f"{where}: {shorten_list(sorted(of))}",
            expected=f"data.split={' or '.join([*known, 'all'])}",
            fix="set data.split to one of them",
        )
    return [file for file in files if of[file.name] == split]


def columns_in(path: str) -> dict[str, str | None]:
    """Read the columns that the names of a file's folders hold, such as label=0."""
    found = {name: unquote(value) for name, value in PARTITION.findall(path)}
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else value for name, value in found.items()}


def _data_file(root: str, path: str, info: pyarrow.fs.FileInfo, kind: str, name: str = "") -> DataFile:
    return DataFile(root, path, name or info.base_name, kind, info.size or 0, (info.mtime_ns or 0) / 1e9)


def _arrow_files(config: DataConfig, root: str, path: str) -> list[DataFile] | None:
    """List the Arrow files of a directory written by save_to_disk; None for other directories. Raises UserError."""
    splits = _json_at(root, f"{path}/dataset_dict.json")
    if splits is not None:
        split = config.split or "train"
        expected = _names(splits.get("splits", []) if isinstance(splits, dict) else splits, f"{path}/dataset_dict.json")
        if split not in expected:
            what, fix = f"data.split: there is no split '{split}'", "set data.split to one of them"
            raise UserError(what, got=config.path, expected=", ".join(expected), fix=fix)
        path = f"{path}/{split}"
    state = _json_at(root, f"{path}/state.json")
    if not isinstance(state, dict) or "_data_files" not in state:
        return None
    if splits is None and config.split not in (None, state.get("_split")):
        raise UserError("data.split: this datasets directory has no splits", got=config.split, fix="leave data.split out")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        what = "the datasets directory is a selection of its rows, as datasets before 2.0 saved them"
        raise UserError(what, got=config.path, fix="load it with `datasets`, call flatten_indices(), and save it again")
    listed = state["_data_files"] if isinstance(state["_data_files"], list) else [None]
    names = [file.get("filename") if isinstance(file, dict) else file for file in listed]
    paths = [f"{path}/{name}" for name in _names(names, f"{path}/state.json")]
    return [_data_file(root, info.path, info, "arrow") for info in filesystem_of(root).get_file_info(paths)]


def _names(given: Any, where: str) -> list[str]:
    """Return a list of names of a datasets directory. Raises ValueError for another value."""
    if not isinstance(given, list) or not all(isinstance(name, str) and name.isprintable() for name in given):
        raise ValueError(f"{where} is not what save_to_disk writes")
    return given


def _json_at(root: str, path: str) -> Any:
    filesystem = filesystem_of(root)
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
        return None
    with filesystem.open_input_stream(path, compression=None) as stream:
        return json.loads(stream.read())


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Turn an error of reading data into a UserError that names the path."""
    try:
        yield
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError("the data cannot be read", got=f"{where}: {error}", fix=_fix_of(error, where)) from error


def _fix_of(error: Exception, where: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return SAVE_AS_UTF_8
    if isinstance(error, zlib.error | EOFError | BadGzipFile | csv.Error | ValueError):
        return "check that the file is complete, and of the kind that its name states"
    if ADDRESS.match(where):
        return "check the address, the network and the credentials"
    return "check the file's permissions"
