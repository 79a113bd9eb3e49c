"""Overlay: draw ``overview.png``, in which a pathologist sees whether a slide was segmented well.

The picture shows the slide with its tissue border and objects, up to three fields at full resolution with every
outline, scale bars, and the numbers. Where objects would be smaller than a few pixels on the overview, a tint of
objects per mm2 replaces their outlines. Outlines are then drawn in the fields only, which are the densest ones, so that
they can be found again.

Memory: one pyramid level of at most 3,200 px a side, the fields, and 17 bytes an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.config import CELL_PX
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, serial
from pipeline.geometry import Box
from pipeline.image_info import ClassInfo, ImageInfo
from pipeline.inputs.regions import Regions
from pipeline.objects.table_reader import read_objects
from pipeline.rendering.contrast import Rgb, Window, compose, windows
from pipeline.rendering.drawing import (
    INK,
    Palette,
    Tint,
    badge,
    frame,
    lighter,
    nice_length,
    outline_mask,
    outline_objects,
    scale_bar,
)
from pipeline.rendering.field_selection import FIELD_PX, View, choose_fields, field_side
from pipeline.rendering.overview_layout import Caption, Legend, Note, Panel, lay_out
from pipeline.storage.atomic_files import fsync_dir, write_atomic
from pipeline.storage.layout import IMAGE, OBJECTS, OVERVIEW, QUALITY, TABLE, TISSUE
from pipeline.storage.slide_store import Index, StoredArray
from pipeline.tissue_detection.quality_control import Quality

STAGE = "overlay"

_DARK = 100  # mean grey level
_LIGHT: Rgb = (235, 235, 215)
_LEGEND_CLASSES = 6
MARKS: dict[str, Rgb] = {"blurred": (230, 120, 0), "pen": (0, 160, 60)}
ALERT: Rgb = (200, 30, 30)
_REGION: Rgb = (0, 110, 200)
_HATCH_PX = 9
"""Distance between two lines of the hatching."""
_SEEN_PX = 5.0
"""Diameter on the overview from which objects are drawn as outlines instead of a tint."""


@dataclass(frozen=True, slots=True)
class OverlayInputs:
    """What the numbers and colours mean, and what the caption says.

    Attributes:
        name: Key of the slide.
        model: Name of the model.
        image: Scale and channels of the image.
        classes: Names and colours of the classes.
        tissue_mm2: Area of the tissue; None when no tissue was detected and the whole image counts.
        objects: Whether there are labels.
        flags: Warnings about the quality of the slide.
        regions: Regions that were drawn, in pixels of the slide's level 0; None for the whole image.
        masked: Pixels of the image that could not be read.
    """

    name: str
    model: str
    image: ImageInfo
    classes: ClassInfo
    tissue_mm2: float | None
    objects: bool
    flags: tuple[str, ...]
    regions: Regions | None
    masked: tuple[Box, ...]

    @property
    def searched(self) -> str:
        """The area in which objects were searched, in words."""
        if self.regions is not None:
            return "regions"
        return "image" if self.tissue_mm2 is None else "tissue"

    def area_mm2(self, shape_yx: tuple[int, int]) -> float:
        """Area in which objects were searched."""
        image_mm2 = shape_yx[0] * shape_yx[1] * self.image.mpp**2 / 1e6
        return image_mm2 if self.tissue_mm2 is None else self.tissue_mm2


@dataclass(frozen=True, slots=True)
class OverlayObjects:
    """Class, position (pixels of the image) and typical diameter of the objects; row i is object i + 1."""

    classes: NDArray[np.uint8]
    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    diameter_px: float

    @classmethod
    def read(cls, context: StageContext, inputs: OverlayInputs) -> OverlayObjects:
        """Read ``objects.parquet``; no objects where they are switched off."""
        if not inputs.objects:
            return cls(np.zeros(0, np.uint8), np.zeros(0), np.zeros(0), 0.0)
        names = ("class", "centroid_y_um", "centroid_x_um", "area_um2")
        columns = read_objects(context.root / TABLE, names, inputs.classes.names)
        area_um2 = float(np.median(columns["area_um2"])) if len(columns["class"]) else 0.0
        diameter_px = 2 * (area_um2 / np.pi) ** 0.5 / inputs.image.mpp
        y_px, x_px = columns["centroid_y_um"] / inputs.image.mpp, columns["centroid_x_um"] / inputs.image.mpp
        return cls(columns["class"], y_px, x_px, diameter_px)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that drawing needs. ``dark``: the background is dark, as in fluorescence."""

    context: StageContext
    inputs: OverlayInputs
    objects: OverlayObjects
    view: View
    windows: tuple[Window, ...]
    dark: bool

    @property
    def colours(self) -> NDArray[np.uint8]:
        """Colours (k, 3) of the classes, lighter on a dark picture."""
        colours = self.inputs.classes.colours
        return lighter(colours) if self.dark else np.asarray(colours, np.uint8)

    @property
    def palette(self) -> Palette:
        """Colour of every object."""
        return Palette(self.objects.classes, self.colours)


