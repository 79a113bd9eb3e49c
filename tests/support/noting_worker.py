"""A preload for dask workers: notes which functions ran there, and which CUDA device the process sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin


class Notes(WorkerPlugin):
    """Appends ``function@device`` for every task to a file named as the worker is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """A task changes its state."""
        name = str(key).partition("-")[0]
        if finish == "executing" and name.endswith("_block"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{name}@{os.environ['CUDA_VISIBLE_DEVICES']}\n")


async def dask_setup(worker: Worker) -> None:
    """What dask calls when a worker starts."""
    await worker.plugin_add(Notes(Path(os.environ["OVERTILE_NOTES"]) / str(worker.name)))
