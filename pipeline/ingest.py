"""Ingest: the slide's pixels at the model's resolution, as an array every later stage can read by block.

The one decision made here: pixels are resampled in the output's *global* coordinates, so an image does not depend on
how it was cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.geometry import Box
from pipeline.resample import Resolution, resample, source_box
from pipeline.slide import open_slide
from pipeline.slide_channels import choose_channels
from pipeline.slide_reader import Pixels
from pipeline.store import ArraySpec, Index
from pipeline.work import Counts, MapBlocks, StageReport, Work, run_blocks

ARRAY = "0"


@dataclass(frozen=True, slots=True)
class IngestSection:
    """Which slide, at which level and scale, with how many channels of which sample type; which ones (None: all)."""

    slide: Path
    resolution: Resolution
    channels: int
    dtype: str
    channel_numbers: tuple[int, ...] | None = None


def ingest_block(work: Work, section: IngestSection, index: Index) -> Counts:
    """Read, resample and write one block of the image (c, y, x).

    Raises SlideError naming slide, level and tile when the slide cannot be decoded there.
    """
    core = work.core(index)
    work.store.write_block(ARRAY, work.plan, core, read_image(section, core))
    return {"pixels": core.area_px}


def read_image(section: IngestSection, box: Box) -> Pixels:
    """Any box of the image (c, y, x), from the slide. Raises SlideError as ``ingest_block`` does."""
    resampling = section.resolution.resampling
    source = source_box(resampling, box)
    reader = choose_channels(open_slide(section.slide), section.channel_numbers)
    return resample(reader.read(section.resolution.level, source), resampling, source, box)


def ingest_slide(work: Work, section: IngestSection, map_blocks: MapBlocks) -> StageReport:
    """Write the whole image, block by block."""
    store = work.store
    shape = (section.channels, *work.shape_yx)
    store.create(ArraySpec(ARRAY, shape, section.dtype, work.block_px, work.plan, codec="lz4"))
    done = store.done(ARRAY, work.plan)
    report = run_blocks("ingest", work, done, partial(ingest_block, work, section), map_blocks)
    store.commit(ARRAY, work.plan)
    store.stamp("ingest", work.plan, {})
    return report
