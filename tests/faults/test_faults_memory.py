"""Workers whose device runs out of memory halve the tile; the bytes stay the same.

No GPU is needed: torch's own convolution fails as it does on CUDA (tests/support/scarce/sitecustomize.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.commands import Command, history, is_complete, result_digests
from tests.support.faults.trees import Finished
from tests.unit.pipeline.predicting import weights_of
from unet_core.spec import UNetSpec

SCARCE = Path(__file__).parents[1] / "support" / "scarce"
WORKERS = ("cluster.kind=local", "cluster.workers=2", "tissue=null")

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def scarce(command: Command, most_px: int) -> Command:
    """The command on a device that accepts no input wider than this."""
    found = os.pathsep.join([str(SCARCE), command.environment["PYTHONPATH"]])
    return command.with_environment(PYTHONPATH=found, SCARCE_PX=str(most_px))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 16 and more channels: with fewer, the kernels differ between sizes."""
    return weights_of(tmp_path_factory.mktemp("wide"), UNetSpec(width=16, mpp=0.5))


def predicted(slide: Path) -> dict[str, int]:
    """Sum of the counts of the network's blocks."""
    (line,) = (line for line in history(slide) if line["stage"] == "predict")
    return dict(line["counts"])


def test_fault_12_out_of_memory_halves_the_tile_and_changes_no_byte(
    overtile: Command, finished: Finished, wide: Path, tmp_path: Path
) -> None:
    """Tiles of 512 px are read as 700, of 256 px as 444; the memory is enough for the latter."""
    whole = overtile.segment(finished.slide, tmp_path / "whole", *WORKERS, model=wide)
    assert whole.code == 0, whole.transcript
    ran = scarce(overtile, 500).segment(finished.slide, tmp_path / "halved", *WORKERS, model=wide)
    assert ran.code == 0, ran.transcript
    assert predicted(tmp_path / "whole" / "slide") == {"network_calls": 3, "halved": 0}
    counts = predicted(tmp_path / "halved" / "slide")
    assert counts["halved"] == 3, "blocks with a smaller tile than requested"
    assert counts["network_calls"] > 3
    assert result_digests(tmp_path / "halved" / "slide") == result_digests(tmp_path / "whole" / "slide")


def test_fault_12_where_nothing_fits_the_slide_fails_and_is_no_background(
    overtile: Command, finished: Finished, tmp_path: Path
) -> None:
    ran = scarce(overtile, 0).segment(finished.slide, tmp_path / "out", *WORKERS)
    assert ran.code == 4, ran.transcript
    assert "predict" in ran.error_of("slide")
    assert "out of memory even for the smallest tile" in ran.error_of("slide")
    assert "Traceback" not in ran.transcript
    result = tmp_path / "out" / "slide"
    assert not is_complete(result)
    assert not list(result.glob("slide.ome.zarr/probability/0/c/**/[0-9]")), "no block of zeros"
    again = overtile.segment(finished.slide, tmp_path / "out", *WORKERS)
    assert again.code == 0, again.transcript
    assert "ingest" not in again.computed("slide")
    assert again.computed("slide")["predict"] == 3
