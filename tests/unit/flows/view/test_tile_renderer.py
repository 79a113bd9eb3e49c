"""Viewer tiles compared with whole arrays and scikit-image."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

from flows.view import tile_renderer
from flows.view.objects_table import ALL_OBJECTS, Filter
from flows.view.slide_tiles import LAYERS, Facts, Slide
from pipeline.geometry import Box
from pipeline.stages.pyramid import halve_mean, halve_nearest, level_shapes
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import PLAN, put_array, put_objects
from unet_core.spec import MapName

SHAPE = (1100, 700)
SEED = 20261122
FACTOR = 32
MASKED = Box(500, 30, 530, 90)


# ---- one tile --------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_inner_boundary_of_pieces_equals_boundary_of_whole(data: st.DataObject) -> None:
    """Pieces cut anywhere have the inner boundaries that scikit-image finds in the whole array."""
    shape = data.draw(st.tuples(*(st.integers(2, 12),) * 2))
    labels = data.draw(arrays(np.uint32, shape, elements=st.integers(0, 3)))
    y, x = (data.draw(st.integers(1, side - 1)) for side in shape)
    found = np.zeros(shape, bool)
    for rows in (slice(0, y), slice(y, shape[0])):
        for cols in (slice(0, x), slice(x, shape[1])):
            neighbours = tile_renderer.NeighbourLabels(
                labels[rows.start - 1, cols] if rows.start else None,
                labels[rows.stop, cols] if rows.stop < shape[0] else None,
                labels[rows, cols.start - 1] if cols.start else None,
                labels[rows, cols.stop] if cols.stop < shape[1] else None,
            )
            found[rows, cols] = tile_renderer.inner_boundary(labels[rows, cols], neighbours)
    assert np.array_equal(found, find_boundaries(labels, connectivity=1, mode="inner"))


@given(st.integers(0, 255), st.floats(0, 1))
def test_threshold_equals_threshold_of_label_stage(byte: int, threshold: float) -> None:
    pixels = np.full((2, 1, 1), byte, np.uint8) * np.array([1, 0], np.uint8)[:, None, None]
    assert bool(tile_renderer.above_threshold(pixels, threshold)[0, 0]) == (byte >= ceil(255 * threshold))
    assert tile_renderer.max_probability(pixels)[0, 0] == byte


@given(st.integers(0, 3), st.integers(0, 30), st.integers(1, 20), st.sampled_from([1, 4, 8]))
def test_coarse_map_is_upsampled_to_each_pixel(level: int, start: int, length: int, factor: int) -> None:
    place = tile_renderer.PyramidTile(level, Box(start, 3, start + length, 8))
    low = np.random.default_rng(SEED).integers(0, 2, (500, 500), np.uint8)
    box = tile_renderer.map_box(place, factor)
    shown = tile_renderer.upsampled(low[box.slices], place, factor)
    for y, x in np.ndindex(*shown.shape):
        assert shown[y, x] == low[(start + y) * 2**level // factor, (3 + x) * 2**level // factor]


def test_unknown_object_ids_have_no_colour() -> None:
    labels = np.array([[0, 1, 2], [3, 9, 0]], np.uint32)
    assert tile_renderer.colour_indices(labels, np.array([1, 3, 2], np.uint8)).tolist() == [[0, 1, 3], [2, 0, 0]]
    assert tile_renderer.colour_indices(labels, None).tolist() == [[0, 1, 1], [1, 1, 0]]


def test_indices_are_encoded_in_palette_colours() -> None:
    indices = np.random.default_rng(SEED).integers(0, 3, (7, 9), np.uint8)
    colours = tile_renderer.palette(((10, 20, 30), (200, 100, 0)))
    assert np.array_equal(decoded(tile_renderer.indexed_png(indices, colours)), colours[indices])
    assert decoded(tile_renderer.indexed_png(np.zeros((512, 512), np.uint8), colours)).tolist() == [[[0, 0, 0, 0]]]
    heat = np.arange(256, dtype=np.uint8).reshape(16, 16)
    shown = decoded(tile_renderer.indexed_png(heat, tile_renderer.heat_palette()))
    assert shown[0, 0, 3] == 0
    assert (shown[8:, :, 3] == 255).all()
    assert shown[-1, -1, :3].tolist() == list(tile_renderer.HEAT[-1])
    rgb = np.random.default_rng(SEED).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(decoded(tile_renderer.rgb_bmp(rgb))[..., :3], rgb)


def decoded(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


# ---- a slide ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays_of() -> dict[str, NDArray[Any]]:
    """Full-resolution arrays: labels in squares, noise, tissue with a hole."""
    rng = np.random.default_rng(SEED)
    coarse = rng.integers(0, 40, [-(-side // 12) for side in SHAPE], np.uint32)
    labels = np.repeat(np.repeat(coarse, 12, 0), 12, 1)[: SHAPE[0], : SHAPE[1]]
    labels[rng.random(SHAPE) < 0.02] = 0
    tissue = np.ones([-(-side // FACTOR) for side in SHAPE], bool)
    tissue[:16, 16:] = False
    return {
        "0": rng.integers(0, 256, (3, *SHAPE), np.uint8),
        "probability/0": rng.integers(0, 256, (2, *SHAPE), np.uint8),
        **{f"maps/{name}/0": rng.integers(0, 256, SHAPE, np.uint8) for name in get_args(MapName)},
        "labels/objects/0": labels,
        "tissue": tissue,
    }


def slide_of(root: Path, found: dict[str, NDArray[Any]], *, levels: int, complete: bool) -> Slide:
    """Write these arrays with ``levels`` pyramid levels and open the slide."""
    store = SlideStore(root)
    for path, pixels in found.items():
        for level in range(1 if path == "tissue" else levels):
            halve = halve_nearest if path.startswith("labels") else halve_mean
            put_array(store, path if path == "tissue" else f"{path[:-1]}{level}", pixels, PLAN)
            pixels = halve(pixels) if path != "tissue" else pixels
    count = int(found["labels/objects/0"].max())
    put_objects(store, found["labels/objects/0"], {"a": range(1, count + 1, 2), "b": range(2, count + 1, 2)}, 0.25)
    colours = ((0, 190, 60), (255, 140, 0))
    facts = Facts("s", 0.25, SHAPE, ("red", "green", "blue"), ("a", "b"), colours, 512, 0.3)
    stages = {"tissue": {"facts": {"factor": FACTOR}}}
    stages["ingest"] = {"facts": {"masked": [[0, 0, 0, [MASKED.y0, MASKED.x0, MASKED.y1, MASKED.x1]]]}}  # type: ignore[dict-item]  # as JSON
    (store.zarr / "zarr.json").write_text('{"attributes": {}}')
    return Slide(store, facts, {}, {"stages": stages} if complete else None)


@pytest.fixture(scope="module")
def slide(arrays_of: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return slide_of(tmp_path_factory.mktemp("viewed"), arrays_of, levels=3, complete=True)


def whole(
    slide: Slide, layer: str, level: int, threshold: float = 0.3, chosen: Filter = ALL_OBJECTS
) -> NDArray[np.uint8]:
    """Assemble all tiles of a level of a layer."""
    shape = level_shapes(SHAPE)[level]
    made = np.zeros((*shape, 4), np.uint8)
    for row in range(-(-shape[0] // 512)):
        for col in range(-(-shape[1] // 512)):
            place = slide.tile_position(level, row, col)
            assert place is not None
            shown = decoded(slide.tile(layer, place, threshold, chosen))
            assert shown.shape[:2] in (place.box.shape, (1, 1))
            made[place.box.slices] = shown
    return made


def expected(found: dict[str, NDArray[Any]], layer: str, level: int, threshold: float) -> NDArray[np.uint8]:
    """The same layer computed by numpy and scikit-image on whole arrays."""
    step = np.s_[:: 2**level, :: 2**level]
    y, x = (np.arange(side)[:: 2**level] for side in SHAPE)
    if layer == "image":
        pixels = found["0"]
        for _ in range(level):
            pixels = halve_mean(pixels)
        return np.dstack([*pixels, np.full(pixels.shape[1:], 255, np.uint8)])
    probability = found["probability/0"]
    for _ in range(level):
        probability = halve_mean(probability)
    labels = found["labels/objects/0"][step]
    classes = np.where(labels > 0, 2 - labels % 2, 0)
    colours = np.array([(0, 0, 0, 0), (0, 190, 60, 255), (255, 140, 0, 255)], np.uint8)
    if layer == "fills":
        return colours[classes]
    if layer == "outlines":
        return colours[np.where(find_boundaries(labels, connectivity=1, mode="inner"), classes, 0)]
    if layer == "heat":
        return tile_renderer.heat_palette()[probability.max(axis=0)]
    if layer in get_args(MapName):
        plane = found[f"maps/{layer}/0"]
        for _ in range(level):
            plane = halve_mean(plane)
        return tile_renderer.heat_palette()[plane]
    tissue = found["tissue"][np.ix_(y // FACTOR, x // FACTOR)]
    if layer == "left-out":
        skipped = np.zeros([-(-side // 512) for side in SHAPE], bool)
        skipped[0, 1] = True
        numbers = skipped[np.ix_(y // 512, x // 512)].astype(int)
        seen = np.ix_((y + 2**level > MASKED.y0) & (y < MASKED.y1), (x + 2**level > MASKED.x0) & (x < MASKED.x1))
        numbers[seen] = 2
        return tile_renderer.palette(tile_renderer.LEFT_OUT)[numbers]
    lines = [axis % 512 < 2**level for axis in (y, x)]
    one = {
        "threshold": (probability.max(axis=0) >= ceil(255 * threshold), tile_renderer.THRESHOLD),
        "tissue": (tissue, tile_renderer.TISSUE),
        "grid": (lines[0][:, None] | lines[1][None], tile_renderer.LINES),
    }
    mask, colour = one[layer]
    return np.where(mask[..., None], np.array((*colour, 255), np.uint8), np.uint8(0))


@pytest.mark.parametrize("layer", LAYERS)
def test_assembled_tiles_equal_the_whole_layer(slide: Slide, arrays_of: dict[str, NDArray[Any]], layer: str) -> None:
    assert list(slide.layers()) == list(LAYERS)
    for level in range(3 if layer != "left-out" else 2):
        threshold = 0.3 + level / 10
        assert np.array_equal(whole(slide, layer, level, threshold), expected(arrays_of, layer, level, threshold)), (
            level
        )
    assert slide.tile_position(0, 3, 0) is None
    assert slide.tile_position(0, 0, -1) is None
    assert slide.tile_position(3, 0, 0) is None


@pytest.mark.parametrize("layer", ["fills", "outlines"])
def test_only_selected_objects_are_drawn(slide: Slide, arrays_of: dict[str, NDArray[Any]], layer: str) -> None:
    objects = pq.read_table(slide.store.root / "objects.parquet", columns=["id", "area_um2"]).to_pylist()
    chosen = Filter(least_area=sorted(row["area_um2"] for row in objects)[len(objects) // 2])
    ids = [row["id"] for row in objects if row["area_um2"] >= chosen.least_area]
    assert 5 < len(ids) < len(objects) - 5
    for level in range(3):
        every = expected(arrays_of, layer, level, 0.3)
        every[~np.isin(arrays_of["labels/objects/0"][:: 2**level, :: 2**level], ids)] = 0
        assert np.array_equal(whole(slide, layer, level, chosen=chosen), every), level


def test_missing_levels_are_computed_from_finer_ones(
    slide: Slide, arrays_of: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    going = slide_of(tmp_path / "s", arrays_of, levels=1, complete=False)
    assert slide.coarsest() == going.coarsest() == 2
    large = replace(going.facts, shape_yx=(40_000, 40_000))
    assert (large.levels, Slide(going.store, large, {}, None).coarsest()) == (8, 3)
    for layer in ("image", "heat", "fills"):
        for level in range(3):
            assert np.array_equal(whole(going, layer, level), whole(slide, layer, level)), (layer, level)
    (going.store.zarr / "0" / "c" / "0" / "1" / "0").unlink()
    hole = whole(slide_of_same(going), "image", 1)
    assert (hole[256:512, :256] == 255).all(), "not written yet"
    hole[256:512, :256] = whole(slide, "image", 1)[256:512, :256]
    assert np.array_equal(hole, whole(slide, "image", 1))


def slide_of_same(slide: Slide, *, complete: bool = False) -> Slide:
    """Open the same folder again."""
    return Slide(slide.store, slide.facts, {}, {"stages": {}} if complete else None)


def test_fluorescence_channels_use_windows_of_the_metadata(tmp_path: Path) -> None:
    """The windows are the same for every tile, so neighbouring tiles match."""
    store = SlideStore(tmp_path)
    pixels = np.random.default_rng(SEED).integers(0, 4000, (2, 600, 20), np.uint16)
    put_array(store, "0", pixels, PLAN)
    windows = [(100.0, 1100.0), (0.0, 4000.0)]
    shown = [{"window": {"start": start, "end": end}} for start, end in windows]
    store.zarr.joinpath("zarr.json").write_text(json.dumps({"attributes": {"ome": {"omero": {"channels": shown}}}}))
    facts = Facts("s", 0.5, (600, 20), ("DAPI", "GFP"), ("a",), ((0, 190, 60),), 512, 0.5)
    slide = Slide(store, facts, {}, {"stages": {}})
    blue, green = (
        ((plane - low) / (high - low)).clip(0, 1) for plane, (low, high) in zip(pixels, windows, strict=True)
    )
    colours = np.array([(0, 92, 255), (0, 255, 0)])
    expected = (blue[..., None] * colours[0] + green[..., None] * colours[1]).clip(0, 255)
    for row, rows in ((0, slice(0, 512)), (1, slice(512, 600))):
        place = slide.tile_position(0, row, 0)
        assert place is not None
        assert np.abs(decoded(slide.tile("image", place, 0.5))[..., :3] - expected[rows]).max() <= 0.51


def test_bundled_openseadragon_equals_the_release() -> None:
    """The copy is the file of its release without the line that names a source map."""
    file = Path(tile_renderer.__file__).parent / "static" / "openseadragon.min.js"
    notice = (file.parent / "openseadragon.LICENSE.txt").read_text("utf-8")
    version, digest = re.findall(r"^(?:Version|SHA-256): (\S+)$", notice, re.M)
    content = file.read_bytes()
    assert content.startswith(f"//! openseadragon {version}\n".encode())
    assert hashlib.sha256(content).hexdigest() == digest
    assert "Redistribution and use in source and binary forms" in notice


def test_only_the_damaged_tile_is_hatched(slide: Slide, arrays_of: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    damaged = slide_of(tmp_path / "s", arrays_of, levels=3, complete=True)
    shard = damaged.store.zarr / "0" / "c" / "0" / "1" / "0"
    shard.write_bytes(shard.read_bytes()[:-100])
    shown, sound = whole(damaged, "image", 0), whole(slide, "image", 0)
    stripes = shown[512:1024, :512]
    assert {tuple(colour) for colour in np.unique(stripes.reshape(-1, 4), axis=0).tolist()} == {
        (0, 0, 0, 0),
        (*tile_renderer.DAMAGED, 255),
    }
    shown[512:1024, :512] = sound[512:1024, :512]
    assert np.array_equal(shown, sound)


def test_label_at_returns_the_object_of_a_pixel(slide: Slide, arrays_of: dict[str, NDArray[Any]]) -> None:
    rng = np.random.default_rng(SEED)
    for y, x in zip(rng.integers(0, SHAPE[0], 200), rng.integers(0, SHAPE[1], 200), strict=True):
        assert slide.label_at(int(y), int(x)) == arrays_of["labels/objects/0"][y, x]
    for y, x in ((-1, 5), (5, -1), (SHAPE[0], 5), (5, SHAPE[1]), (10**9, 0)):
        assert slide.label_at(y, x) == 0


def test_chunks_are_cached_until_the_array_changes(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second view of a tile and its neighbours reads nothing; a new array is read again."""
    fresh = slide_of_same(slide, complete=True)
    opened: list[str] = []
    original = SlideStore.read
    monkeypatch.setattr(SlideStore, "read", lambda store, path: (opened.append(path), original(store, path))[1])
    whole(fresh, "outlines", 0)
    assert len(opened) == 6, "three by two chunks, each once"
    whole(fresh, "fills", 0)
    assert len(opened) == 6
    metadata = fresh.store.zarr / "labels" / "objects" / "0" / "zarr.json"
    before = metadata.stat()
    metadata.write_bytes(metadata.read_bytes())
    assert metadata.stat().st_mtime_ns != before.st_mtime_ns
    whole(fresh, "fills", 0)
    assert len(opened) == 12
