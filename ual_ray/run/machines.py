"""An output at a URI on a cluster: the folder that commands work in is on the driver's machine alone.

What reads and writes files, and loads no model, runs on that machine (`here`). Actors and ranks on other machines reach the
folder through one actor (`output_folder`): see `folder`. Rows are Ray Data sources: workers read them, never the driver.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config.files import COPIES_FOLDER, URI_FILE, WORKING_FOLDERS
from ual_ray.data.canonical import ReadOptions, blocks_of
from ual_ray.data.reading import Piece
from ual_ray.errors import UserError
from ual_ray.formatting import shorten_list
from ual_ray.models.resolve import cache_folder
from ual_ray.parquet import RowFiles
from ual_ray.run.folder import HERE, Folder, FolderElsewhere

# Of the actor, in the namespace of the command.
NAME = "ual_ray.output"
# Calls that the actor answers at a time, and tasks of Ray Data on the driver's machine, whose head may have no CPUs to give.
CALLS, TASKS = 16, 4
# For a machine of the cluster to start a process and look for a file; and for a shared file system to show a new one, which NFS
# does after up to 30 s where its name was asked for before.
SEEN_SECONDS, LATE_SECONDS = 90.0, 35.0
NODE_LABEL = "ray.io/node-id"


class TaskSource(Datasource):
    """Calls each function in a read task of its own, for the tables that it returns."""

    def __init__(self, reads: Sequence[Callable[[], Iterable[pa.Table]]], schema: pa.Schema | None = None) -> None:
        """Take the functions, which travel to workers, and the schema of the tables, None = unknown."""
        super().__init__()
        self._reads, self._schema = [*reads], schema

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: what is read is larger in memory than on disk by an unknown factor."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one read task per function."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, unknown, schema=self._schema, per_task_row_limit=per_task_row_limit) for read in self._reads]


def row_source(pieces: Sequence[Piece], plan: ReadOptions, splits: Sequence[str], claims: Any, monitor: Any) -> TaskSource:
    """Read the rows of the named splits, with a task per shard; all splits are written below `plan.folder` while reading.

    `claims` and `monitor` are handles of a Deduplicator and a Monitor actor.
    """
    read = partial(_read, plan=plan, splits=tuple(splits), claims=claims, monitor=monitor)
    return TaskSource([partial(read, piece, number) for number, piece in enumerate(pieces)], col.ROWS)


def _read(
    piece: Piece, number: int, *, plan: ReadOptions, splits: tuple[str, ...], claims: Any, monitor: Any
) -> Iterator[pa.Table]:
    def claim(ids: Sequence[str], positions: Sequence[int]) -> list[bool]:
        return ray.get(claims.claim.remote(ids, positions))

    if ray.get(monitor.stopped.remote()):
        return
    wanted = pa.array(splits)
    for block in blocks_of(piece, number, plan, claim):
        reasons = [row["reason"] for row in block.quarantined]
        if ray.get(monitor.read.remote(len(block.rows), reasons)):
            return  # `map_rows` raises the reason once the blocks already sent are written
        yield block.rows.filter(pa.compute.is_in(block.rows[col.SPLIT], wanted))


class Place(NamedTuple):
    """Where the output is: its folder, its URI, and the node that has the folder."""

    root: Path
    uri: str
    node: str


class Caller:
    """An actor on the driver's machine."""

    def __init__(self, root: Path, uri: str) -> None:
        """Take the folder that is worked in, and the URI that it is copied to."""
        self._place = Place(root, uri, ray.get_runtime_context().get_node_id())

    def place(self) -> Place:
        """Return where the output is."""
        return self._place

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function here."""
        return function(*arguments)


def on_this_node(actor: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor that lives and dies with the driver's machine and reserves no CPU."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor).options(**options).remote(*arguments)


def keep_here(output: Path) -> Any:
    """Let the other machines of a cluster reach the working folder of a URI, for as long as the result is referred to.

    None for a path, which all machines see. Raises UserError where the driver is on no machine of the cluster.
    """
    if not output.is_relative_to((cache_folder() / WORKING_FOLDERS).absolute()):
        return None
    if ray.util.client.ray.is_connected():
        raise UserError(
            "output is a URI, and the command runs outside of the cluster, which cannot reach its working folder",
            expected="a command on a node of the cluster, or a path that all machines share",
            fix="`ual submit`, which runs it on the cluster; or runtime.address=auto on a node",
        )
    uri = (output.parent / URI_FILE).read_text(encoding="utf-8")
    return on_this_node(Caller, output, uri, name=NAME, max_concurrency=CALLS)


def check_shared(output: Path) -> None:
    """Raise UserError where machines of the cluster that get work do not see a folder that was given by its path.

    Those that do not answer in SEEN_SECONDS are not judged, nor are those that join later.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()]
    if len(nodes) == 1 and not ray.util.client.ray.is_connected():
        return
    with NamedTemporaryFile(dir=output, prefix=".", suffix=".shared") as mark:
        asked = {_sees(node["NodeID"], mark.name): str(node["NodeManagerAddress"]) for node in nodes}
        answered, _ = ray.wait([*asked], num_returns=len(asked), timeout=SEEN_SECONDS)
        blind = sorted({asked[answer] for answer in answered if not _seen(answer)})
    if blind:
        raise UserError(
            "output is not on storage that all machines of the cluster share",
            got=f"{output} on this machine is not {output} on {shorten_list(blind)}",
            expected="a path on storage that all nodes see, or a URI (s3://...)",
            fix="output=/shared/runs/..., where /shared is mounted on all of them",
        )


