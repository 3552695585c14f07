"""A folder on one of pyarrow's file systems: open it within seconds or report why not, list it, copy files there and back."""

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from ual_ray.config.redact import SECRET_KEY, USER_PART, redact_uri
from ual_ray.errors import UserError
from ual_ray.run.side_by_side import in_thread
from ual_ray.run.terminal import is_uri

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
LEGAL = "a path, or s3://BUCKET/PREFIX, gs://..., abfs://..., hdfs://..., file:///..."
USABLE = "a bucket that exists, with credentials that may list, read, write and delete in it"
# Object stores have no folders to make.
BUCKETS = ("s3", "gcs", "abfs")
# A wrong address or lacking credentials are retried by pyarrow for minutes.
ANSWER_SECONDS = 20.0
CHUNK = 8 * 2**20
# Written to learn whether a folder can be.
PROBE = ".ual-writable.json"
# The signature of a shared access to Azure.
SIGNATURE = "sig"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Remote:
    """A folder `root` on a file system; `uri` names it to users. key: the setting that names it."""

    uri: str
    filesystem: FileSystem
    root: str
    key: str = "output"

    def files(self) -> dict[str, int]:
        """Return the sizes of all files in bytes, by their names below the folder."""
        return {name: info.size or 0 for name, info in self.entries().items()}

    def entries(self) -> dict[str, FileInfo]:
        """Return what is known of all files, by their names below the folder."""
        found = self.filesystem.get_file_info(FileSelector(self.root, recursive=True, allow_not_found=True))
        # The file system gives the names: none may lead out of the folder that it is copied to.
        return {
            name: info
            for info in found
            if info.type == FileType.File
            and not info.path.endswith(".part")
            and ".." not in Path(name := info.path[len(self.root) :].strip("/")).parts
        }

    def put(self, local: Path, name: str) -> None:
        """Copy a file there; a reader sees the old content or the new."""
        with self._replacing(name) as path:
            self._copy(str(local), path, LocalFileSystem(), self.filesystem)

    def get(self, name: str, local: Path) -> None:
        """Copy a file from there."""
        local.parent.mkdir(parents=True, exist_ok=True)
        self._copy(self._path(name), str(local), self.filesystem, LocalFileSystem())

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.filesystem.get_file_info(self._path(name)).type == FileType.File:
            self.filesystem.delete_file(self._path(name))

    def read(self, name: str) -> Any:
        """Read a small JSON file; None if it is not there. Raises UserError where the file system does not answer."""

        def read() -> Any:
            if self.filesystem.get_file_info(self._path(name)).type != FileType.File:
                return None
            with self.filesystem.open_input_stream(self._path(name), compression=None) as stream:
                return json.loads(stream.read())

        try:
            return self._asked("read", read)
        except ValueError as error:
            got = f"{redact_uri(self.uri)}: {name}: {error}"
            raise UserError(f"{self.key}: a file there is not JSON", got=got, fix=f"remove {name} there") from error

    def write(self, name: str, content: Any) -> None:
        """Write a small JSON file. Raises UserError where that is not allowed, or not answered."""

        def write() -> None:
            with self._replacing(name) as path, self.filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(json.dumps(content, indent=2).encode())

        self._asked("written", write)

    def check(self) -> None:
        """Raise UserError where the folder cannot be listed, or is in a bucket that is not there."""
        bucket = self.root.split("/")[0]

        def look() -> bool:
            found = self.filesystem.get_file_info(FileSelector(self.root, allow_not_found=True))
            in_bucket = self.filesystem.type_name in BUCKETS
            return bool(found) or not in_bucket or self.filesystem.get_file_info(bucket).type != FileType.NotFound

        if not self._asked("listed", look):
            raise UserError(
                f"{self.key}: there is no bucket '{bucket}'",
                got=redact_uri(self.uri),
                expected=USABLE,
                fix="create the bucket, or correct its name, its region and the endpoint",
            )

    @contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        """Give the path to write a file to: its own in a bucket, where it appears when it is whole, else one to rename."""
        path = self._path(name)
        if self.filesystem.type_name in BUCKETS:
            yield path
            return
        self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        part = f"{path}.{uuid.uuid4().hex}.part"  # nobody else's who writes the file at the same time
        yield part
        self.filesystem.move(part, path)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _copy(self, source: str, target: str, here: FileSystem, there: FileSystem) -> None:
        pyarrow.fs.copy_files(source, target, here, there, chunk_size=CHUNK, use_threads=False)

    def _asked(self, done: str, call: Callable[[], Answer]) -> Answer:
        return asked(f"{self.key} cannot be {done}", self.uri, call)