def overlay_slide(context: StageContext, inputs: OverlayInputs, map_blocks: MapBlocks = serial) -> StageReport:
    """Draw ``overview.png`` in a worker, as a single block, so that this process can go on with other slides.

    Raises:
        DamagedError: An array or the table is missing or damaged.
    """
    report = StageReport(STAGE, blocks=1)
    for counts in map_blocks(partial(overlay_block, context, inputs), [(0, 0)]):
        report.add(counts)
    report.facts = context.store.facts(STAGE)
    return report


def overlay_block(context: StageContext, inputs: OverlayInputs, _whole: Index) -> Counts:
    """Draw ``overview.png``, write it atomically and stamp the stage; the bytes are the same every time."""
    scene, rgb = _scene(context, inputs)
    legend = _draw_overview(scene, rgb)
    objects, view = scene.objects, scene.view
    boxes = choose_fields(np.stack((objects.y_px, objects.x_px)), view, field_side(objects.diameter_px))
    fields = [_field(scene, box) for box in boxes]
    overview = Image.fromarray(rgb)
    scale_bar(overview, inputs.image.mpp / view.scale, part=0.2, size_px=22)
    for letter, box, field in zip("ABC", boxes, fields, strict=False):
        _mark(overview, view.overview_from_image(box), letter)
        badge(field.picture, (0, 0), letter, 24)
    page = lay_out(Panel(overview), fields, _caption(scene, legend))
    write_atomic(context.root / OVERVIEW, lambda file: page.save(file, "PNG", compress_level=3))
    fsync_dir(context.root)
    context.store.stamp(STAGE, context.plan_hash, {"fields": [str(box) for box in boxes]})
    return {"fields": len(boxes)}


def _scene(context: StageContext, inputs: OverlayInputs) -> tuple[Scene, NDArray[np.uint8]]:
    """What is drawn, and the overview (y, x, 3) without drawings."""
    view = View.of(context.shape_yx)
    pixels_CYX = _overview_pixels(context, view)
    displayed = windows(pixels_CYX, inputs.image.channels)
    rgb = compose(pixels_CYX, inputs.image.channels, displayed)
    return Scene(context, inputs, OverlayObjects.read(context, inputs), view, displayed, bool(rgb.mean() < _DARK)), rgb


# ---- the overview ---------------------------------------------------------------------------------------------------


def _overview_pixels(context: StageContext, view: View) -> NDArray[Any]:
    """The image (c, y, x) at the overview's size, from the level above it, one channel at a time."""
    level = context.store.read(str(view.level))
    return np.stack([_resize(level[channel], view) for channel in range(level.shape[0])])


def _resize(pixels_YX: NDArray[Any], view: View) -> NDArray[Any]:
    """One channel at the overview's size: smooth when reduced, single pixels when enlarged."""
    how = Image.Resampling.HAMMING if view.scale <= 1 else Image.Resampling.NEAREST
    source = pixels_YX if pixels_YX.dtype == np.uint8 else pixels_YX.astype(np.float32)
    return np.asarray(Image.fromarray(source).resize(view.shape_yx[::-1], how))


def _nearest(array: StoredArray, view: View) -> NDArray[Any]:
    """Labels or a mask (y, x) under the overview's pixels."""
    height, width = array.shape
    rows, cols = view.nearest((height, width))
    return np.asarray(array[:][np.ix_(rows, cols)])


def _draw_overview(scene: Scene, rgb: NDArray[np.uint8]) -> Legend | None:
    """Draw objects and tissue border in place: outlines where they are visible, else a tint; return its legend."""
    store, legend, tissue = scene.context.store, None, None
    if scene.inputs.tissue_mm2 is not None:
        tissue = _nearest(store.read(TISSUE), scene.view)
    if scene.objects.diameter_px * scene.view.scale >= _SEEN_PX:
        labels = _nearest(store.read(f"{OBJECTS[:-1]}{scene.view.level}"), scene.view)
        outline_objects(rgb, labels, scene.palette, 1)
    elif len(scene.objects.classes):
        legend = _draw_density(scene, rgb, tissue)
    if tissue is not None:
        outline_mask(rgb, tissue, _LIGHT if scene.dark else INK)
    _mark_cells(scene, rgb)
    _hatch(scene, rgb)
    _draw_regions(scene, rgb)
    return legend