def _sees(node: str, file: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=there)(_appears).remote(file, LATE_SECONDS)


def _appears(file: str, seconds: float) -> bool:
    """Whether a file is there within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (there := Path(file).is_file()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return there


def _seen(answer: Any) -> bool:
    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayError:  # the machine has gone meanwhile
        return True


def _caller() -> tuple[Any, Place] | None:
    try:
        caller = ray.get_actor(NAME) if ray.is_initialized() else None
    except ValueError:  # there is no such actor
        return None
    return caller and (caller, ray.get(caller.place.remote()))


def output_folder() -> Folder:
    """Return the output folder as this process reaches it."""
    found = _caller()
    if found is None or found[1].node == ray.get_runtime_context().get_node_id():
        return HERE
    caller, place = found
    copies = cache_folder().absolute() / COPIES_FOLDER / digest(str(place.root))
    return FolderElsewhere(lambda function, *arguments: ray.get(caller.call.remote(function, *arguments)), place.root, copies)


def here() -> dict[str, Any]:
    """Return the options of Ray that put a task where the output folder is; none where all machines see it."""
    found = _caller()
    return {} if found is None else {"num_cpus": 0, "label_selector": {NODE_LABEL: found[1].node}}


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that sees the output and ends with the call. Raises UserError where the function does."""

    def call() -> Any:
        try:
            return function(*arguments)
        except UserError as error:  # as Ray would raise it, it has a traceback in its text
            return error

    found = ray.get(ray.remote(num_cpus=0, max_calls=1)(call).options(**here()).remote())
    if isinstance(found, UserError):
        raise found
    return found


def checkpoints_uri() -> str | None:
    """Return the URI of checkpoints that ranks on all machines write: next to the output's; None where its folder will do."""
    found = _caller()
    if found is None:
        return None
    uri, mark, query = found[1].uri.partition("?")
    return f"{uri.rstrip('/')}-checkpoints{mark}{query}"


def file_source(path: Path | str, columns: Sequence[str] | None, where: pa.compute.Expression | None) -> TaskSource:
    """Read columns of the rows of Parquet files that fulfil a condition, with a task per file."""
    return TaskSource([partial(_read_file, file, columns, where) for file in RowFiles(path).files])


def _read_file(file: str, columns: Sequence[str] | None, where: pa.compute.Expression | None) -> Iterator[pa.Table]:
    """Yield the rows of a file, some at a time, behind a table of none, from which a file without rows has its columns."""
    files = RowFiles([Path(file)])
    yield files.head(0, columns)
    yield from (pa.Table.from_batches([batch]) for batch in files.to_batches(columns=columns, filter=where))


def read_source(source: Datasource, tasks: int) -> ray.data.Dataset:
    """Make a lazy data set of a source with so many tasks, which run where the output is."""
    options = here()
    return ray.data.read_datasource(source, override_num_blocks=tasks, concurrency=TASKS if options else None, **options)


def read_files(
    path: Path | str, columns: Sequence[str] | None = None, where: pa.compute.Expression | None = None
) -> ray.data.Dataset:
    """Make a lazy data set of the rows of Parquet files."""
    source = file_source(path, columns, where)
    return read_source(source, len(source.get_read_tasks(1)))
