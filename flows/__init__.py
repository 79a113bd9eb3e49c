"""Run batches of slides and trainings, as plain functions, as Prefect flows and from the command line.

    from flows import BatchRequest, RunConfig, segment_folder

    segment_folder(BatchRequest(inputs=["slides"], out="results", config=RunConfig()))

`segment_folder` and `train_unet` are Prefect flows; `run_batch` runs the same batch without Prefect. Names are imported
when they are first used, so that importing this package imports neither Prefect nor PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.batch.batch import Batch, BatchRequest
    from flows.batch_run import run_batch
    from flows.segment import IncompleteError, segment_folder
    from flows.train import train_unet
    from flows.training.training_data import TrainRequest
    from pipeline.config import RunConfig

__all__ = [
    "Batch",
    "BatchRequest",
    "IncompleteError",
    "RunConfig",
    "TrainRequest",
    "run_batch",
    "segment_folder",
    "train_unet",
]

_MODULES = {
    "Batch": "flows.batch.batch",
    "BatchRequest": "flows.batch.batch",
    "IncompleteError": "flows.segment",
    "RunConfig": "pipeline.config",
    "TrainRequest": "flows.training.training_data",
    "run_batch": "flows.batch_run",
    "segment_folder": "flows.segment",
    "train_unet": "flows.train",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
