"""Tiles of one slide: what is known of it, and the pixels of any tile of any layer.

A tile is one inner chunk of one pyramid level, so viewing a slide of any size reads only what is in view and caches a
bounded number of chunks. Of an incomplete slide the available part is shown: a chunk that is not written yet is empty,
and a missing level is computed from up to three finer ones. Of a complete slide nothing may be missing, so a chunk that
cannot be read is damage and is drawn as such.
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
from flows.view.objects_table import ALL_OBJECTS, Filter, ViewedObjects
from pipeline.config import CELL_PX
from pipeline.errors import DamagedError
from pipeline.geometry import Box
from pipeline.objects.table_reader import count_objects
from pipeline.rendering.contrast import Rgb, Window, class_colours, compose, is_colour, windows
from pipeline.slides.bad_tiles import BadTile
from pipeline.stages.pyramid import halve_mean, halve_nearest, level_shapes
from pipeline.storage.atomic_files import read_json
from pipeline.storage.layout import IMAGE, MAPS, OBJECTS, PROBABILITY, TABLE, TISSUE, tissue_factor
from pipeline.storage.manifest import previous_plan, read_manifest
from pipeline.storage.slide_store import SlideStore, StoredArray, shard_path

LAYERS = ("image", "fills", "heat", *MAPS, "threshold", "tissue", "left-out", "grid", "outlines")
"""The layers in drawing order, bottom first."""
FINER_LEVELS = 3
"""Number of finer levels from which a missing level is computed: at most 64 chunks per tile."""
CHUNKS_CACHED = 48
"""Number of chunks (up to 1 MB each) that are cached: those of one view, of labels and their neighbours."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The properties of a slide that its plan records."""

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
        """Read them from the plan in a manifest, or from the plan of the last run."""
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
        """Number of pyramid levels."""
        return len(level_shapes(self.shape_yx))


