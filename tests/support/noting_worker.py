"""A preload for dask workers that records tasks and CUDA devices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin


class Notes(WorkerPlugin):
    """Appends ``function@device`` for every task to a file with the worker's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Record a task that starts to execute."""
        name = str(key).partition("-")[0]
        if finish == "executing" and name.endswith("_block"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{name}@{os.environ['CUDA_VISIBLE_DEVICES']}\n")


async def dask_setup(worker: Worker) -> None:
    """Register the plugin; dask calls this when a worker starts."""
    await worker.plugin_add(Notes(Path(os.environ["OVERTILE_NOTES"]) / str(worker.name)))
