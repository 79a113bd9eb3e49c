"""``on_bad_tile: mask``: slides with tiles that cannot be decoded.

A slide completes without the tile, which is reported. One command segments a sound slide, its twin with one damaged
tile, and a slide without any readable tile. Where the network's input does not include the tile, twin and slide are
byte-identical.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from pipeline.stages.overlay import ALERT
from tests.support.commands import CLASSES, Command, Ran, is_complete, result_digests
from tests.support.faults.pictures import draw, red_and_blue
from tests.support.make_slides import Recipe, overwrite_bytes, tile_span, write_tiff
from unet_core.model_file.checkpoint import describe
from unet_core.shapes import ValidShape

SHAPE = (600, 1700)
TILE = 128
PLACE = (1, 9)
"""Row and column of the damaged tile."""
CELL = 512


@dataclass(frozen=True)
class Masked:
    ran: Ran
    slides: Path

    def array(self, key: str, path: str) -> np.ndarray[Any, Any]:
        return np.asarray(zarr.open_array(self.ran.out / key / "slide.ome.zarr" / path, mode="r")[:])

    def facts(self, key: str, stage: str) -> dict[str, Any]:
        manifest = json.loads((self.ran.out / key / "manifest.json").read_text())
        return dict(manifest["stages"][stage]["facts"])


def damage(path: Path, index: int) -> None:
    """Zero the end of a JPEG's scan."""
    offset, count = tile_span(path, index)
    overwrite_bytes(path, offset + count // 3, bytes(count - count // 3))


@pytest.fixture(scope="module")
def masked(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Masked:
    folder = tmp_path_factory.mktemp("masked")
    slides = folder / "slides"
    slides.mkdir()
    recipe = Recipe(compression="jpeg", tile=(TILE, TILE))
    sound = write_tiff(slides / "sound.tif", draw(SHAPE, red_and_blue(SHAPE)), recipe)
    columns = -(-SHAPE[1] // TILE)
    damage(Path(shutil.copy(sound, slides / "torn.tif")), PLACE[0] * columns + PLACE[1])
    lost = write_tiff(slides / "lost.tif", draw((100, 100), red_and_blue((100, 100))), recipe)
    damage(lost, 0)
    ran = overtile.segment(slides, folder / "out", "input.on_bad_tile=mask", "tissue=null")
    return Masked(ran, slides)


def test_fault_42_a_slide_goes_on_without_a_tile_and_one_without_any_fails(masked: Masked) -> None:
    assert masked.ran.code == 3, masked.ran.transcript
    assert masked.ran.states() == {"lost": "failed", "sound": "complete", "torn": "complete"}
    assert "none of its 1 tiles can be decoded" in masked.ran.error_of("lost")
    assert not is_complete(masked.ran.out / "lost")


def test_fault_42_the_tile_is_listed_in_manifest_and_summary(masked: Masked) -> None:
    y, x = (index * TILE for index in PLACE)
    assert masked.facts("torn", "ingest") == {
        "masked": [[0, *PLACE, [y, x, y + TILE, x + TILE]]],
        "flags": ["masked_tiles"],
    }
    assert masked.facts("sound", "ingest") == {"masked": [], "flags": []}
    summary = (masked.ran.out / "summary.md").read_text()
    assert "- torn: unreadable tiles masked, no objects there: level 0, tile (1, 9)" in summary
    assert "masked" in (masked.ran.out / "results.csv").read_text()


def test_fault_42_bytes_outside_the_tiles_context_equal_the_sound_slide(masked: Masked) -> None:
    y, x = (index * TILE for index in PLACE)
    sound, torn = (masked.array(key, "0") for key in ("sound", "torn"))
    inside = np.zeros(SHAPE, bool)
    inside[y : y + TILE, x : x + TILE] = True
    assert np.array_equal(sound[:, ~inside], torn[:, ~inside])
    assert (torn[:, inside] == 255).all()
    halo = ValidShape.of(describe(CLASSES).spec).halo
    seen = np.zeros(SHAPE, bool)
    for top in range(0, SHAPE[0], CELL):
        for left in range(0, SHAPE[1], CELL):
            read = inside[max(0, top - halo) : top + CELL + halo, max(0, left - halo) : left + CELL + halo]
            seen[top : top + CELL, left : left + CELL] = read.any()
    assert 0 < seen.mean() < 0.5
    sound, torn = (masked.array(key, "probability/0") for key in ("sound", "torn"))
    assert np.array_equal(sound[:, ~seen], torn[:, ~seen])
    assert (sound[:, ~seen] > 127).any()
    assert (torn[:, seen] == 0).all()
    assert (sound[:, seen] > 127).any()


def test_fault_42_overview_hatches_the_tile(masked: Masked) -> None:
    red = [
        (np.asarray(Image.open(masked.ran.out / key / "overview.png").convert("RGB")) == ALERT).all(axis=-1)
        for key in ("sound", "torn")
    ]
    assert red[1].sum() > red[0].sum() + 200


@pytest.mark.long
def test_fault_42_what_was_masked_stays_listed_through_a_repair(
    masked: Masked, overtile: Command, tmp_path: Path, record_property: Any
) -> None:
    """A repair restores the list even if the whole of .work was removed."""
    out = tmp_path / "out"
    shutil.copytree(masked.ran.out / "torn", out / "torn")
    shutil.rmtree(out / "torn" / ".work")
    (out / "torn" / "slide.ome.zarr/0/c/0/0/0").unlink()
    slide = masked.slides / "torn.tif"
    again = overtile.segment(slide, out, "input.on_bad_tile=mask", "tissue=null")
    assert again.code == 0, again.transcript
    assert result_digests(out / "torn") == result_digests(masked.ran.out / "torn")
    manifest = json.loads((out / "torn" / "manifest.json").read_text())
    assert manifest["stages"]["ingest"]["facts"] == masked.facts("torn", "ingest")
    record_property("recomputed", f"one image shard and .work lost: {again.computed('torn')}")
