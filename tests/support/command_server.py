"""Run the command in forks of a process that has imported its libraries already.

Importing torch and the libraries of the pipeline costs a command three CPU seconds. The server imports them once and
forks for each command. A fork is a process of its own: environment, working directory, process group, streams and exit
code are those of the command, and nothing of overtile has run in the server before.

    python -m tests.support.command_server SOCKET

A client connects, sends arguments, environment and working directory as JSON with the file descriptors of stdout and
stderr, and receives the process id, and the exit code when the process has ended.
It may send Python code instead of arguments.

Prefect reads its settings when it is imported. For an environment that several commands have in common, a client may
ask for a second server: a fork that has taken this environment and imported Prefect.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from importlib import import_module
from typing import Any

LIBRARIES = (
    *("torch", "numpy", "scipy.ndimage", "scipy.sparse.csgraph", "skimage.measure", "skimage.filters", "zarr"),
    *("numcodecs", "tifffile", "imagecodecs", "pyarrow.parquet", "rasterio.features", "shapely", "pydantic", "typer"),
    *("rich.progress", "safetensors.torch", "ome_zarr_models.v05", "PIL.Image", "jinja2", "yaml", "sqlalchemy"),
    *("fastapi", "httpx", "openslide", "pydicom", "simplejpeg", "tornado.ioloop", "tlz", "zict", "sortedcontainers"),
    *("skimage.measure._label", "skimage.filters.thresholding", "skimage.segmentation._watershed", "scipy.spatial"),
    *("skimage.morphology.extrema", "skimage.morphology.grayreconstruct", "skimage.color.colorconv", "PIL.ImageDraw"),
    *("PIL.ImageFont", "PIL.PngImagePlugin", "PIL.JpegImagePlugin", "email.policy"),
    *("h2.connection", "websockets", "jsonschema", "pydantic_settings", "psutil", "importlib_metadata"),
)
"""Third-party libraries only: what overtile and Prefect read from the environment, they read in the fork."""

OF_PREFECT = ("prefect", "prefect.flow_engine", "prefect.task_engine", "prefect.task_runners", "prefect.artifacts")
"""What a second server imports in addition."""

_LONGEST_HEAD = 1 << 20
_FROM_VARIABLE = set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
_INSTALLED = [entry for entry in sys.path[1:] if entry not in _FROM_VARIABLE]
"""The search path of an interpreter that is started without PYTHONPATH; the first entry is that of ``python -m``."""


def main(path: str) -> None:
    """Serve commands until the parent process has gone."""
    for name in LIBRARIES:
        import_module(name)
    _serve(path)


def _serve(path: str, requested_by: socket.socket | None = None) -> None:
    parent = os.getppid()
    assert threading.active_count() == 1, "a fork has the calling thread only"
    gc.collect()
    gc.freeze()  # forks share what has been imported, and never search it for garbage
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.bound")
    listener.listen(64)
    os.rename(f"{path}.bound", path)  # clients find a socket that listens
    if requested_by is not None:
        requested_by.close()
    listener.settimeout(5)
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
    """Fork the command, report its process id and its exit code. Returns in a second server only."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_HEAD, 2)
    request = json.loads(head)
    if "server" in request:
        _serve_with_prefect(request, connection)
        return
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
    _end_with(_run_code if "code" in request else _run_command, request)


def _serve_with_prefect(request: dict[str, Any], connection: socket.socket) -> None:
    """Import Prefect in the environment in which the command imports it, and serve commands of this environment."""
    os.environ.clear()
    os.environ.update(request["environment"])
    from flows.cli.main import ENVIRONMENT  # set before Prefect is imported

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in OF_PREFECT:
        import_module(name)
    _serve(request["server"], connection)


def _run_command(request: dict[str, Any]) -> None:
    sys.argv = request["arguments"]
    from flows.cli.launcher import leave_out_foreign_modules
    from flows.cli.main import main as command

    leave_out_foreign_modules()
    command()


def _run_code(request: dict[str, Any]) -> None:
    """Run code as ``python -c`` does, with the search path of its own environment."""
    sys.argv = ["-c"]
    searched = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = ["", *searched, *_INSTALLED]
    exec(compile(request["code"], "<string>", "exec"), vars(sys.modules["__main__"]))


def _end_with(run: Callable[[dict[str, Any]], None], request: dict[str, Any]) -> None:
    """Run, and end the process as the interpreter does, but for freeing each object that the fork shares."""
    code: object = 0
    try:
        run(request)
    except SystemExit as error:
        code = error.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take the environment, working directory, streams and arguments of the command."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.modules["__main__"] = types.ModuleType("__main__")  # worker processes import this module anew
    import random

    random.seed()
    time.tzset()


if __name__ == "__main__":
    main(sys.argv[1])