@dataclass(slots=True)
class Slide:
    """A slide opened for viewing. ``manifest`` is None while it is incomplete."""

    store: SlideStore
    facts: Facts
    plan: Mapping[str, Any]
    manifest: Mapping[str, Any] | None
    _read: Any = field(init=False, repr=False)
    _tables: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._read = lru_cache(CHUNKS_CACHED)(self._read_cell)
        self._tables = lru_cache(1)(self._load_objects)

    @classmethod
    def open(cls, store: SlideStore) -> Slide | None:
        """Open the slide of a store; None if nothing has been planned yet.

        Raises:
            DamagedError: If the manifest does not match its checksum.
        """
        manifest = read_manifest(store)
        plan = manifest["plan"] if manifest else previous_plan(store)
        return None if plan is None else cls(store, Facts.of(plan), plan, manifest)

    @property
    def version(self) -> int:
        """A number that changes whenever the slide is written again. It is part of the URLs that browsers cache."""
        return self.store.manifest.stat().st_mtime_ns // 10**6 if self.complete else 0

    # ---- availability -------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether the slide has a manifest."""
        return self.manifest is not None

    def has(self, path: str) -> bool:
        """Whether an array exists at a path of the OME-Zarr."""
        return (self.store.zarr / path / "zarr.json").is_file()

    def finest(self, path: str) -> int | None:
        """Return the finest existing level of the pyramid whose full resolution is ``path``; None if there is none."""
        return next((level for level in range(self.facts.levels) if self.has(f"{path[:-1]}{level}")), None)

    def coarsest(self) -> int:
        """Return the coarsest level of the image that can be shown.

        For an incomplete slide it lies at most ``FINER_LEVELS`` above the existing ones.
        """
        available = [level for level in range(self.facts.levels) if self.has(f"{IMAGE[:-1]}{level}")]
        last = self.facts.levels - 1
        return last if self.complete else min(last, max(available, default=last) + FINER_LEVELS)

    def layers(self) -> dict[str, int]:
        """Return the layers that can be shown with the finest level of each, bottom first."""
        image, probability, objects = (self.finest(path) for path in (IMAGE, PROBABILITY, OBJECTS))
        tissue = 0 if self.has(TISSUE) else None
        finest = {"image": image, "fills": objects, "heat": probability, "threshold": probability, "tissue": tissue}
        finest |= {name: self.finest(path) for name, path in MAPS.items()}
        finest |= {"left-out": tissue, "grid": 0, "outlines": objects}
        return {name: level for name in LAYERS if (level := finest[name]) is not None}

    def _table(self) -> Path | None:
        path = require_inside(self.store.root, self.store.root / TABLE)
        return path if path.is_file() else None

    def count(self) -> int | None:
        """Return the number of objects without reading the table; None if there is no table."""
        path = self._table()
        return None if path is None else count_objects(path)

    def objects(self) -> ViewedObjects | None:
        """Return the object table; None if there is none."""
        path = self._table()
        table: ViewedObjects | None = None if path is None else self._tables(path.stat().st_mtime_ns)
        return table

    def _load_objects(self, _changed: int) -> ViewedObjects:
        return ViewedObjects.read(self.store.root / TABLE, self.facts.class_names)

    def stage_facts(self, stage: str) -> Mapping[str, Any]:
        """Return what a stage recorded on completion; empty before that."""
        if self.manifest is not None:
            facts: Mapping[str, Any] = self.manifest["stages"].get(stage, {}).get("facts", {})
            return facts
        return self.store.facts(stage) if self.store.stamped(stage) else {}

    # ---- tiles --------------------------------------------------------------------------------------------------

    def tile_position(self, level: int, row: int, col: int) -> tile_renderer.PyramidTile | None:
        """Return the position of a tile; None if it is outside the pyramid."""
        if not 0 <= level < self.facts.levels:
            return None
        area = Box.of_shape(level_shapes(self.facts.shape_yx)[level])
        box = Box(row, col, row + 1, col + 1).scale(CELL_PX).intersect(area)
        return None if box is None else tile_renderer.PyramidTile(level, box)

    def tile(
        self, layer: str, position: tile_renderer.PyramidTile, threshold: float, objects_filter: Filter = ALL_OBJECTS
    ) -> bytes:
        """Render a tile of a layer as a PNG or BMP. A tile that cannot be read is hatched.

        Args:
            layer: One of ``LAYERS``.
            position: Level and box of the tile.
            threshold: Probability threshold of the layer ``threshold``.
            objects_filter: Objects drawn in the layers ``fills`` and ``outlines``.
        """
        try:
            return self._tile(layer, position, threshold, objects_filter)
        except DamagedError:
            return tile_renderer.indexed_png(
                tile_renderer.hatched(position.box.shape), tile_renderer.palette((tile_renderer.DAMAGED,))
            )

    def _tile(self, layer: str, position: tile_renderer.PyramidTile, threshold: float, objects_filter: Filter) -> bytes:
        if layer == "image":
            pixels = self.cell(IMAGE, position)
            return (
                tile_renderer.indexed_png(_EMPTY, tile_renderer.palette(()))
                if pixels is None
                else tile_renderer.rgb_bmp(self._rgb(pixels))
            )
        numbers, colours = self._numbers(layer, position, threshold, objects_filter)
        return tile_renderer.indexed_png(_EMPTY if numbers is None else numbers, colours)

    def _numbers(
        self, layer: str, position: tile_renderer.PyramidTile, threshold: float, objects_filter: Filter
    ) -> tuple[tile_renderer.Indices | None, tile_renderer.Palette]:
        """Return the palette indices of a tile and the palette; None for the indices if there is nothing to show."""
        if layer in MAPS:
            return self.cell(MAPS[layer], position), tile_renderer.heat_palette()
        match layer:
            case "heat" | "threshold":
                p = self.cell(PROBABILITY, position)
                if layer == "heat":
                    return None if p is None else tile_renderer.max_probability(p), tile_renderer.heat_palette()
                return None if p is None else tile_renderer.above_threshold(p, threshold), tile_renderer.palette(
                    (tile_renderer.THRESHOLD,)
                )
            case "outlines" | "fills":
                return self._object_layer(layer, position, objects_filter), tile_renderer.palette(self.facts.colours)
            case "tissue":
                return self._tissue_layer(position), tile_renderer.palette((tile_renderer.TISSUE,))
            case "left-out":
                return self._left_out_layer(position), tile_renderer.palette(tile_renderer.LEFT_OUT)
            case "grid":
                return tile_renderer.grid(position, self.facts.block_px), tile_renderer.palette((tile_renderer.LINES,))
        raise KeyError(layer)

    def _rgb(self, pixels_CYX: NDArray[Any]) -> NDArray[np.uint8]:
        return compose(pixels_CYX, self.facts.channels, self._windows(pixels_CYX))

    def _windows(self, pixels_CYX: NDArray[Any]) -> tuple[Window, ...]:
        """Display windows of the channels, from the metadata; before there is any, colour slides are unchanged."""
        attributes = read_json(self.store.zarr / "zarr.json")["attributes"] if self.complete else {}
        channels = attributes.get("ome", {}).get("omero", {}).get("channels")
        if channels:
            return tuple((channel["window"]["start"], channel["window"]["end"]) for channel in channels)
        if self._background_is_white(pixels_CYX):
            return ((0.0, 255.0),) * 3
        return windows(pixels_CYX, self.facts.channels)

    def _background_is_white(self, pixels_CYX: NDArray[Any]) -> bool:
        """Whether missing pixels are white (bright field) rather than black."""
        return is_colour(self.facts.channels, pixels_CYX.dtype)

    def _object_layer(
        self, layer: str, position: tile_renderer.PyramidTile, objects_filter: Filter
    ) -> tile_renderer.Indices | None:
        labels = self.cell(OBJECTS, position)
        if labels is None:
            return None
        table = self.objects() if len(self.facts.class_names) > 1 or objects_filter != ALL_OBJECTS else None
        indices = tile_renderer.colour_indices(labels, None if table is None else table.codes(objects_filter))
        return (
            indices if layer == "fills" else indices * tile_renderer.inner_boundary(labels, self._neighbours(position))
        )

    def _neighbours(self, position: tile_renderer.PyramidTile) -> tile_renderer.NeighbourLabels:
        """The labels next to each side of a tile."""
        row, col = position.box.y0 // CELL_PX, position.box.x0 // CELL_PX
        above, below, left, right = (
            None
            if (neighbour := self.tile_position(position.level, row + down, col + across)) is None
            else self.cell(OBJECTS, neighbour)
            for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1))
        )
        return tile_renderer.NeighbourLabels(
            None if above is None else above[-1],
            None if below is None else below[0],
            None if left is None else left[:, -1],
            None if right is None else right[:, 0],
        )

    def _tissue_layer(self, position: tile_renderer.PyramidTile) -> tile_renderer.Indices:
        tissue, factor = self._open(TISSUE), self._factor
        box = tile_renderer.map_box(position, factor)
        step = max(1, 2**position.level // factor)
        low = tissue[box.y0 : box.y1 : step, box.x0 : box.x1 : step]
        return tile_renderer.upsampled(low, position, factor * step)

    @property
    def _factor(self) -> int:
        return int(self.stage_facts("tissue").get("factor", tissue_factor(self.facts.mpp)))

    def _left_out_layer(self, position: tile_renderer.PyramidTile) -> tile_renderer.Indices:
        masked = [Box(*tile.box) for tile in BadTile.listed(self.stage_facts("ingest"))]
        cells = self._skipped_cells(tile_renderer.map_box(position, CELL_PX))
        return tile_renderer.left_out(tile_renderer.upsampled(cells, position, CELL_PX), masked, position)

    def _skipped_cells(self, cells: Box) -> NDArray[np.bool_]:
        """Return which cells hold no tissue, computed one row of cells at a time."""
        tissue, side = self._open(TISSUE), CELL_PX // self._factor
        skipped = np.ones(cells.shape, bool)
        for row in range(cells.shape[0]):
            rows = slice((cells.y0 + row) * side, min((cells.y0 + row + 1) * side, tissue.shape[0]))
            strip = tissue[rows, cells.x0 * side : min(cells.x1 * side, tissue.shape[1])]
            skipped[row] = ~np.logical_or.reduceat(strip.any(axis=0), np.arange(0, strip.shape[1], side))
        return skipped

    # ---- pixels -------------------------------------------------------------------------------------------------

    def label_at(self, y: int, x: int) -> int:
        """Return the object id at a pixel of the full resolution; 0 between objects and where nothing is known."""
        position = self.tile_position(0, y // CELL_PX, x // CELL_PX) if min(y, x) >= 0 else None
        labels = None if position is None else self.cell(OBJECTS, position)
        if position is None or labels is None or y >= position.box.y1 or x >= position.box.x1:
            return 0
        return int(labels[y - position.box.y0, x - position.box.x0])

    def cell(self, path: str, position: tile_renderer.PyramidTile, finer: int = FINER_LEVELS) -> NDArray[Any] | None:
        """Read the pixels of a tile, all channels.

        Args:
            path: Full-resolution array of the pyramid.
            position: Level and box of the tile.
            finer: Number of finer levels that may be read if this level is missing.

        Returns:
            Array (..., y, x), or None if the pixels do not exist yet.

        Raises:
            DamagedError: If the slide is complete and the pixels cannot be read.
        """
        array = f"{path[:-1]}{position.level}"
        if self.has(array):
            changed = (self.store.zarr / array / "zarr.json").stat().st_mtime_ns
            try:
                pixels: NDArray[Any] = self._read(array, position.box, changed)
            except DamagedError:  # an error is not cached: the chunk may exist by now
                if self.complete:
                    raise
                return None
            return pixels
        return self._from_finer(path, position, finer) if position.level and finer and not self.complete else None

    def _from_finer(self, path: str, position: tile_renderer.PyramidTile, finer: int) -> NDArray[Any] | None:
        """Compute a tile from the four tiles of the next finer level, as the pyramid stage will."""
        row, col = position.box.y0 // CELL_PX, position.box.x0 // CELL_PX
        halve = halve_nearest if path == OBJECTS else halve_mean
        made: NDArray[Any] | None = None
        for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
            source = self.tile_position(position.level - 1, 2 * row + down, 2 * col + across)
            pixels = None if source is None else self.cell(path, source, finer - 1)
            if source is None or pixels is None:
                continue
            if made is None:
                empty = np.iinfo(pixels.dtype).max if path == IMAGE and self._background_is_white(pixels) else 0
                made = np.full((*pixels.shape[:-2], *position.box.shape), empty, pixels.dtype)
            y, x = down * CELL_PX // 2, across * CELL_PX // 2
            half = halve(pixels)
            made[..., y : y + half.shape[-2], x : x + half.shape[-1]] = half
        return made

    def _read_cell(self, path: str, box: Box, _changed: int) -> NDArray[Any]:
        return self._open(path, box).read(box)

    def _open(self, path: str, box: Box | None = None) -> StoredArray:
        """Open an array of this slide.

        Raises:
            StoreError: If a link leads out of the slide folder, also for the shard that holds ``box``.
        """
        require_inside(self.store.root, self.store.zarr / path / "zarr.json")
        array = self.store.read(path)
        if box is not None:
            index = box.y0 // array.block_px, box.x0 // array.block_px
            require_inside(self.store.root, shard_path(array.location, index, len(array.shape)))
        return array


_EMPTY = np.zeros((1, 1), np.uint8)
