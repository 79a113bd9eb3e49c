"""Run the command in forks of a process that has imported its libraries already.

Importing torch and the libraries of the pipeline costs a command three CPU seconds. The server imports them once and
forks for each command. A fork is a process of its own: environment, working directory, process group, streams and exit
code are those of the command, and nothing of overtile has run in the server before.

    python -m tests.support.command_server SOCKET

A client connects, sends arguments, environment and working directory as JSON with the file descriptors of stdout and
stderr, and receives the process id, and the exit code when the process has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import types
from importlib import import_module
from typing import Any

LIBRARIES = (
    *("torch", "numpy", "scipy.ndimage", "scipy.sparse.csgraph", "skimage.measure", "skimage.filters", "zarr"),
    *("numcodecs", "tifffile", "imagecodecs", "pyarrow.parquet", "rasterio.features", "shapely", "pydantic", "typer"),
    *("rich.progress", "safetensors.torch", "ome_zarr_models.v05", "PIL.Image", "jinja2", "yaml", "sqlalchemy"),
    *("fastapi", "httpx", "openslide", "pydicom", "simplejpeg"),
)
"""Third-party libraries only: what overtile and Prefect read from the environment, they read in the fork."""

_LONGEST_HEAD = 1 << 20


def main(path: str) -> None:
    """Serve commands until the parent process has gone."""
    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    listener.settimeout(5)
    for name in LIBRARIES:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that have ended leave nothing behind
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.settimeout(None)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _attend(connection)
            return
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Fork the command, report its process id and its exit code. Returns in the command only."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_HEAD, 2)
    if not head:  # a client that only waits for the server
        os._exit(0)
    request = json.loads(head)
    child = os.fork()
    if child:
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.setsid()
    connection.close()
    _become(request, descriptors)
    from flows.cli.launcher import leave_out_foreign_modules
    from flows.cli.main import main as command

    leave_out_foreign_modules()
    command()


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take the environment, working directory, streams and arguments of the command."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = request["arguments"]
    sys.modules["__main__"] = types.ModuleType("__main__")  # worker processes import this module anew
    import random

    random.seed()
    time.tzset()


if __name__ == "__main__":
    main(sys.argv[1])
