"""One slide as it is looked at: what is known of it, and the pixels of any tile, read cell by cell.

The one decision made here: a tile is one inner chunk of one pyramid level, so a look at a slide of any size reads what
is in view and keeps a bounded number of chunks. A slide that is not complete shows what is there: a chunk that is not
written yet is a hole, and a level that is not made yet is made from up to three finer ones. Of a complete slide nothing
is missing, so a chunk that cannot be read is damage and is shown as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.view import tile_renderer
from flows.view.access_control import require_inside
from flows.view.objects_table import ALL, Filter, ViewedObjects
from pipeline.config import CELL_PX
from pipeline.errors import DamagedError
from pipeline.geometry import Box
from pipeline.objects.table_reader import count_objects
from pipeline.rendering.contrast import Rgb, Window, class_colours, compose, is_colour, windows
from pipeline.slides.bad_tiles import BadTile
from pipeline.stages.pyramid import halve_mean, halve_nearest, level_shapes
from pipeline.storage.atomic_files import read_json
from pipeline.storage.layout import IMAGE, OBJECTS, PROBABILITY, TABLE, TISSUE, tissue_factor
from pipeline.storage.manifest import previous_plan, read_manifest
from pipeline.storage.slide_store import SlideStore, StoredArray, shard_path

LAYERS = ("image", "fills", "heat", "threshold", "tissue", "left-out", "grid", "outlines")
"""In the order in which they lie upon one another, the image undermost."""
FINER = 3
"""Levels further down that are read to make one that is not there yet: 64 chunks at most."""
CELLS_KEPT = 48
"""Chunks of up to 1 MB that are kept: those of one view, of labels and their neighbours."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the plan says of a slide."""

    name: str
    mpp: float
    shape_yx: tuple[int, int]
    channels: tuple[str, ...]
    class_names: tuple[str, ...]
    colours: tuple[Rgb, ...]
    block_px: int
    threshold: float

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> Facts:
        """From a manifest's plan, or the one that was last worked on."""
        image, spec = plan["image"], plan["model"]["spec"]
        names = tuple(spec["class_names"])
        height, width = image["shape_yx"]
        colours = spec["colours"] or class_colours(len(names))
        return cls(
            name=plan["key"],
            mpp=float(image["mpp"]),
            shape_yx=(height, width),
            channels=tuple(image["channels"]),
            class_names=names,
            colours=tuple((r, g, b) for r, g, b in colours),
            block_px=plan["config"]["tiles"]["block"],
            threshold=float(plan["threshold"]),
        )

    @property
    def levels(self) -> int:
        """Of the pyramid."""
        return len(level_shapes(self.shape_yx))


