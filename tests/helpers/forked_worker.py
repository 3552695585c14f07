"""Started by Ray in place of the script that sets a worker up: has `worker_forks` fork the worker, or starts it as Ray does.

It imports next to nothing, as it runs once per worker; it ends when the worker is on its way, which tells Ray its own id.
"""

import os
import socket
import sys

SOCKET = "UAL_WORKER_FORKS"
SIZE_BYTES = 8


def main(arguments: list[str]) -> None:
    """Have the worker forked; where it cannot be, have Ray's own script set it up."""
    if not forked(arguments):
        script = os.path.join(os.path.dirname(arguments[0]), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, script, *arguments])


def forked(arguments: list[str]) -> bool:
    """Pass a worker's arguments, environment and streams on; tell whether it was forked."""
    variables = [f"{name}={value}" for name, value in os.environ.items()]
    message = "\1".join("\0".join(part) for part in (arguments, variables)).encode(errors="surrogateescape")
    try:
        with socket.socket(socket.AF_UNIX) as forks:
            forks.connect(os.environ[SOCKET])
            socket.send_fds(forks, [len(message).to_bytes(SIZE_BYTES, "big")], [0, 1, 2])
            forks.sendall(message)
            return forks.recv(1) == b"1"
    except (KeyError, OSError):
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
