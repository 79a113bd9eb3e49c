"""Log of a training run: `metrics.jsonl`, and the same values for TensorBoard.

The length of metrics.jsonl in bytes is part of the resume state: lines beyond it, of a killed run, are cut off, so no
step is logged twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unet_core.errors import RecipeError
from unet_core.optional import TRAIN, optional_import

NAME = "metrics.jsonl"


class MetricsLog:
    """Log of one run; a context manager.

    Args:
        folder: Folder of the run.
        log_bytes: Length of the log up to `step`; the rest is cut off.
        step: Step from which the run continues.

    Raises:
        RecipeError: The log is shorter than `log_bytes`.
        MissingLibraryError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, log_bytes: int, step: int) -> None:
        with optional_import(TRAIN, "event files of a training run"):
            from torch.utils.tensorboard import SummaryWriter
        path = folder / NAME
        self.file = path.open("ab")
        found = self.file.tell()
        if found < log_bytes:
            self.file.close()
            raise RecipeError(
                f"{path}: expected {log_bytes} bytes or more up to step {step}, found {found}: it was changed "
                "since. Restore it, or start again in another --out"
            )
        self.file.truncate(log_bytes)
        self.file.seek(log_bytes)  # else the position, which is stored, is the old end until something is written
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.board.close()
        self.file.close()

    def stepped(self, record: Mapping[str, Any]) -> None:
        """Log one step."""
        self._append(record)
        for name in ("loss", "rate"):
            self.board.add_scalar(f"training/{name}", record[name], record["step"])
        for level, norm in record["gradient_norms"].items():
            self.board.add_scalar(f"gradient norm/{level}", norm, record["step"])

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Log a validation."""
        self._append({"step": step, "validation": dict(scores)})
        for name, value in scores.items():
            self.board.add_scalar(f"validation/{name}", value, step)

    def sync(self) -> int:
        """Flush the log to disk and return its length in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def _append(self, content: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(content).encode() + b"\n")
        self.file.flush()