def _mark_cells(scene: Scene, rgb: NDArray[np.uint8]) -> None:
    """Outline blurred and inked cells in place, each kind in its colour."""
    quality = Quality(scene.context.store.read(QUALITY)[:], 0.0)
    y, x = (np.arange(side) / scene.view.scale // CELL_PX for side in scene.view.shape_yx)
    for flag, cells in (("blurred", quality.blurred), ("pen", quality.inked)):
        rows, cols = (at.astype(np.int64).clip(0, side - 1) for at, side in zip((y, x), cells.shape, strict=True))
        outline_mask(rgb, cells[np.ix_(rows, cols)], MARKS[flag])


def _hatch(scene: Scene, rgb: NDArray[np.uint8]) -> None:
    """Hatch the pixels that could not be read, in place; at least 2 px wide, so that slivers are visible."""
    for box in scene.inputs.masked:
        x0, y0, x1, y1 = scene.view.overview_from_image(box)
        rows, cols = slice(int(y0), max(int(y0) + 2, round(y1))), slice(int(x0), max(int(x0) + 2, round(x1)))
        y, x = np.ogrid[rows, cols]
        inside = rgb[rows, cols]
        stripes = ((y + x) % _HATCH_PX < _HATCH_PX // 3)[: inside.shape[0], : inside.shape[1]]
        inside[stripes] = ALERT


def _draw_regions(scene: Scene, rgb: NDArray[np.uint8]) -> None:
    """Draw the outlines of the regions and of what is excluded from them, in place."""
    if scene.inputs.regions is None:
        return
    picture = Image.fromarray(rgb)
    scales = [scene.view.scale / scale for scale in scene.inputs.image.level0_from_image[::-1]]
    for ring in scene.inputs.regions.rings():
        corners = [tuple(corner) for corner in (ring * scales).tolist()]
        ImageDraw.Draw(picture).line(corners, fill=_REGION, width=3)
    rgb[:] = np.asarray(picture)


def _draw_density(scene: Scene, rgb: NDArray[np.uint8], tissue: NDArray[np.bool_] | None) -> Legend:
    """Tint by objects per mm2, smoothed over about 1 % of the overview; saturated at the 99th percentile."""
    objects, (height, width) = scene.objects, scene.view.shape_yx
    y = (objects.y_px * scene.view.scale).astype(np.int64).clip(0, height - 1)
    x = (objects.x_px * scene.view.scale).astype(np.int64).clip(0, width - 1)
    pixel_mm2 = (scene.inputs.image.mpp / scene.view.scale) ** 2 / 1e6
    present = np.unique(objects.classes).tolist()
    layer = Tint.empty((height, width))
    for number in present:
        mine = objects.classes == number
        count = np.bincount(y[mine] * width + x[mine], minlength=height * width).reshape(height, width)
        density = ndimage.gaussian_filter((count / pixel_mm2).astype(np.float32), max(height, width) / 200)
        layer.add(density if tissue is None else density * tissue, scene.colours[number])
    full = nice_length(max(1.0, float(np.percentile(layer.total[y, x], 99, method="nearest"))))
    layer.lay_over(rgb, full)
    colours = tuple(scene.inputs.classes.colours[number] for number in present[:_LEGEND_CLASSES])
    return Legend(colours, "Tint: objects per mm\u00b2, 0 to", f"{full:,.0f} and more")


def _mark(overview: Image.Image, box_xyxy: tuple[float, float, float, float], letter: str) -> None:
    frame(overview, box_xyxy)
    badge(overview, (box_xyxy[2] + 4, box_xyxy[1] - 2), letter, 20)


# ---- the fields -----------------------------------------------------------------------------------------------------


def _field(scene: Scene, box: Box) -> Panel:
    """One box at full resolution, enlarged by a whole number when small, with every outline and a scale bar."""
    store, zoom = scene.context.store, max(1, FIELD_PX // max(box.shape))
    rgb = compose(store.read(IMAGE).read(box), scene.inputs.image.channels, scene.windows)
    picture = Image.fromarray(rgb).resize((box.shape[1] * zoom, box.shape[0] * zoom), Image.Resampling.BICUBIC)
    text = ""
    if scene.inputs.objects:
        labels = np.repeat(np.repeat(store.read(OBJECTS).read(box), zoom, axis=0), zoom, axis=1)
        drawn = np.array(picture)
        outline_objects(drawn, labels, scene.palette, 2)
        picture = Image.fromarray(drawn)
        number = len(np.unique(labels[labels > 0]))
        text = f"{number:,} object{'s' * (number != 1)} in view"
    scale_bar(picture, scene.inputs.image.mpp / zoom, part=0.25, size_px=18)
    return Panel(picture, text)


# ---- the caption ---------------------------------------------------------------------------------------------------


def _caption(scene: Scene, legend: Legend | None) -> Caption:
    inputs, number = scene.inputs, len(scene.objects.classes)
    area_mm2 = inputs.area_mm2(scene.view.image_yx)
    notes = []
    if inputs.objects:
        counts = np.bincount(scene.objects.classes, minlength=len(inputs.classes.names)).tolist()
        named = zip(inputs.classes.names, inputs.classes.colours, counts, strict=True)
        notes += [Note(f"{name} {count:,}", colour) for name, colour, count in named]
        notes += [Note(f"{_figures(number / area_mm2)} objects/mm\u00b2")] if area_mm2 > 0 else []
    notes.append(Note(f"{inputs.searched} {_figures(area_mm2)} mm\u00b2"))
    notes.append(Note(f"{inputs.image.mpp:.3g} \u00b5m per pixel"))
    notes.append(Note(f"model {inputs.model}"))
    notes += [Note(flag.replace("_", " "), MARKS.get(flag, ALERT)) for flag in inputs.flags]
    return Caption(inputs.name, notes, legend)


def _figures(value: float) -> str:
    """Three significant figures, or all figures before the decimal point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
