"""One small slide through every stage in this process: what is redone, what is kept, what the manifest proves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.geometry import Box
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.runs.verify import verify_slide
from pipeline.slides.opening import open_slide
from pipeline.slides.resample import resample, source_box
from pipeline.stages.tissue import area_mean
from pipeline.storage.slide_store import SlideStore
from tests.support import run_slide
from tests.support.commands import CLASSES
from tests.support.faults.pictures import draw, red_and_blue
from tests.support.make_store import tree_bytes
from tests.support.run_slide import computed
from unet_core.model_file.header import resolve

Plan = Callable[..., SlidePlan]
SHAPE = (700, 1100)
NETWORK = ("ingest", "tissue", "predict")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Plans for one generated slide of two classes, with any settings."""
    slide = tmp_path / "discs.tif"
    image = draw(SHAPE, red_and_blue(SHAPE))
    with tifffile.TiffWriter(slide) as tiff:
        for factor in (1, 2, 4):
            scale = {"resolution": (2e4 / factor, 2e4 / factor), "resolutionunit": "CENTIMETER"}
            tiff.write(image[::factor, ::factor].copy(), tile=(128, 128), photometric="rgb", metadata=None, **scale)

    def planned(*settings: str, out: str = "out", model: Path = CLASSES) -> SlidePlan:
        common = (f"model.weights={model}", "tiles.block=512", "compute.precision=fp32")
        request = BatchRequest(inputs=(slide,), out=tmp_path / out, config=load_config(None, [*common, *settings]))
        batch = plan_batch(request)
        assert [outcome.cause for outcome in batch.outcomes] == [""]
        return batch.plans["discs"]

    return planned


def run(plan: SlidePlan, out: Path, *, forced: bool = False) -> SlideRun:
    """Run everything that has to be done below OUT, up to the manifest."""
    return run_slide.run(plan, slide_root(out, plan.key), forced=forced)


def changed(before: SlidePlan, after: SlidePlan) -> set[str]:
    return {stage for stage in after.hashes if before.hashes.get(stage) != after.hashes[stage]}


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_changed_setting_changes_hashes_of_dependent_stages(plan: Plan) -> None:
    everything = set(plan().hashes)
    assert changed(plan(), plan("compute.precision=bf16")) == everything - {"ingest", "tissue"}
    assert changed(plan(), plan("objects.min_area_um2=3")) == everything - {"ingest", "tissue", "predict"}


def test_smallest_object_is_that_of_model_unless_configured(plan: Plan) -> None:
    own = plan(model=resolve("nuclei@1"))
    assert own.min_area_um2 == own.model.spec.min_area_um2 == 2.9
    assert not changed(own, plan("objects.min_area_um2=2.9", model=resolve("nuclei@1")))
    everything = plan("objects.min_area_um2=0", model=resolve("nuclei@1"))
    assert everything.min_area_um2 == 0
    assert changed(own, everything) == set(own.hashes) - {"ingest", "tissue", "predict"}