def open_remote(uri: str, key: str = "output") -> Remote:
    """Open the folder at a URI. Raises UserError within ANSWER_SECONDS for one that is malformed or cannot be reached."""
    if uri.partition("://")[0].lower() not in SCHEMES:
        raise UserError(f"{key}: unsupported URI scheme", got=redact_uri(uri), expected=LEGAL)
    if _has_secret(uri):
        raise UserError(
            f"{key}: a URI with a password or a key is refused, as it is kept in files",
            got=redact_uri(uri.partition("?")[0]),
            expected=LEGAL,
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile or a role of the machine",
        )
    try:
        filesystem, path = asked(f"{key} cannot be opened", uri, lambda: FileSystem.from_uri(uri))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{key}: not a usable URI", got=f"{redact_uri(uri)}: {redact_uri(str(error))}", expected=LEGAL
        ) from error
    if not path.strip("/"):
        raise UserError(f"{key}: the URI names no folder", got=redact_uri(uri), expected=LEGAL)
    return Remote(uri, filesystem, path.rstrip("/"), key)


def open_place(place: str, key: str, *, write: bool = False) -> Remote:
    """Open the folder at a path or a URI. Raises UserError within seconds where it cannot be read, or not be written."""
    if is_uri(place):
        remote = open_remote(place, key)
    else:
        remote = Remote(place, LocalFileSystem(), str(Path(place).expanduser().absolute()), key)
    remote.check()
    if write:
        remote.write(PROBE, {"key": key})
    return remote


def _has_secret(uri: str) -> bool:
    """Whether a URI holds more than a user or a container, as in abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX."""
    place, _, query = uri.partition("?")
    user = USER_PART.search(place)
    named = user is not None and (":" in user[0] or place.lower().startswith("s3:"))
    return named or any(name.lower() == SIGNATURE or SECRET_KEY.search(name) for name, _ in parse_qsl(query))


def asked(failed: str, uri: str, call: Callable[[], Answer]) -> Answer:
    """Wait ANSWER_SECONDS for a call. Raises UserError where it fails on the network, or does not answer."""
    answer = in_thread(call, "remote")
    try:
        return answer.result(ANSWER_SECONDS)
    except (OSError, NoAnswer) as error:
        reason = f"no answer within {ANSWER_SECONDS:.0f} s" if not answer.done() else str(error)
        raise _unusable(failed, uri, reason) from error


def asked_all(remote: Remote, done: str, call: Callable[[], Answer]) -> Answer:
    """Make a call that may take long. Raises UserError where it fails on the network."""
    try:
        return call()
    except OSError as error:
        raise _unusable(f"{remote.key} cannot be {done}", remote.uri, str(error)) from error


def _unusable(failed: str, uri: str, reason: str) -> UserError:
    if not is_uri(uri):
        return UserError(failed, got=f"{uri}: {reason}", expected="a folder that this machine may write")
    return UserError(
        failed,
        got=f"{redact_uri(uri)}: {redact_uri(reason)}",
        expected=USABLE,
        fix="check the name, the network, and the credentials (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "AWS_PROFILE or a role; AWS_REGION; AWS_ENDPOINT_URL for a store other than AWS)",
    )
