"""``overview.png``: one picture by which a pathologist sees whether a slide was segmented well.

The slide with its tissue border, where the objects are, up to three fields at full resolution with every outline, scale
bars, and the numbers. The one decision made here: the picture shows what can be seen. Where an object would be smaller
than a few pixels on the overview, its place is taken by a tint of objects per mm2, and the outlines are left to the
fields, which are the densest ones, so they can be found again.

Memory: one pyramid level of at most 3,200 px a side, the fields, and 17 bytes an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.display import Rgb, Window, compose, windows
from pipeline.fields import FIELD_PX, View, choose_fields
from pipeline.files import fsync_dir, write_atomic
from pipeline.geometry import Box
from pipeline.object_table import TABLE, read_objects
from pipeline.page import Page
from pipeline.picture import Palette, Tint, badge, frame, nice_length, outline_mask, outline_objects, scale_bar
from pipeline.store import StoredArray
from pipeline.work import StageReport, Work

STAGE = "overlay"
FILE = "overview.png"
IMAGE, PROBABILITY, OBJECTS, TISSUE = "0", "probability/0", "labels/objects/0", "tissue"

_SEEN_PX = 5.0
"""Diameter on the overview from which an outline says more than a tint."""


@dataclass(frozen=True, slots=True)
class OverlaySection:
    """What the numbers and colours mean, and what is written above the picture.

    ``tissue_mm2`` None: no tissue was looked for, the whole image counts. ``objects`` False: there are no labels, the
    probability is shown instead.
    """

    name: str
    model: str
    mpp_um: float
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    class_colours: tuple[Rgb, ...]
    tissue_mm2: float | None
    objects: bool = True

    def area_mm2(self, shape_yx: tuple[int, int]) -> float:
        """Area searched for objects."""
        image_mm2 = shape_yx[0] * shape_yx[1] * self.mpp_um**2 / 1e6
        return image_mm2 if self.tissue_mm2 is None else self.tissue_mm2


@dataclass(frozen=True, slots=True)
class Objects:
    """Class, place (pixels of the image) and typical diameter of the objects; row i is object i + 1."""

    classes: NDArray[np.uint8]
    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    diameter_px: float

    @classmethod
    def read(cls, work: Work, section: OverlaySection) -> Objects:
        """From ``objects.parquet``; none where objects are switched off."""
        if not section.objects:
            return cls(np.zeros(0, np.uint8), np.zeros(0), np.zeros(0), 0.0)
        names = ("class", "centroid_y_um", "centroid_x_um", "area_um2")
        columns = read_objects(work.root / TABLE, names, section.class_names)
        area_um2 = float(np.median(columns["area_um2"])) if len(columns["class"]) else 0.0
        diameter_px = 2 * (area_um2 / np.pi) ** 0.5 / section.mpp_um
        y_px, x_px = columns["centroid_y_um"] / section.mpp_um, columns["centroid_x_um"] / section.mpp_um
        return cls(columns["class"], y_px, x_px, diameter_px)


def overlay_slide(work: Work, section: OverlaySection) -> StageReport:
    """Draw and write ``overview.png``, whole or not at all; the same bytes every time.

    Raises DamagedError when an array or the table it reads is missing or damaged.
    """
    objects = Objects.read(work, section)
    view = View.of(work.shape_yx)
    pixels_CYX = _overview(work, view)
    shown = windows(pixels_CYX, section.channel_names)
    rgb = compose(pixels_CYX, section.channel_names, shown)
    full = _draw_objects(rgb, work, section, objects, view)
    _draw_tissue(rgb, work, section)
    fields = choose_fields(np.stack((objects.y_px, objects.x_px)), work.shape_yx, view, objects.diameter_px)
    page = Page.start(Image.fromarray(rgb), [_field(work, section, objects, shown, box) for box in fields])
    for letter, box in zip("ABC", fields, strict=False):
        page.mark(letter, view.overview_box(box))
    page.bars(section.mpp_um / view.scale, [section.mpp_um * box.shape[1] / FIELD_PX for box in fields])
    picture = page.finish(_caption(section, objects, work.shape_yx), full)
    write_atomic(work.root / FILE, lambda file: picture.save(file, "PNG", compress_level=6))
    fsync_dir(work.root)
    report = StageReport(STAGE, blocks=1, computed=1, facts={"fields": [str(box) for box in fields]})
    work.store.stamp(STAGE, work.plan, report.facts)
    return report
