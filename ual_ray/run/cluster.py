"""The Ray cluster: the only `ray.init` of the project."""

import atexit
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import ray
from rich.console import Console

from ual_ray.config import Config, EngineConfig, RuntimeConfig, TrainConfig
from ual_ray.errors import USER_ERROR_EXIT_CODE, UserError
from ual_ray.formatting import plural
from ual_ray.run import StageName
from ual_ray.run.compat_ray import where_auto_leads
from ual_ray.run.terminal import SIGTERM_EXIT_CODE, end_command, end_on_sigterm, ended_by_sigterm

# Ray Data's own read, write and checkpoint tasks need CPUs while the actors hold every core.
SPARE_LOGICAL_CPUS = 2
CONNECT_SECONDS = 10.0
# How a client of gRPC starts to speak, with a frame of no settings; and the kind of frame that its server answers with.
HTTP2_START, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5), b"\4"
START_ATTEMPTS = 3
SLOW_START = "timed out during startup"
# So long Ray waits for a head that is gone, before it ends the process without a word; `_watched` ends the command before that.
RECONNECT_VARIABLE, RECONNECT_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
WATCH_SECONDS, LOCAL_SECONDS = 2.0, 10.0
# To end in, of what waits for Ray; and between that and the end by Ray.
GRACE_SECONDS, SPARE_SECONDS = 5.0, 3.0

logger = logging.getLogger(__name__)


@contextmanager
def ray_cluster(config: RuntimeConfig, console: Console | None = None) -> Iterator[str | None]:
    """Connect to the configured cluster, or start a local one; disconnect, and stop a local one, at the end.

    Yields the address of the cluster's dashboard, which has the metrics of the actors; None where there is none. console: of
    the command, which ends when the head of the cluster is gone.
    """
    if ray.is_initialized():
        yield None
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    dashboard = None
    if config.joined:
        dashboard = _connect(config.joined)
    else:
        _start()
    end_on_sigterm()
    context = ray.data.DataContext.get_current()
    # Progress is shown by `run.progress`.
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    # The second version of its reader starts actors to read the footers of files; for a few files they cost more than the rows.
    context.use_datasource_v2 = False
    lost = Lost()
    try:
        with _watched(config.joined, console, lost):
            yield dashboard
    finally:
        if lost.code is not None:
            atexit.register(partial(_exit, lost.code))  # before Ray's own handler, which waits for the head
        else:
            ray.shutdown()


@dataclass
class Lost:
    """Whether the head of the cluster is gone: `code` is the exit code of the command then."""

    code: int | None = None

    def now(self) -> None:
        """Note the loss. A SIGTERM before it was for Ray's processes too, as from `timeout` and systemd: no error."""
        if self.code is None:
            self.code = SIGTERM_EXIT_CODE if ended_by_sigterm() else USER_ERROR_EXIT_CODE


def _exit(code: int) -> None:
    sys.stdout.flush()
    os._exit(code)


@contextmanager
def _watched(address: str | None, console: Console | None, lost: Lost) -> Iterator[None]:
    """Raise UserError in the block, and set `lost`, when the head is gone for so long that Ray would soon end the process.

    A head that comes back before that, as with Redis behind it, is not noticed, unless an error of Ray ended the block. Where
    the block does not end, as it waits for Ray, the error is printed and the process ends.
    """
    if console is None:
        yield
        return
    by_client = address is not None and ray.util.client.ray.is_connected()
    head: str = (address or "") if by_client else f"//{ray.get_runtime_context().gcs_address}"
    where = urlsplit(head)
    seconds = float(os.environ.get(RECONNECT_VARIABLE, RECONNECT_SECONDS)) - GRACE_SECONDS - SPARE_SECONDS
    if address is None:  # nobody starts that head again
        seconds = min(seconds, LOCAL_SECONDS)
    gone = UserError(
        "the head of the Ray cluster is gone",
        got=f"{where.hostname}:{where.port} does not answer",
        fix=f"{'start the cluster again, and ' if address else ''}run the same command again: what is finished is kept",
    )
    ended = threading.Event()

    def answers() -> bool:
        try:
            socket.create_connection((where.hostname or "", where.port or 0), timeout=WATCH_SECONDS).close()
        except OSError:
            return False
        return True

    def watch() -> None:
        answered = time.monotonic()
        while time.monotonic() - answered <= seconds:
            if ended.wait(WATCH_SECONDS):
                return
            answered = time.monotonic() if answers() else answered
        lost.now()
        end_command()
        if not ended.wait(GRACE_SECONDS):
            if lost.code == USER_ERROR_EXIT_CODE:
                console.print(f"error: {gone}", style="red", highlight=False, markup=False)
            _exit(lost.code or USER_ERROR_EXIT_CODE)

    threading.Thread(target=watch, name="head", daemon=True).start()
    try:
        yield
    except BaseException as error:
        of_ray = isinstance(error, Exception) and not isinstance(error, UserError)
        if lost.code is not None or (of_ray and not answers()):
            lost.now()
            raise (gone if lost.code == USER_ERROR_EXIT_CODE else SystemExit(lost.code)) from error
        raise
    finally:
        ended.set()


