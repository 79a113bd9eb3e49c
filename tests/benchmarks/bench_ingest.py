"""Rate of ingesting a JPEG pyramid relative to pure decoding.

The bare side decodes the same tiles with tifffile from memory and discards them. Ingest opens, reads, checks every
stream for damage, decodes, copies, compresses and writes.

    python tests/benchmarks/bench_ingest.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from support.tissue import write_slide
from tifffile import TiffFile

from pipeline.config import InputSection
from pipeline.execution.blocks import StageContext, serial
from pipeline.slides.opening import open_slide
from pipeline.slides.resample import resolution
from pipeline.stages.ingest import IngestInputs, ingest_slide

SIDE_PX, BLOCK_PX, ROUNDS = 8192, 2048, 5


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a call in this process, all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def bare_decode(slide: Path) -> Callable[[], None]:
    """Return a function that decodes all tiles of the first level."""
    with TiffFile(slide) as tiff:
        page = tiff.pages.first
        page.init_decode()
        spans = zip(page.dataoffsets, page.databytecounts, strict=True)
        stored = [_bytes_at(tiff, offset, count) for offset, count in spans]

    def decode() -> None:
        for index, data in enumerate(stored):
            page.decode(data, index, jpegtables=page.jpegtables)

    return decode


def _bytes_at(tiff: TiffFile, offset: int, count: int) -> bytes:
    tiff.filehandle.seek(offset)
    data: bytes = tiff.filehandle.read(count)
    return data


def measure_ingest(rounds: int = ROUNDS) -> dict[str, float]:
    """Measure medians over interleaved rounds in MPx per CPU second, and the median of the rounds' ratios."""
    seconds: dict[str, list[float]] = {"ingest": [], "decode": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = write_slide(folder / "slide.tif", SIDE_PX)
        decode, reader = bare_decode(slide), open_slide(slide)
        section = IngestInputs(
            slide, resolution(reader, "native", 1.0), reader.channels, str(reader.dtype), None, InputSection()
        )
        for number in range(rounds + 1):  # the first round warms up
            work = StageContext(folder / "out", (SIDE_PX, SIDE_PX), BLOCK_PX, f"{number:08d}")
            spent = {
                "ingest": cpu_seconds(lambda work=work: ingest_slide(work, section, serial)),  # type: ignore[misc]
                "decode": cpu_seconds(decode),
            }
            for side in seconds:
                seconds[side].extend([spent[side]] if number else [])
    mpx = SIDE_PX**2 / 1e6
    ratios = [bare_s / ours_s for bare_s, ours_s in zip(seconds["decode"], seconds["ingest"], strict=True)]
    return {
        "rounds": float(rounds),
        "ingest_mpx_per_cpu_s": mpx / statistics.median(seconds["ingest"]),
        "decode_mpx_per_cpu_s": mpx / statistics.median(seconds["decode"]),
        "ingest_over_decode": statistics.median(ratios),
        "ingest_over_decode_lowest": min(ratios),
    }


if __name__ == "__main__":
    print(json.dumps(measure_ingest(), indent=1))
