"""Ingest: the slide's pixels at the model's resolution, as an array every later stage can read by block.

The one decision made here: pixels are resampled in the output's *global* coordinates, so an image does not depend on
how it was cut into blocks. That holds for tiles that cannot be decoded, too, where a run is to go on without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import SlideError
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.geometry import Box
from pipeline.slide_reader import Pixels
from pipeline.slides.bad_tiles import FACT, FLAG, BadTile, as_array, from_array, read_around
from pipeline.slides.channels import choose_channels
from pipeline.slides.opening import open_slide
from pipeline.slides.read_timeout import with_timeout
from pipeline.slides.resample import Resolution, resample, source_box
from pipeline.storage.layout import IMAGE
from pipeline.storage.slide_store import ArraySpec, Index

_COPY = "Copy the slide again from its source"


@dataclass(frozen=True, slots=True)
class IngestSection:
    """Which slide, at which level and scale, with how many channels of which sample type; which ones (None: all).

    ``masking``: go on without tiles that cannot be decoded. ``patience_s``: how long reading a block may take.
    """

    slide: Path
    resolution: Resolution
    channels: int
    dtype: str
    channel_numbers: tuple[int, ...] | None = None
    masking: bool = field(default=False, kw_only=True)
    patience_s: float = field(default=600.0, kw_only=True)


def ingest_block(work: StageContext, section: IngestSection, index: Index) -> Counts:
    """Read, resample and write one block of the image (c, y, x).

    Raises SlideError naming slide, level and tile when the slide cannot be decoded there.
    """
    core = work.core(index)
    pixels, bad = with_timeout(partial(_read, section, core), section.slide, section.patience_s)
    if section.masking:
        work.store.save_result("ingest", work.plan, index, {FACT: as_array(bad)})
    work.store.write_block(IMAGE, work.plan, core, pixels)
    return {"pixels": core.area_px}


def read_image(section: IngestSection, box: Box) -> Pixels:
    """Any box of the image (c, y, x), from the slide. Raises SlideError as ``ingest_block`` does."""
    return _read(section, box)[0]


def _read(section: IngestSection, box: Box) -> tuple[Pixels, list[BadTile]]:
    """A box of the image, and the tiles that were filled in it."""
    level, resampling = section.resolution.level, section.resolution.resampling
    source = source_box(resampling, box)
    reader = choose_channels(open_slide(section.slide), section.channel_numbers)
    pixels, bad = read_around(reader, level, source) if section.masking else (reader.read(level, source), ())
    return resample(pixels, resampling, source, box), [BadTile.of(place, resampling) for place in bad]


def ingest_slide(work: StageContext, section: IngestSection, map_blocks: MapBlocks) -> StageReport:
    """Write the whole image, block by block."""
    store = work.store
    shape = (section.channels, *work.shape_yx)
    store.create(ArraySpec(IMAGE, shape, section.dtype, work.block_px, work.plan, codec="lz4"))
    done = store.done(IMAGE, work.plan)
    if section.masking:
        store.sweep_results("ingest", work.plan)
        done &= store.results("ingest", work.plan)
    report = run_blocks("ingest", work, done, partial(ingest_block, work, section), map_blocks)
    report.facts = _masked(work, section) if section.masking else {}
    store.commit(IMAGE, work.plan)
    store.stamp("ingest", work.plan, report.facts)
    return report


def _masked(work: StageContext, section: IngestSection) -> dict[str, Any]:
    """Every tile that was filled, once, however many blocks it reaches into. Raises SlideError when all were."""
    kept = (work.store.load_result("ingest", work.plan, tile.index) for tile in work.grid)
    bad = sorted({tile for small in kept for tile in from_array(small[FACT])})
    if sum(Box(*tile.box).area_px for tile in bad) >= work.grid.area.area_px:
        raise SlideError(f"{section.slide}: none of its {len(bad)} tiles can be decoded. {_COPY}")
    return {FACT: [tile.fact() for tile in bad], "flags": [FLAG] * bool(bad)}
