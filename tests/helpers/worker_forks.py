"""Forks the workers of a local Ray from one process that has imported what most of them do: their imports are paid once.

A worker is the process that it is otherwise, with its own id, streams and environment; `forked_worker` is what Ray starts.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
from forked_worker import SIZE_BYTES, SOCKET

LAUNCHER = Path(__file__).with_name("forked_worker.py")
# Of most workers: of what reads, writes and asks fake engines, and of ranks.
WITHOUT_MODELS = ("ray._private.workers.default_worker", "ray.data", "ual_ray.engines.pool", "ual_ray.engines.fake")
ALL = (
    *("mlflow", "transformers.modeling_utils", "transformers.models.llama.modeling_llama"),
    *(*WITHOUT_MODELS, "ray.train.torch", "ual_ray.train.stage", "ual_ray.calibrate.stage"),
)
# Imported with the variables that Ray sets for its workers, of which it reads some at its import.
OF_RAY = ("ray", "ual_ray")
# What libraries read of their environment when they are imported.
READ_AT_IMPORT = re.compile("RAY_([a-z]|JOB_ID|AUTH_)|(HF|LD|MALLOC|MKL|OMP|PYTHON|TORCH|TRANSFORMERS|VLLM)")
# What the script that sets a worker up does not pass on to it.
LANGUAGE, CONTEXT = "--language=", "--serialized-runtime-env-context="
# 10 seconds, as struct timeval: a message is there at once, or its sender is gone.
MOST_WAIT = struct.pack("ll", 10, 0)


@contextmanager
def forked_workers(*modules: str) -> Iterator[None]:
    """Have the Ray that is started in the block fork its workers, for as long as the block lasts.

    modules: what the workers need not import any more.
    """
    from ray._private.parameter import RayParams

    update = RayParams.update_if_absent

    def with_launcher(params: RayParams, **values: object) -> None:
        update(params, **values | {"setup_worker_path": str(LAUNCHER)})

    with tempfile.TemporaryDirectory(prefix="ual") as folder:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path := f"{folder}/forks")
            listener.listen(64)
            command = [sys.executable, __file__, str(listener.fileno()), *modules]
            # It ends with its standard input: with this process, if not before.
            forks = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
        with (
            forks,
            mock.patch.object(RayParams, "update_if_absent", with_launcher),
            mock.patch.dict(os.environ, {SOCKET: path}),
        ):
            yield


def main(number: int, *modules: str) -> None:
    """Import, and fork a worker for every message, until standard input ends."""
    start = dict(os.environ)
    for name in modules:
        if not name.startswith(OF_RAY):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first: dict[str, str] | None = None
    with socket.socket(fileno=number) as listener:
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                os._exit(0)  # without the imports' work at an exit
            asked = listener.accept()[0]
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, MOST_WAIT)  # a timeout of Python's would read parts
            with asked, suppress(OSError, ValueError):  # what stops halfway has its worker started by Ray, if at all
                arguments, environment, streams = received(asked)
                if first is None:
                    first = environment
                    os.environ.update(first)
                    import_of_ray(modules)
                    imported = {name: value for name, value in os.environ.items() if name not in start | first}
                    gc.collect()
                    gc.freeze()
                fit = plain(arguments) and at_import(imported | environment) == at_import(imported | first)
                if forked := fit and os.fork() == 0:
                    break
                for stream in streams:
                    os.close(stream)
                asked.send(b"1" if fit else b"0")
    if forked:
        become_worker(arguments, imported | environment, streams)


def import_of_ray(modules: Sequence[str]) -> None:
    """Import, and draw no random number in Ray's own way: all workers would go on from there with the same ids."""
    import ray.actor

    size = ray.ActorClassID.size()
    with mock.patch.object(ray.actor, "ActorClassID", mock.Mock(from_random=lambda: ray.ActorClassID(os.urandom(size)))):
        for name in modules:
            importlib.import_module(name)


def received(asked: socket.socket) -> tuple[list[str], dict[str, str], list[int]]:
    """Read a worker's arguments, its environment, and the descriptors of its streams. Raises ValueError for a part of them."""
    size, streams, _, _ = socket.recv_fds(asked, SIZE_BYTES, 3)
    message = asked.recv(expected := int.from_bytes(size, "big"), socket.MSG_WAITALL)
    if len(message) < expected:
        raise ValueError(f"{len(message)} bytes of {expected}")
    arguments, variables = (part.split("\0") for part in message.decode(errors="surrogateescape").split("\1"))
    return arguments, dict(variable.split("=", 1) for variable in variables), streams


def at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what libraries have read of it."""
    return {name: value for name, value in environment.items() if READ_AT_IMPORT.match(name)}


def runtime_environment(arguments: list[str]) -> dict[str, Any]:
    """Return what Ray's script would set up, but for what it is in any case."""
    (text,) = [value.removeprefix(CONTEXT) for value in arguments if value.startswith(CONTEXT)] or ["{}"]
    return {name: value for name, value in json.loads(text).items() if value and value != sys.executable}


def plain(arguments: list[str]) -> bool:
    """Whether a runtime environment has variables alone, which libraries have not read."""
    wanted = runtime_environment(arguments)
    return not at_import(wanted.pop("env_vars", {})) and not wanted


class VLLMFinder:
    """Finds no module, but tells torch, when vLLM is imported, what torch reads when it is imported itself."""

    def find_spec(self, name: str, *_: object) -> None:
        """Set whether torch compiles."""
        if name == "vllm":
            from torch._dynamo import config

            config.disable = os.environ.get("TORCH_COMPILE_DISABLE") == "1"


def become_worker(arguments: list[str], environment: dict[str, str], streams: list[int]) -> None:
    """Run the script of Ray's workers as if this process had been started for it."""
    os.setpgrp()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment | runtime_environment(arguments).get("env_vars", {}))
    numpy.random.seed()
    sys.meta_path.insert(0, VLLMFinder())
    sys.argv = [argument for argument in arguments if not argument.startswith((LANGUAGE, CONTEXT))]
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
