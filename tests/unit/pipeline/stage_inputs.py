"""Inputs of stages with the values that most tests use."""

from __future__ import annotations

from typing import Any

from pipeline.config import ObjectsSection
from pipeline.image_info import ClassInfo, ImageInfo
from pipeline.inputs.regions import Regions
from pipeline.objects.method import resolve
from pipeline.stages.label import LabelInputs
from unet_core.spec import UNetSpec

RGB = ("red", "green", "blue")
NUCLEUS = ClassInfo(("nucleus",), ((0, 190, 60),))
NUCLEUS_MITOSIS = ClassInfo(("nucleus", "mitosis"), ((0, 190, 60), (255, 140, 0)))


def image_info(
    mpp: float = 0.5, level0_from_image: tuple[float, float] = (1.0, 1.0), channels: tuple[str, ...] = RGB
) -> ImageInfo:
    """An image in RGB at the resolution of the slide."""
    return ImageInfo(mpp, level0_from_image, channels)


def label_inputs(
    image: ImageInfo | None = None,
    *,
    threshold: float = 0.5,
    min_area_um2: float = 0.0,
    discs_um: tuple[tuple[float, float], ...] = (),
    regions: Regions | None = None,
    source: str = "distance",
    **config: Any,
) -> LabelInputs:
    """Label objects of any area; ``config`` holds keys of the ``objects`` section."""
    section = ObjectsSection(**config)
    how = resolve(section, UNetSpec(maps=("centre", "distance") if section.method == "seeds" else ()))
    how = how.model_copy(update={"source": source})
    return LabelInputs(section, image or image_info(), threshold, min_area_um2, discs_um, regions, how)
