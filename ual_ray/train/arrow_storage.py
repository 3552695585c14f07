"""torch.distributed.checkpoint on any pyarrow file system, which Ray Train's storage is: s3://, gs://, hdfs://, ..."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyarrow.fs
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, StorageReader, StorageWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase

Where = str | os.PathLike[str]


def writer(filesystem: pyarrow.fs.FileSystem, folder: str) -> StorageWriter:
    """Write shards into a folder of a file system; on a local one they are synced before the save completes."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return FileSystemWriter(folder)
    return _ArrowWriter(filesystem, folder)


def reader(filesystem: pyarrow.fs.FileSystem, folder: str) -> StorageReader:
    """Read shards from a folder of a file system; each rank reads only those it needs."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return FileSystemReader(folder)
    return _ArrowReader(filesystem, folder)


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


class _ArrowWriter(FileSystemWriter):
    def __init__(self, filesystem: pyarrow.fs.FileSystem, folder: str) -> None:
        # What is written to an object store is there when the stream is closed: there is nothing to sync.
        super().__init__(folder, sync_files=False)
        self.fs = _ArrowFileSystem(filesystem)
        self.path = folder


class _ArrowReader(FileSystemReader):
    def __init__(self, filesystem: pyarrow.fs.FileSystem, folder: str) -> None:
        super().__init__(folder)
        self.fs = _ArrowFileSystem(filesystem)
        self.path = folder
