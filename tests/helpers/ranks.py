"""Start the ranks of a script as torchrun does, but each as a fork of one process: the script's imports are paid once.

python tests/helpers/ranks.py WORLD_SIZE SCRIPT ARGUMENT...
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path


def run_ranks(world: int, script: Path, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a script on so many ranks, with one thread each; the exit code is 0 where it is that of all."""
    return subprocess.run(
        [sys.executable, __file__, str(world), str(script), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def main(world: int, script: str, *arguments: str) -> int:
    """Import what the script does, start the ranks, and wait for them; one that fails ends the others."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="imported")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {start(script, rank, world, port) for rank in range(world)}
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if status and not failed:
            failed = True
            for rank in ranks:
                os.kill(rank, signal.SIGTERM)
    return int(failed)


def start(script: str, rank: int, world: int, port: int) -> int:
    """Fork a process that runs the script as one rank; return its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        runpy.run_path(script, run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
