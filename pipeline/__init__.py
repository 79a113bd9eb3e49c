"""Segmentation of one slide, stage by stage, and its results. Free of Prefect.

The public interface is exported here and imported when it is used:

- `segment_image`: segment an array or an image file in memory.
- `Segmentation`: what `segment_image` returns.
- `open_result`: open the folder of a slide that `overtile segment` has written.
- `Result`: what `open_result` returns.
- `RunConfig`: the configuration of a run, as in the YAML file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.exports.result import Result, open_result
    from pipeline.runs.segment_image import Segmentation, segment_image

__all__ = ["Result", "RunConfig", "Segmentation", "open_result", "segment_image"]


def __getattr__(name: str) -> Any:
    """Import an exported name on its first use."""
    if name == "RunConfig":
        from pipeline.config import RunConfig

        return RunConfig
    if name in ("Result", "open_result"):
        from pipeline.exports import result

        return getattr(result, name)
    if name in ("Segmentation", "segment_image"):
        from pipeline.runs import segment_image

        return getattr(segment_image, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