@dataclass(slots=True)
class Slide:
    """A slide that is looked at. ``manifest`` is None while it is not complete."""

    store: SlideStore
    facts: Facts
    plan: Mapping[str, Any]
    manifest: Mapping[str, Any] | None
    _read: Any = field(init=False, repr=False)
    _tables: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._read = lru_cache(CELLS_KEPT)(self._read_cell)
        self._tables = lru_cache(1)(self._load_objects)

    @classmethod
    def open(cls, store: SlideStore) -> Slide | None:
        """None where nothing has been planned yet. Raises DamagedError when the manifest is not what was written."""
        manifest = read_manifest(store)
        plan = manifest["plan"] if manifest else previous_plan(store)
        return None if plan is None else cls(store, Facts.of(plan), plan, manifest)

    @property
    def version(self) -> int:
        """Another number whenever the slide was written anew: addresses of what a browser keeps carry it."""
        return self.store.manifest.stat().st_mtime_ns // 10**6 if self.complete else 0

    # ---- what there is ------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether there is a manifest."""
        return self.manifest is not None

    def has(self, path: str) -> bool:
        """Whether an array lies there."""
        return (self.store.zarr / path / "zarr.json").is_file()

    def finest(self, path: str) -> int | None:
        """Of a pyramid, named by its full resolution, the finest level that is there; None where there is none."""
        return next((level for level in range(self.facts.levels) if self.has(f"{path[:-1]}{level}")), None)

    def coarsest(self) -> int:
        """The coarsest level of the image that can be shown: of one that is not complete, few above those there are."""
        there = [level for level in range(self.facts.levels) if self.has(f"{IMAGE[:-1]}{level}")]
        last = self.facts.levels - 1
        return last if self.complete else min(last, max(there, default=last) + FINER)

    def layers(self) -> dict[str, int]:
        """What can be shown, with the finest level of each, undermost first."""
        image, probability, objects = (self.finest(path) for path in (IMAGE, PROBABILITY, OBJECTS))
        tissue = 0 if self.has(TISSUE) else None
        finest = {"image": image, "fills": objects, "heat": probability, "threshold": probability, "tissue": tissue}
        finest |= {"left-out": tissue, "grid": 0, "outlines": objects}
        return {name: level for name in LAYERS if (level := finest[name]) is not None}

    def _table(self) -> Path | None:
        path = require_inside(self.store.root, self.store.root / TABLE)
        return path if path.is_file() else None

    def count(self) -> int | None:
        """Of objects, without reading their table; None while there is none."""
        path = self._table()
        return None if path is None else count_objects(path)

    def objects(self) -> ViewedObjects | None:
        """The object table; None while there is none."""
        path = self._table()
        table: ViewedObjects | None = None if path is None else self._tables(path.stat().st_mtime_ns)
        return table

    def _load_objects(self, _changed: int) -> ViewedObjects:
        return ViewedObjects.read(self.store.root / TABLE, self.facts.class_names)

    def stage_facts(self, stage: str) -> Mapping[str, Any]:
        """What a stage recorded when it was completed; nothing before."""
        if self.manifest is not None:
            found: Mapping[str, Any] = self.manifest["stages"].get(stage, {}).get("facts", {})
            return found
        return self.store.facts(stage) if self.store.stamped(stage) else {}

    # ---- tiles --------------------------------------------------------------------------------------------------

    def place(self, level: int, row: int, col: int) -> tile_renderer.TilePosition | None:
        """Where a tile lies; None where there is none."""
        if not 0 <= level < self.facts.levels:
            return None
        area = Box.of_shape(level_shapes(self.facts.shape_yx)[level])
        box = Box(row, col, row + 1, col + 1).scale(CELL_PX).intersect(area)
        return None if box is None else tile_renderer.TilePosition(level, box)

    def tile(self, layer: str, place: tile_renderer.TilePosition, threshold: float, chosen: Filter = ALL) -> bytes:
        """A tile of a layer as a picture, of objects those chosen. What is damaged is hatched."""
        try:
            return self._tile(layer, place, threshold, chosen)
        except DamagedError:
            return tile_renderer.indexed_png(
                tile_renderer.hatched(place.box.shape), tile_renderer.palette((tile_renderer.DAMAGED,))
            )

    def _tile(self, layer: str, place: tile_renderer.TilePosition, threshold: float, chosen: Filter) -> bytes:
        if layer == "image":
            pixels = self.cell(IMAGE, place)
            return (
                tile_renderer.indexed_png(_NOTHING, tile_renderer.palette(()))
                if pixels is None
                else tile_renderer.rgb_bmp(self._rgb(pixels))
            )
        numbers, colours = self._numbers(layer, place, threshold, chosen)
        return tile_renderer.indexed_png(_NOTHING if numbers is None else numbers, colours)

    def _numbers(
        self, layer: str, place: tile_renderer.TilePosition, threshold: float, chosen: Filter
    ) -> tuple[tile_renderer.Indices | None, tile_renderer.Palette]:
        """The numbers of a tile and what each looks like."""
        match layer:
            case "heat" | "threshold":
                p = self.cell(PROBABILITY, place)
                if layer == "heat":
                    return None if p is None else tile_renderer.heat(p), tile_renderer.heat_palette()
                return None if p is None else tile_renderer.over(p, threshold), tile_renderer.palette(
                    (tile_renderer.THRESHOLD,)
                )
            case "outlines" | "fills":
                return self._labelled(layer, place, chosen), tile_renderer.palette(self.facts.colours)
            case "tissue":
                return self._tissue(place), tile_renderer.palette((tile_renderer.TISSUE,))
            case "left-out":
                return self._left_out(place), tile_renderer.palette(tile_renderer.LEFT_OUT)
            case "grid":
                return tile_renderer.grid(place, self.facts.block_px), tile_renderer.palette((tile_renderer.LINES,))
        raise KeyError(layer)

    def _rgb(self, pixels_CYX: NDArray[Any]) -> NDArray[np.uint8]:
        return compose(pixels_CYX, self.facts.channels, self._windows(pixels_CYX))

    def _windows(self, pixels_CYX: NDArray[Any]) -> tuple[Window, ...]:
        """As the metadata says; before there is any, a colour slide is shown as it is and others by what is at hand."""
        attributes = read_json(self.store.zarr / "zarr.json")["attributes"] if self.complete else {}
        channels = attributes.get("ome", {}).get("omero", {}).get("channels")
        if channels:
            return tuple((channel["window"]["start"], channel["window"]["end"]) for channel in channels)
        if self._on_glass(pixels_CYX):
            return ((0.0, 255.0),) * 3
        return windows(pixels_CYX, self.facts.channels)

    def _on_glass(self, pixels_CYX: NDArray[Any]) -> bool:
        """Whether what is not there is white."""
        return is_colour(self.facts.channels, pixels_CYX.dtype)

    def _labelled(self, layer: str, place: tile_renderer.TilePosition, chosen: Filter) -> tile_renderer.Indices | None:
        labels = self.cell(OBJECTS, place)
        if labels is None:
            return None
        table = self.objects() if len(self.facts.class_names) > 1 or chosen != ALL else None
        shown = tile_renderer.codes_of(labels, None if table is None else table.codes(chosen))
        return shown if layer == "fills" else shown * tile_renderer.rim(labels, self._beside(place))

    def _beside(self, place: tile_renderer.TilePosition) -> tile_renderer.Beside:
        """The labels around a tile."""
        row, col = place.box.y0 // CELL_PX, place.box.x0 // CELL_PX
        above, below, left, right = (
            None if (there := self.place(place.level, row + down, col + across)) is None else self.cell(OBJECTS, there)
            for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1))
        )
        return tile_renderer.Beside(
            None if above is None else above[-1],
            None if below is None else below[0],
            None if left is None else left[:, -1],
            None if right is None else right[:, 0],
        )

    def _tissue(self, place: tile_renderer.TilePosition) -> tile_renderer.Indices:
        tissue, factor = self._open(TISSUE), self._factor
        box = tile_renderer.map_box(place, factor)
        step = max(1, 2**place.level // factor)
        low = tissue[box.y0 : box.y1 : step, box.x0 : box.x1 : step]
        return tile_renderer.enlarged(low, place, factor * step)

    @property
    def _factor(self) -> int:
        return int(self.stage_facts("tissue").get("factor", tissue_factor(self.facts.mpp)))

    def _left_out(self, place: tile_renderer.TilePosition) -> tile_renderer.Indices:
        masked = [Box(*tile.box) for tile in BadTile.listed(self.stage_facts("ingest"))]
        cells = self._skipped_cells(tile_renderer.map_box(place, CELL_PX))
        return tile_renderer.left_out(tile_renderer.enlarged(cells, place, CELL_PX), masked, place)

    def _skipped_cells(self, cells: Box) -> NDArray[np.bool_]:
        """Which of these cells hold no tissue, one row of them at a time."""
        tissue, side = self._open(TISSUE), CELL_PX // self._factor
        skipped = np.ones(cells.shape, bool)
        for row in range(cells.shape[0]):
            rows = slice((cells.y0 + row) * side, min((cells.y0 + row + 1) * side, tissue.shape[0]))
            strip = tissue[rows, cells.x0 * side : min(cells.x1 * side, tissue.shape[1])]
            skipped[row] = ~np.logical_or.reduceat(strip.any(axis=0), np.arange(0, strip.shape[1], side))
        return skipped

    # ---- pixels -------------------------------------------------------------------------------------------------

    def label_at(self, y: int, x: int) -> int:
        """The object at a pixel of the image; 0 beside objects and where nothing is known."""
        place = self.place(0, y // CELL_PX, x // CELL_PX) if min(y, x) >= 0 else None
        labels = None if place is None else self.cell(OBJECTS, place)
        if place is None or labels is None or y >= place.box.y1 or x >= place.box.x1:
            return 0
        return int(labels[y - place.box.y0, x - place.box.x0])

    def cell(self, path: str, place: tile_renderer.TilePosition, finer: int = FINER) -> NDArray[Any] | None:
        """Pixels of a tile of the pyramid at ``path``, all channels; None where they are not there yet.

        Raises DamagedError when a complete slide's cannot be read.
        """
        at = f"{path[:-1]}{place.level}"
        if self.has(at):
            changed = (self.store.zarr / at / "zarr.json").stat().st_mtime_ns
            try:
                pixels: NDArray[Any] = self._read(at, place.box, changed)
            except DamagedError:  # a hole is not kept: it may be filled by now
                if self.complete:
                    raise
                return None
            return pixels
        return self._from_finer(path, place, finer) if place.level and finer and not self.complete else None

    def _from_finer(self, path: str, place: tile_renderer.TilePosition, finer: int) -> NDArray[Any] | None:
        """From the four tiles of the next finer level, as the pyramid will be."""
        row, col = place.box.y0 // CELL_PX, place.box.x0 // CELL_PX
        halve = halve_nearest if path == OBJECTS else halve_mean
        made: NDArray[Any] | None = None
        for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
            there = self.place(place.level - 1, 2 * row + down, 2 * col + across)
            pixels = None if there is None else self.cell(path, there, finer - 1)
            if there is None or pixels is None:
                continue
            if made is None:
                empty = np.iinfo(pixels.dtype).max if path == IMAGE and self._on_glass(pixels) else 0
                made = np.full((*pixels.shape[:-2], *place.box.shape), empty, pixels.dtype)
            y, x = down * CELL_PX // 2, across * CELL_PX // 2
            half = halve(pixels)
            made[..., y : y + half.shape[-2], x : x + half.shape[-1]] = half
        return made

    def _read_cell(self, path: str, box: Box, _changed: int) -> NDArray[Any]:
        return self._open(path, box).read(box)

    def _open(self, path: str, box: Box | None = None) -> StoredArray:
        """An array of this slide alone: links out of its folder are refused, also of the shard that is read."""
        require_inside(self.store.root, self.store.zarr / path / "zarr.json")
        array = self.store.read(path)
        if box is not None:
            index = box.y0 // array.block_px, box.x0 // array.block_px
            require_inside(self.store.root, shard_path(array.location, index, len(array.shape)))
        return array


_NOTHING = np.zeros((1, 1), np.uint8)
