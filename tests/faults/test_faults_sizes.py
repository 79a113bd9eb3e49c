"""Slides of awkward sizes, and repeated inputs.

Results equal one pass over the whole; a slide given twice is processed once. One command segments them all; a second
one, where no flow can start, finds them complete.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from tests.support import oracle
from tests.support.commands import CONTEXT, Command, Ran, files_of, history
from tests.support.make_slides import Recipe, stained_image, write_tiff

TILE = 256
SIZES = {
    "1x1": (1, 1),
    "1x5000": (1, 5000),
    "smaller_than_a_tile": (40, 60),
    "smaller_than_the_halo": (91, 93),
    "step_less_and_more": (15, 17),
    "tile_less_and_more": (TILE - 1, TILE + 1),
    "shard_less_and_more": (511, 513),
    "steps_less_and_more": (527, 495),
}
SETTINGS = (f"tiles.tile={TILE}", "tissue=null")


@pytest.fixture(scope="module")
def sizes(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The command on the folder with one of its slides given a second time."""
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "slides").mkdir()
    for name, (height, width) in SIZES.items():
        write_tiff(folder / "slides" / f"{name}.tif", stained_image(height, width), Recipe(mpp=0.25))
    sources = [folder / "slides", folder / "slides" / "1x1.tif"]
    return overtile.segment(sources, folder / "out", *SETTINGS, model=CONTEXT)


def test_fault_51_52_every_size_is_complete(sizes: Ran) -> None:
    assert sizes.code == 0, sizes.transcript
    assert sizes.stderr == ""
    assert sizes.states() == dict.fromkeys(sorted(SIZES), "complete")


@pytest.mark.parametrize("name", SIZES)
def test_fault_51_52_the_result_equals_one_pass_over_the_whole(sizes: Ran, name: str) -> None:
    height, width = SIZES[name]
    image = np.ascontiguousarray(stained_image(height, width).transpose(2, 0, 1))
    folder = sizes.out / name / "slide.ome.zarr"
    arrays = {path: np.asarray(zarr.open_array(folder / path, mode="r")[:]) for path in ("0", "probability/0")}
    labels = np.asarray(zarr.open_array(folder / "labels" / "objects" / "0", mode="r")[:])
    expected = oracle.whole_pass(oracle.network(CONTEXT), image)
    assert np.array_equal(arrays["0"], image)
    assert np.abs(arrays["probability/0"].astype(int) - expected).max() <= 1
    assert np.array_equal(labels, oracle.objects(arrays["probability/0"], 0.5))
    table = pq.read_table(sizes.out / name / "objects.parquet", columns=["id", "area_px"])
    assert table["id"].to_pylist() == list(range(1, labels.max() + 1))
    assert table["area_px"].to_pylist() == np.bincount(labels.ravel())[1:].tolist()
    with gzip.open(sizes.out / name / "objects.geojson.gz") as file:
        assert len(json.load(file)["features"]) == labels.max()


def test_fault_54_the_same_slide_twice_is_one_output(sizes: Ran) -> None:
    assert list(sizes.states()).count("1x1") == 1
    assert [line["stage"] for line in history(sizes.out / "1x1")].count("ingest") == 1


def test_fault_18_a_rerun_computes_nothing_and_starts_no_flow(sizes: Ran, overtile_alone: Command) -> None:
    slides = sizes.out.parent / "slides"
    before = {name: files_of(sizes.out / name) for name in SIZES}
    again = overtile_alone.segment(slides, sizes.out, *SETTINGS, model=CONTEXT)
    assert again.code == 0, again.transcript
    assert again.states() == dict.fromkeys(sorted(SIZES), "complete before")
    assert "0 blocks computed, 0 network calls" in again.stdout
    assert all(again.outcome(name)["computed"] == {} for name in SIZES)
    assert {name: files_of(sizes.out / name) for name in SIZES} == before, "no file was written again"


def test_fault_54_an_empty_folder_and_no_match_name_the_patterns(overtile_alone: Command, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    empty = overtile_alone.segment(slides, tmp_path / "out")
    (slides / "notes.txt").write_text("no slide")
    unmatched = overtile_alone.segment(slides, tmp_path / "out", 'input.pattern=["*.svs", "*.bif"]')
    assert empty.code == unmatched.code == 2
    assert "no slide found" in empty.only_error
    assert "*.svs, *.tif, *.tiff, *.ndpi, *.btf" in empty.only_error
    assert "tried *.svs, *.bif" in unmatched.only_error
    assert not (tmp_path / "out").exists()