def _start() -> None:
    """Start a local cluster; again where its node was not up in the 30 s that Ray gives it, as on a machine with much to do."""
    # Nobody tells this cluster that its machine will be taken away: Ray Train need not start a process that asks.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=max(2, os.cpu_count() or 1) + SPARE_LOGICAL_CPUS,
                include_dashboard=False,
                log_to_driver=True,
            )
            return
        except Exception as error:  # Ray raises nothing narrower
            if SLOW_START not in str(error) or attempt == START_ATTEMPTS:
                raise
            logger.warning("Ray did not start, attempt %d of %d: %s", attempt, START_ATTEMPTS, error)


def _connect(address: str) -> str | None:
    leads = where_auto_leads() if address == "auto" else address
    try:
        _check_answers(leads)
        found = ray.init(address=address, log_to_driver=True).dashboard_url
        return f"http://{found}" if found else None
    except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise UserError(
            "the Ray cluster at runtime.address or RAY_ADDRESS is unreachable",
            got=f"{address}{f' ({leads})' if leads not in ('', address) else ''}: {error}",
            expected="'auto' on a node of the cluster, 'ray://HOST:10001', or null for a local cluster",
            fix="start the cluster (cluster/local.sh start), or unset runtime.address and RAY_ADDRESS; for a cluster with "
            "token authentication set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ) from error


def _check_answers(address: str) -> None:
    """Raise OSError where no server of gRPC, as Ray's are, answers: there Ray waits for minutes, and then exits."""
    where = urlsplit(address if "://" in address else f"//{address}")
    if not (where.hostname and where.port) or where.scheme not in ("", "ray"):
        return  # what Ray refuses itself, such as the address of a job server
    with socket.create_connection((where.hostname, where.port), timeout=CONNECT_SECONDS) as probe:
        if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):
            probe.sendall(HTTP2_START)
            with probe.makefile("rb") as answer:
                if answer.read(4)[3:] != SETTINGS:
                    raise OSError(f"port {where.port} is that of another service: no server of Ray answers")


def cores_for_one(engine: EngineConfig) -> float:
    """Return the CPU cores for one process in place of the actor pool: those of all actors, but at most one node's."""
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    return max(engine.cpus_per_actor, min(engine.cpus_per_actor * engine.max_actors, largest))


def free_resources(config: Config) -> dict[str, float]:
    """Return the resources that nobody uses now, without the CPUs that a local cluster has only by name."""
    free = dict(ray.available_resources())
    if config.runtime.joined is None:
        free["CPU"] = free.get("CPU", 0.0) - SPARE_LOGICAL_CPUS
    return free


def groups_of_workers(train: TrainConfig, free: Mapping[str, float]) -> int:
    """Count the groups of train.num_workers workers that the nodes hold by their size, and by what is free of all."""
    on_nodes = sum(_workers_on(node["Resources"], train) for node in ray.nodes() if node["Alive"])
    return max(0, min(on_nodes, _workers_on(free, train))) // train.num_workers


def check_cluster(config: Config, stages: Set[StageName]) -> list[str]:
    """Return the resources that these stages request and the cluster does not have yet, one text each.

    Raises UserError for them on a local cluster, which cannot grow.
    """
    engine, train = config.engine, config.train
    asked = {}
    if stages - {"train"}:
        asked["engine.cpus_per_actor x engine.min_actors", "CPU"] = engine.cpus_per_actor * engine.min_actors
        asked["engine.gpus_per_actor x engine.min_actors", "GPU"] = engine.gpus_per_actor * engine.min_actors
    if "train" in stages:
        key, workers = ("train.num_workers", train.num_workers)
        if train.min_workers is not None:
            key, workers = ("train.min_workers", train.min_workers)
        asked[f"train.cpus_per_worker x {key}", "CPU"] = train.cpus_per_worker * workers
        asked[f"train.gpus_per_worker x {key}", "GPU"] = train.gpus_per_worker * workers
        check_replicas(train, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    have = ray.cluster_resources()
    waits = [
        f"{key} = {amount:g} {resource}s, the cluster has {have.get(resource, 0):g}"
        for (key, resource), amount in asked.items()
        if amount > have.get(resource, 0)
    ]
    if waits and config.runtime.joined is None:
        raise UserError("not enough resources on this machine", got="; ".join(waits), fix="lower these settings")
    return waits


def check_replicas(train: TrainConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise UserError where a replica of the model (HSDP) would get unequal parts of several nodes.

    nodes: the resources of each. Workers fill one node after the other, the largest first, and a replica takes neighbouring
    ones: were it split unevenly, its weights would travel between nodes with every layer. A cluster without room for all
    workers yet is not judged.
    """
    if train.replicas == 1:
        return
    room = sorted((_workers_on(node, train) for node in nodes), reverse=True)
    ranks, left = list[int](), train.num_workers
    for fitting in room:
        ranks.append(min(fitting, left))
        left -= ranks[-1]
    used, size = [count for count in ranks if count], train.num_workers // train.replicas
    on_one_node = all(count % size == 0 for count in used)
    on_whole_nodes = len(set(used)) == 1 and size % used[0] == 0
    if left or on_one_node or on_whole_nodes:
        return
    raise UserError(
        "train.replicas: the nodes cannot be divided among the replicas",
        got=f"{train.replicas} replicas of {plural(size, 'worker')}, {', '.join(map(str, used))} workers on the nodes",
        expected="every replica on one node, or equally many workers on every node and a replica on whole nodes",
        fix="set train.num_workers to a multiple of the workers per node, or train.replicas=1",
    )


def _workers_on(node: Mapping[str, float], train: TrainConfig) -> int:
    wanted = {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
    return min(int(node.get(resource, 0.0) // amount) for resource, amount in wanted.items() if amount)
