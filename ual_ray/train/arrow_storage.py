"""torch.distributed.checkpoint on any pyarrow file system, which Ray Train's storage is: s3://, gs://, hdfs://, ...

What is written is hashed on its way, as a file of an object store would have to be fetched for it. torch reads metadata and
numbers with pickle, which runs what a forged file names: here it makes only what checkpoints consist of.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, cast

import pyarrow.fs
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, FileSystemWriter, Metadata
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from ual_ray.errors import UserError

Where = str | os.PathLike[str]
LOCAL = pyarrow.fs.LocalFileSystem()

# What torch pickles into the metadata, by module.
PARTS = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata", "StorageMeta"),
        *("TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    **dict.fromkeys(("pathlib", "pathlib._local"), ("PosixPath",)),
}

# Bytes that are read at a time: of an object store, with a request each.
READ_BYTES = 8 << 20


class _ArrowFileSystem(FileSystemBase):
    """Adapts pyarrow file systems to torch's interface."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem) -> None:
        self._filesystem = filesystem

    @contextmanager
    def create_stream(self, path: Where, mode: str) -> Iterator[io.IOBase]:
        opened = self._filesystem.open_output_stream if "w" in mode else self._filesystem.open_input_file
        with opened(os.fspath(path)) as stream:
            yield cast(io.IOBase, stream)

    def concat_path(self, path: Where, suffix: str) -> str:
        return f"{os.fspath(path).rstrip('/')}/{suffix}"

    def init_path(self, path: Where, **_: Any) -> Where:
        return path

    def rename(self, path: Where, new_path: Where) -> None:
        self._filesystem.move(os.fspath(path), os.fspath(new_path))

    def mkdir(self, path: Where) -> None:
        self._filesystem.create_dir(os.fspath(path), recursive=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Where) -> bool:
        return True

    def exists(self, path: Where) -> bool:
        return self._filesystem.get_file_info(os.fspath(path)).type != pyarrow.fs.FileType.NotFound

    def rm_file(self, path: Where) -> None:
        self._filesystem.delete_file(os.fspath(path))

    def ls(self, path: Where) -> list[str]:
        return [info.path for info in self._filesystem.get_file_info(pyarrow.fs.FileSelector(os.fspath(path)))]


class HashingWriter(FileSystemWriter):
    """Writes the shards of a rank. `sums`: the SHA-256 of what has been written, by name of the file."""

    def __init__(self, folder: str, filesystem: pyarrow.fs.FileSystem) -> None:
        """Take a folder of a file system; on a local one files are synced before the save completes."""
        # What is written to an object store is there when the stream is closed: there is nothing to sync.
        # Nothing is copied from a GPU ahead of writing, as what is written is in host memory: torch would ask the GPU of the
        # writing thread, which is the node's first one for every rank, and take memory there.
        local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        super().__init__(folder, sync_files=local, per_thread_copy_ahead=0)
        if not local:
            self.path = folder
            self.fs: FileSystemBase = _ArrowFileSystem(filesystem)
        self.sums: dict[str, str] = {}
        self._create_stream, self.fs.create_stream = self.fs.create_stream, self._hashing

    @contextmanager
    def _hashing(self, path: Where, mode: str) -> Iterator[io.IOBase]:
        with self._create_stream(path, mode) as stream:
            hashed = _HashedStream(stream)
            yield cast(io.IOBase, hashed)
        # The metadata are renamed when they are whole.
        self.sums[os.path.basename(path).removesuffix(".tmp")] = hashed.sha256.hexdigest()


class _HashedStream:
    def __init__(self, stream: Any) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()

    def write(self, content: Any) -> Any:
        self.sha256.update(content)
        return self._stream.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def digest_of(filesystem: pyarrow.fs.FileSystem, path: str) -> str:
    """Hash a file: the hexadecimal digits of SHA-256."""
    found = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while content := stream.read(READ_BYTES):
            found.update(content)
    return found.hexdigest()


class Reader(FileSystemReader):
    """Reads checkpoints, whose metadata may be forged; each rank reads only what it needs."""

    def __init__(self, folder: str, filesystem: pyarrow.fs.FileSystem = LOCAL) -> None:
        super().__init__(folder)
        if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            self.fs, self.path = _ArrowFileSystem(filesystem), folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read what is stored where. Raises UserError for a file that is damaged, or names what is not of checkpoints."""
        path = self._get_metadata_path(kwargs.get("rank"))
        try:
            with self.fs.create_stream(path, "rb") as stream:
                metadata: Metadata = _Unpickler(stream).load()
            assert isinstance(metadata, Metadata), f"a {type(metadata).__name__}"
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
        except OSError:
            raise
        except Exception as error:  # whatever a damaged pickle raises
            fix = "restore it from a copy, or remove the folder"
            raise UserError(f"{path} is damaged, or of no checkpoint", got=str(error)[:500], fix=fix) from error
        return metadata


class _Unpickler(pickle.Unpickler):
    """Makes the objects of a checkpoint's metadata alone."""

    def find_class(self, module: str, name: str) -> Any:
        if name in PARTS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.0 to 3.11.3 pickle members of an Enum
            return _member
        raise pickle.UnpicklingError(f"{module}.{name} is not of a checkpoint")


def _member(enumeration: Any, name: str) -> Any:
    """Stand for getattr. Raises UnpicklingError for anything but a member of an enumeration."""
    if not (isinstance(enumeration, type) and issubclass(enumeration, Enum) and name in enumeration.__members__):
        raise pickle.UnpicklingError(f"{enumeration!r}.{name} is not of a checkpoint")
    return enumeration[name]


class Planner(DefaultLoadPlanner):
    """Reads numbers such as the learning rate, which may be forged."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value into the state. Raises UnpicklingError for what is more than numbers."""
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)
