"""Segmentation of one slide, stage by stage, and its results. Free of Prefect.

The public interface is exported here and imported when it is used:

- `segment_image`: segment an array or an image file in memory.
- `Segmentation`: what `segment_image` returns.
- `open_result`: open the folder of a slide that `overtile segment` has written.
- `Result`: what `open_result` returns.
- `RunConfig`: the configuration of a run, as in the YAML file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.exports.result import Result, open_result
    from pipeline.runs.segment_image import Segmentation, segment_image

__all__ = ["Result", "RunConfig", "Segmentation", "open_result", "segment_image"]

_MODULES = {
    "Result": "pipeline.exports.result",
    "RunConfig": "pipeline.config",
    "Segmentation": "pipeline.runs.segment_image",
    "open_result": "pipeline.exports.result",
    "segment_image": "pipeline.runs.segment_image",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
