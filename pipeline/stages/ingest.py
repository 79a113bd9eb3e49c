"""Ingest: write the slide's pixels at the model's resolution as an array that later stages read by block.

Pixels are resampled in the *global* coordinates of the image, so the image does not depend on its blocks. The same
holds for masked tiles, which cannot be decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import InputSection
from pipeline.errors import SlideError
from pipeline.execution.blocks import Counts, MapBlocks, StageContext, StageReport, run_blocks
from pipeline.geometry import Box
from pipeline.slide_reader import Pixels
from pipeline.slides.bad_tiles import FACT, FLAG, BadTile, as_array, from_array, read_around
from pipeline.slides.channels import select_channels
from pipeline.slides.opening import open_slide
from pipeline.slides.read_timeout import with_timeout
from pipeline.slides.resample import Resolution, resample, source_box
from pipeline.storage.layout import IMAGE
from pipeline.storage.slide_store import ArraySpec, Index

_COPY = "Copy the slide again from its source"


@dataclass(frozen=True, slots=True)
class IngestInputs:
    """What ``ingest`` reads.

    Attributes:
        slide: The slide's file.
        resolution: The level that is read, and how it is resampled.
        channels: Number of channels of the image.
        dtype: Sample type of the image.
        channel_numbers: Channels of the slide that are read, counted from 1; None for all.
        config: The ``input`` section of the configuration.
    """

    slide: Path
    resolution: Resolution
    channels: int
    dtype: str
    channel_numbers: tuple[int, ...] | None
    config: InputSection

    @property
    def masking(self) -> bool:
        """Whether ingest goes on without tiles that cannot be decoded."""
        return self.config.on_bad_tile == "mask"


def ingest_block(context: StageContext, inputs: IngestInputs, index: Index) -> Counts:
    """Read, resample and write one block of the image (c, y, x).

    Raises:
        SlideError: The slide cannot be decoded there. Names slide, level and tile.
    """
    core = context.core(index)
    pixels, bad = with_timeout(partial(_read, inputs, core), inputs.slide, inputs.config.patience_s)
    if inputs.masking:
        context.store.save_result("ingest", context.plan_hash, index, {FACT: as_array(bad)})
    context.store.write_block(IMAGE, context.plan_hash, core, pixels)
    return {"pixels": core.area_px}


def read_image(inputs: IngestInputs, box: Box) -> Pixels:
    """Read any box of the image (c, y, x) from the slide; raises SlideError as ``ingest_block`` does."""
    return _read(inputs, box)[0]


def _read(inputs: IngestInputs, box: Box) -> tuple[Pixels, list[BadTile]]:
    """A box of the image, and the tiles that were masked in it."""
    level, resampling = inputs.resolution.level, inputs.resolution.resampling
    source = source_box(resampling, box)
    reader = select_channels(open_slide(inputs.slide), inputs.channel_numbers)
    pixels, bad = read_around(reader, level, source) if inputs.masking else (reader.read(level, source), ())
    return resample(pixels, resampling, source, box), [BadTile.of(place, resampling) for place in bad]


def ingest_slide(context: StageContext, inputs: IngestInputs, map_blocks: MapBlocks) -> StageReport:
    """Write the whole image, block by block; raises SlideError when no tile can be decoded."""
    store = context.store
    shape = (inputs.channels, *context.shape_yx)
    store.create(ArraySpec(IMAGE, shape, inputs.dtype, context.block_px, context.plan_hash, codec="lz4"))
    done = store.done(IMAGE, context.plan_hash)
    if inputs.masking:
        store.sweep_results("ingest", context.plan_hash)
        done &= store.results("ingest", context.plan_hash)
    report = run_blocks("ingest", context, done, partial(ingest_block, context, inputs), map_blocks)
    report.facts = _masked(context, inputs) if inputs.masking else {}
    store.commit(IMAGE, context.plan_hash)
    store.stamp("ingest", context.plan_hash, report.facts)
    return report


def _masked(context: StageContext, inputs: IngestInputs) -> dict[str, Any]:
    """Facts about the masked tiles, each listed once. Raises SlideError when all tiles were masked."""
    kept = (context.store.load_result("ingest", context.plan_hash, tile.index) for tile in context.grid)
    bad = sorted({tile for small in kept for tile in from_array(small[FACT])})
    if sum(Box(*tile.box).area_px for tile in bad) >= context.grid.area.area_px:
        raise SlideError(f"{inputs.slide}: none of its {len(bad)} tiles can be decoded. {_COPY}")
    return {FACT: [tile.fact() for tile in bad], "flags": [FLAG] * bool(bad)}