def test_other_pixels_in_the_slide_change_everything(plan: Plan, tmp_path: Path) -> None:
    before = plan()
    image = draw(SHAPE, red_and_blue(SHAPE, radius=22))
    tifffile.imwrite(
        tmp_path / "discs.tif",
        image,
        tile=(128, 128),
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    assert changed(before, plan()) == set(before.hashes)


# ---- ingest and tissue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mpp", ["0.5", "0.4", "0.11"])
def test_image_equals_chosen_level_resampled_in_one_piece(plan: Plan, tmp_path: Path, mpp: str) -> None:
    planned = plan(f"input.mpp={mpp}")
    slide = SlideRun(planned, SlideStore(tmp_path / "out" / "discs"))
    slide.prepare()
    slide.step("ingest", serial)
    how, level = planned.resolution.resampling, planned.resolution.level
    whole = Box.of_shape(how.out_yx)
    source = source_box(how, whole)
    expected = resample(open_slide(planned.slide).read(level, source), how, source, whole)
    stored = slide.store.read("0")[:]
    print(f"mpp {mpp}: level {level}, {how.method}, {stored.shape}")
    assert np.array_equal(stored, expected)


def test_tissue_thumbnail_does_not_depend_on_blocks() -> None:
    image = np.random.default_rng(3).integers(0, 256, (3, 75, 50), np.uint8)
    mean = area_mean(image, 16)
    for row, col in np.ndindex(mean.shape[1:]):
        square = image[:, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16].reshape(3, -1).astype(int)
        assert mean[:, row, col].tolist() == [
            (2 * total + square.shape[1]) // (2 * square.shape[1]) for total in square.sum(1)
        ]
    halves = [area_mean(image[:, :48], 16), area_mean(image[:, 48:], 16)]
    assert np.array_equal(np.concatenate(halves, axis=1), mean)


# ---- running again ---------------------------------------------------------------------------------------------------


def test_complete_slide_is_not_changed(plan: Plan, tmp_path: Path) -> None:
    run(plan(), tmp_path / "out")
    before = tree_bytes(tmp_path / "out")
    again = run(plan(), tmp_path / "out")
    assert (computed(again), again.reports) == ({}, {})
    assert tree_bytes(tmp_path / "out") == before


def test_changed_object_setting_gives_result_of_fresh_run_without_network_call(plan: Plan, tmp_path: Path) -> None:
    run(plan(), tmp_path / "out")
    again = run(plan("objects.min_area_um2=340"), tmp_path / "out")
    fresh = run(plan("objects.min_area_um2=340", out="fresh"), tmp_path / "fresh")
    assert not set(computed(again)) & set(NETWORK)
    assert again.reports["predict"].counts.get("network_calls", 0) == 0
    assert again.store.facts("label") == fresh.store.facts("label")
    assert again.store.facts("label")["objects"] > 0
    results = [tree_bytes(slide.store.root, without=(".work", "manifest.json")) for slide in (again, fresh)]
    assert results[0] == results[1]


def test_network_result_is_kept_unless_forced(plan: Plan, tmp_path: Path) -> None:
    run(plan(), tmp_path / "out")
    before = tree_bytes(tmp_path / "out")
    other = plan("tiles.block=1024")
    kept = SlideRun(other, SlideStore(tmp_path / "out" / "discs"))
    assert kept.prepare() == "kept"
    assert "--force discs" in kept.notices[-1]
    assert tree_bytes(tmp_path / "out") == before
    forced = run(other, tmp_path / "out", forced=True)
    assert set(computed(forced)) == set(other.hashes)
    assert verify_slide(forced.store) == []


def test_manifest_is_removed_before_anything_is_redone(plan: Plan, tmp_path: Path) -> None:
    done = run(plan(), tmp_path / "out")
    again = SlideRun(plan("objects.min_area_um2=1"), done.store)
    assert again.prepare() == "todo"
    assert not done.store.manifest.exists()
    assert not again.is_complete()


# ---- the manifest and verify -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slide.ome.zarr/probability/0/c/0/1/1", "objects.parquet", "objects.geojson.gz"])
def test_flipped_bit_is_found_and_only_that_file_is_repaired(plan: Plan, tmp_path: Path, name: str) -> None:
    done = run(plan(), tmp_path / "out")
    path, sound = done.store.root / name, tree_bytes(done.store.root, without=(".work", "manifest.json"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = verify_slide(done.store)
    assert found is not None
    assert [damage.path for damage in found] == [name]
    inodes = {other: other.stat().st_ino for other in (done.store.zarr / "0" / "c").rglob("*") if other.is_file()}
    again = run(plan(), tmp_path / "out")
    assert sum(computed(again).values()) <= len(again.plan.hashes) * 6
    assert computed(again).get("predict", 0) == ("probability" in name)
    assert all(other.stat().st_ino == inode for other, inode in inodes.items())
    assert tree_bytes(done.store.root, without=(".work", "manifest.json")) == sound
    assert verify_slide(done.store) == []
