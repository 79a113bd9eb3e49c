"""A folder of slides in every format: equal images give equal results, bad slides fail by name alone.

The images are stored without loss in each format but JPEG, so that no byte of a result may depend on the format.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from numpy.typing import NDArray

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.geometry import Box, TileGrid
from pipeline.runs.plan import SlidePlan
from pipeline.slides.opening import open_slide
from pipeline.slides.resample import Override, resample, resolution, source_box
from tests.support.commands import CLASSES, Command, Ran, is_complete, result_digests
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.make_dicom import write_dicom
from tests.support.make_photos import edit_json, write_jpeg, write_png, write_zarr
from tests.support.make_slides import Recipe, noise_image, write_svs, write_tiff

SHAPE = (600, 764)
PICTURE = draw(SHAPE, red_and_blue(SHAPE))
PLANES = PICTURE.transpose(2, 0, 1).copy()
LOSSLESS: dict[str, Callable[[Path], object]] = {
    "tiff.tif": lambda path: write(path, PICTURE),
    "png.png": lambda path: write_png(path, PICTURE),
    "zarr4.zarr": lambda path: write_zarr(path, PLANES, "0.4"),
    "zarr5.ome.zarr": lambda path: write_zarr(path, PLANES, "0.5", levels=1),
    "deep/case.1/dicom": lambda path: write_dicom(path, PICTURE),
}
LOSSY: dict[str, Callable[[Path], object]] = {
    "jpeg.jpg": lambda path: write_jpeg(path, PICTURE, subsampling=0),
    "svs.svs": lambda path: write_svs(path, PICTURE, mpp=0.5),
    "dicom_jpeg": lambda path: write_dicom(path, PICTURE, coding="jpeg"),
}
QUICK = ("outputs.overview=false", "outputs.geojson=false")


def _cut(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def _cut_chunk(path: Path) -> None:
    _cut(write_zarr(path, PLANES) / "0" / "1" / "2" / "3")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "png_cut.png": (lambda path: _cut(write_png(path, PICTURE)), "without its end mark"),
    "jpeg_cut.jpeg": (lambda path: _cut(write_jpeg(path, PICTURE)), "is damaged"),
    "no_resolution.png": (lambda path: write_png(path, PICTURE, 25400 / 72), "--mpp X"),
    "mrxs_alone.mrxs": (lambda path: path.write_bytes(b"\xff\xd8\xff"), "OpenSlide cannot read it"),
    "dicom_cut.dcm": (
        lambda path: _cut(write_dicom(path.parent, PICTURE, levels=1) / "level0.dcm"),
        "end of filehandle",
    ),
    "chunk_cut.zarr": (_cut_chunk, "its header says"),
    "four_channels.zarr": (lambda path: write_zarr(path, np.concatenate([PLANES, PLANES[:1]])), "4 (channel 1,"),
    "scan.czi": (lambda path: path.write_bytes(b"ZISRAWFILE"), "bioformats2raw scan.czi scan.zarr"),
    "twins/a.png": (lambda path: write_png(path, PICTURE), "a.jpg"),
    "twins/a.jpg": (lambda path: write_jpeg(path, PICTURE), "a.png"),
}


@dataclass(frozen=True)
class FormatsRun:
    """The input folder, the result of the command, and the key of each slide."""

    slides: Path
    ran: Ran

    def result(self, name: str) -> Path:
        """Output folder of a slide."""
        return self.ran.out / self.key(name)

    def key(self, name: str) -> str:
        """Key of a slide: its path without extension."""
        for extension in (".ome.zarr", ".zarr", ".tif", ".png", ".jpg", ".jpeg", ".svs", ".mrxs", ".dcm", ".czi"):
            if name.endswith(extension):
                return name.removesuffix(extension)
        return name


@pytest.fixture(scope="module")
def formats_run(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> FormatsRun:
    folder = tmp_path_factory.mktemp("formats_run")
    for name, make in {**LOSSLESS, **LOSSY, **{name: make for name, (make, _) in BAD.items()}}.items():
        (folder / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / "slides" / name)
    (folder / "slides" / "level0.dcm").rename(folder / "slides" / "dicom_cut.dcm")
    return FormatsRun(folder / "slides", overtile.segment(folder / "slides", folder / "slides" / "out", *QUICK))


def test_readable_slides_complete_and_bad_ones_fail_by_name(formats_run: FormatsRun) -> None:
    assert formats_run.ran.code == 3, formats_run.ran.transcript
    expected = {formats_run.key(name): "complete" for name in (*LOSSLESS, *LOSSY)} | {
        formats_run.key(name): "failed" for name in BAD
    }
    assert formats_run.ran.states() == expected, formats_run.ran.transcript
    assert "Traceback" not in formats_run.ran.transcript
    with (formats_run.ran.out / "failures.csv").open(newline="") as file:
        causes = [(row["slide"], row["cause"]) for row in csv.DictReader(file)]
    assert len(causes) == len(BAD)
    for name, (_, phrase) in BAD.items():
        assert any(slide == formats_run.key(name) and phrase in cause for slide, cause in causes), (name, causes)
        assert not is_complete(formats_run.result(name))


def test_same_image_gives_same_result_in_every_lossless_format(formats_run: FormatsRun) -> None:
    digests = {name: result_digests(formats_run.result(name)) for name in LOSSLESS}
    first = digests["tiff.tif"]
    assert len(first) > 20
    pixels = {file for file in first if "/c/" in file}
    for name, found in digests.items():
        assert {file: found[file] for file in pixels} == {file: first[file] for file in pixels}, name
        assert found["objects.parquet"] == first["objects.parquet"], name


def test_lossy_image_gives_same_objects_except_borders(formats_run: FormatsRun) -> None:
    """Objects are numbered by their first pixel, which may move with the border: they are matched by centre."""
    exact = by_place(formats_run.result("tiff.tif"))
    for name in LOSSY:
        found = by_place(formats_run.result(name))
        assert [(place, kind) for place, kind, _ in found] == [(place, kind) for place, kind, _ in exact], name
        ratios = [area / expected for (_, _, area), (_, _, expected) in zip(found, exact, strict=True)]
        assert 0.9 < min(ratios) <= max(ratios) < 1.1, name


def by_place(result: Path) -> list[tuple[tuple[int, int], str, float]]:
    """Objects by the row and column of their disc, with class and area."""
    rows = pq.read_table(result / "objects.parquet").to_pylist()
    discs = [(round((row["centroid_y_px"] - 40) / 97), round((row["centroid_x_px"] - 35) / 97)) for row in rows]
    return sorted((disc, row["class"], row["area_um2"]) for disc, row in zip(discs, rows, strict=True))


@pytest.mark.long
def test_second_run_computes_nothing_with_output_among_slides(formats_run: FormatsRun, overtile: Command) -> None:
    again = overtile.segment(formats_run.slides, formats_run.ran.out, *QUICK)
    assert again.code == 3, again.transcript
    assert set(again.states()) == set(formats_run.ran.states()), "no result was taken for a slide"
    for name in (*LOSSLESS, *LOSSY):
        assert again.outcome(formats_run.key(name))["state"] == "complete before", name


@pytest.mark.long
def test_sixteen_bit_channels_in_other_order_give_same_result(
    formats_run: FormatsRun, overtile: Command, tmp_path: Path
) -> None:
    """v / 255 = 257 v / 65535: the network input is the same except for fp32 rounding."""
    noise = noise_image(*SHAPE, 1, np.uint16)
    stack = np.stack(
        [noise, *(PLANES[k].astype(np.uint16) * 257 for k in (2, 0)), noise[::-1], PLANES[1].astype(np.uint16) * 257]
    )
    slide = write_zarr(tmp_path / "stack.zarr", stack, "0.5", names=("DAPI", "blue", "red", "junk", "green"))
    ran = overtile.segment(slide, tmp_path / "out", "input.channels=[red, 5, 2]")
    assert ran.code == 0, ran.transcript
    stored, expected = (
        np.asarray(zarr.open_array(root / "slide.ome.zarr" / "probability" / "0", mode="r"))
        for root in (tmp_path / "out" / "stack", formats_run.result("tiff.tif"))
    )
    assert np.abs(stored.astype(int) - expected).max() <= 1
    columns = pq.read_schema(tmp_path / "out" / "stack" / "objects.parquet").names
    assert [name for name in columns if name.startswith("mean_intensity")] == [
        f"mean_intensity_{name}" for name in ("red", "green", "blue")
    ]
    group = zarr.open_group(tmp_path / "out" / "stack" / "slide.ome.zarr", mode="r")
    omero_channels = dict(group.attrs["ome"])["omero"]["channels"]
    assert [channel["label"] for channel in omero_channels] == ["red", "green", "blue"]


@pytest.mark.long
def test_changed_channel_selection_is_another_image(formats_run: FormatsRun, overtile: Command, tmp_path: Path) -> None:
    slide = write_zarr(tmp_path / "a.zarr", PLANES)
    assert overtile.segment(slide, tmp_path / "out").code == 0
    ran = overtile.segment(slide, tmp_path / "out", "input.channels=[3, 2, 1]")
    assert ran.states() == {"a": "kept"}, ran.transcript


def test_missing_chunk_is_a_warning_in_the_plan(tmp_path: Path) -> None:
    slide = write_zarr(tmp_path / "a.zarr", PLANES)
    (slide / "0" / "2" / "3" / "4").unlink()
    config = load_config(None, [f"model.weights={CLASSES}"])
    (plan,) = plan_batch(BatchRequest(inputs=(slide,), out=tmp_path / "out", config=config)).plans.values()
    assert "level 0: 1 of 360 chunks have no file" in " ".join(plan.summary()["image"]["warnings"])


def test_channels_are_hashed_by_number_and_names_are_labels(tmp_path: Path) -> None:
    """One channel of many is grey to a model of three; by name or by number it is the same slide."""
    slide = write_zarr(tmp_path / "a.zarr", np.concatenate([PLANES, PLANES[:2]]), names=("a", "b", "c", "DAPI", "e"))

    def plan(*settings: str) -> SlidePlan:
        config = load_config(None, [f"model.weights={CLASSES}", *settings])
        return plan_batch(BatchRequest(inputs=(slide,), out=tmp_path / "out", config=config)).plans["a"]

    by_name, by_number, other = (plan(f"input.channels={channel}") for channel in ("[DAPI]", "[4]", "[1]"))
    assert (by_name.channel_names, by_name.channel_numbers) == (("DAPI",), (4,))
    assert by_name.hashes == by_number.hashes
    assert by_name.hashes["ingest"] != other.hashes["ingest"]
    edit_json(slide / ".zattrs", lambda found: found["omero"]["channels"][3].update(label="Hoechst"))
    renamed = plan("input.channels=[4]")
    changed = {stage for stage, value in renamed.hashes.items() if value != by_name.hashes[stage]}
    assert {"measure", "pyramid"} <= changed
    assert not changed & {"ingest", "tissue", "predict", "label"}


# ---- resolution, for every reader ------------------------------------------------------------------------------------

IMAGE = noise_image(416, 544, 3)
READERS: dict[str, Callable[[Path], Path]] = {
    "TIFF": lambda path: write_tiff(path / "a.tif", IMAGE, Recipe(levels=3)),
    "OME-Zarr": lambda path: write_zarr(path / "a.zarr", IMAGE.transpose(2, 0, 1), levels=3),
    "DICOM": lambda path: write_dicom(path / "a", IMAGE, levels=3),
    "PNG": lambda path: write_png(path / "a.png", IMAGE),
}


def levels_of(path: Path) -> list[NDArray[np.uint8]]:
    """The written pixels, (c, y, x) for each level, independent of the reader."""
    return [IMAGE[:: 2**k, :: 2**k].transpose(2, 0, 1) for k in range(1 if path.suffix == ".png" else 3)]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("override", "model_mpp", "level"),
    [(None, 0.25, 0), (None, 0.5, 0), (None, 1.1, 1), (None, 2.6, 2), (0.3, 0.75, 1), ("native", 7.0, 0)],
)
def test_blocks_of_any_format_equal_resampled_level(
    tmp_path: Path, name: str, override: Override, model_mpp: float, level: int
) -> None:
    path = READERS[name](tmp_path)
    reader = open_slide(path)
    assert reader.mpp_yx == pytest.approx((0.5, 0.5), rel=1e-4)
    chosen = resolution(reader, override, model_mpp)
    written = levels_of(path)
    assert chosen.level == min(level, len(written) - 1)
    resampling = chosen.resampling
    full = Box.of_shape(resampling.out_yx)
    source = source_box(resampling, full)
    expected = resample(written[chosen.level][:, *source.slices], resampling, source, full)
    for tile in TileGrid(full, 96, 0, 0):
        source_of_block = source_box(resampling, tile.core)
        block = resample(reader.read(chosen.level, source_of_block), resampling, source_of_block, tile.core)
        np.testing.assert_array_equal(block, expected[:, *tile.core.slices])


@pytest.mark.parametrize("name", READERS)
def test_slide_too_coarse_for_the_model_is_refused_in_any_format(tmp_path: Path, name: str) -> None:
    reader = open_slide(READERS[name](tmp_path))
    assert "enlarged 2.00 times" in resolution(reader, None, 0.25).warnings[0]
    with pytest.raises(ValueError, match=r"enlarged 2\.50 times; expected at most 2\.2"):
        resolution(reader, None, 0.2)
