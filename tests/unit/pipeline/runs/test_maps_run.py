"""A network with maps through a whole run: what is stored, what a setting costs, what is dropped and removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05 import Image
from scipy import ndimage

from flows.batch.batch import BatchRequest, plan_batch
from flows.batch.cost_probe import look, sample
from flows.batch.disk_quota import at_most_bytes
from pipeline.config import ObjectsSection, load_config
from pipeline.errors import ConfigError
from pipeline.exports.formats import export
from pipeline.exports.result import open_result
from pipeline.exports.vector_formats import CompleteResult
from pipeline.geometry import Box
from pipeline.objects.method import resolve
from pipeline.runs.plan import SlidePlan
from pipeline.runs.prune import prune_slide
from pipeline.runs.verify import verify_slide
from pipeline.stages import predict
from pipeline.storage.atomic_files import digest
from pipeline.storage.manifest import read_manifest, result_files
from pipeline.storage.slide_store import SlideStore
from tests.support import whole_objects
from tests.support.make_store import tree_bytes
from tests.support.run_slide import computed, run
from tests.unit.pipeline.predicting import assert_equal_to_rounding, cut, weights_of, whole_pass
from unet_core.spec import ObjectSettings, UNetSpec

Array = NDArray[Any]
Plan = Callable[..., SlidePlan]
MPP, SHAPE = 0.5, (600, 1100)  # 2 x 3 blocks of 512
SEEDS = ObjectSettings(method="seeds", source="centre", depth=0.02, max_area_um2=2000.0)
BYTE = 245
PLAIN = UNetSpec(depth=1, width=4, mpp=MPP, threshold=BYTE / 255, up="bilinear", padding="same")
SPEC = PLAIN.model_copy(update={"maps": ("distance", "centre"), "objects": SEEDS})
AFTER = {"label", "measure", "pyramid", "export", "overlay"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random networks with maps and seeds of their own, with maps alone, with boundaries, and without maps."""
    specs = {"seeds": SPEC, "maps": SPEC.model_copy(update={"objects": None})}
    by_outline = ObjectSettings(method="boundary", depth=0.02, max_area_um2=2000.0)
    outlines = PLAIN.model_copy(update={"maps": ("boundary",), "objects": by_outline, "threshold": 102 / 255})
    specs["plain"] = PLAIN
    made = {name: weights_of(tmp_path_factory.mktemp(name), spec) for name, spec in specs.items()}
    return made | {"boundary": weights_of(tmp_path_factory.mktemp("boundary"), outlines, seed=5)}


def blurred() -> Array:
    """Real tissue (3, y, x) without the texture of which a random network would make thousands of objects."""
    smooth = ndimage.gaussian_filter(cut(*SHAPE).astype(np.float32), (0, 3, 3))
    return np.asarray(smooth, np.uint8)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Path]) -> Plan:
    """Plans for one slide of real tissue with any settings."""
    folder = tmp_path_factory.mktemp("slide")
    slide, scale = folder / "tissue.tif", {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(slide, np.moveaxis(blurred(), 0, -1).copy(), tile=(128, 128), photometric="rgb", **scale)

    def planned(*settings: str, model: str = "seeds") -> SlidePlan:
        common = (f"model.weights={weights[model]}", "tiles.block=512", "compute.precision=fp32", "tissue=null")
        request = BatchRequest(inputs=(slide,), out=folder / "out", config=load_config(None, [*common, *settings]))
        return plan_batch(request, writing=False).plans["tissue"]

    return planned


@pytest.fixture(scope="module")
def fresh(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Results of undisturbed runs with these settings; each is computed once."""
    made: dict[tuple[str, ...], Path] = {}

    def of(*settings: str, model: str = "seeds") -> Path:
        key = (*settings, model)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("fresh") / "tissue"
            run(plan(*settings, model=model), made[key])
        return made[key]

    return of


@pytest.fixture
def copy(fresh: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Copies of such results that a test may change."""
    return lambda *settings: Path(shutil.copytree(fresh(*settings), tmp_path / "tissue"))


def result(root: Path) -> dict[str, bytes]:
    tree = tree_bytes(root, without=(".work",))
    return {name: content for name, content in tree.items() if name != "manifest.json"}


def stored(root: Path, path: str) -> Array:
    return np.asarray(zarr.open_array(root / "slide.ome.zarr" / path, mode="r")[()])


def expected(root: Path, depth: int, source: str, threshold: int = BYTE, largest_px: int = 400) -> Array:
    """Objects of the stored bytes of a whole result."""
    labels = whole_objects.numbered((stored(root, "probability/0")[0] >= threshold).astype(np.uint8), 8)
    heights = stored(root, f"maps/{source}/0")
    return whole_objects.split(labels, 8, depth, largest_px, 255 - heights if source == "boundary" else heights)


# ---- what is stored --------------------------------------------------------------------------------------------------


def test_stored_planes_are_those_of_one_pass(fresh: Callable[..., Path], weights: dict[str, Path]) -> None:
    planes = whole_pass(weights["seeds"], blurred())
    found = [stored(fresh(), path) for path in ("probability/0", "maps/distance/0", "maps/centre/0")]
    assert_equal_to_rounding(np.concatenate([found[0], *(one[None] for one in found[1:])]), planes, share=1e-3)
    assert planes.std(axis=(1, 2)).min() > 3


def test_readers_open_every_map(fresh: Callable[..., Path]) -> None:
    path = fresh() / "slide.ome.zarr"
    assert {name for name, _ in zarr.open_group(path, mode="r")["maps"].groups()} == {"distance", "centre"}  # type: ignore[union-attr]  # it is a group
    for name in ("distance", "centre"):
        scales = Image.from_zarr(zarr.open_group(path / "maps" / name, mode="r")).ome_attributes.multiscales[0]
        assert (scales.name, [axis.name for axis in scales.axes]) == (name, ["y", "x"])
        levels = [stored(fresh(), f"maps/{name}/{level.path}") for level in scales.datasets]
        assert [level.shape for level in levels] == [(600, 1100), (300, 550), (150, 275)]
        pixels = levels[0].astype(int)
        mean = (pixels[::2, ::2] + pixels[1::2, ::2] + pixels[::2, 1::2] + pixels[1::2, 1::2] + 2) // 4
        np.testing.assert_array_equal(levels[1], mean)


def test_an_opened_result_has_every_map(fresh: Callable[..., Path]) -> None:
    opened = open_result(fresh())
    assert list(opened.maps) == list(SPEC.maps)
    for name, map_YX in opened.maps.items():
        np.testing.assert_array_equal(map_YX.compute(), stored(fresh(), f"maps/{name}/0"))
    assert open_result(fresh(model="plain")).maps == {}


def test_exports_have_every_map(fresh: Callable[..., Path], tmp_path: Path) -> None:
    complete = CompleteResult.open(SlideStore(fresh()))
    files = list(export(complete, ["ome-tiff", "ngff04"], tmp_path, force=False))
    names = [f"{name}.ome.tif" for name in ("objects", "probability", *SPEC.maps)]
    assert [path.name for path in files] == [*names, "slide.ngff04.zarr"]
    for name in SPEC.maps:
        with tifffile.TiffFile(tmp_path / "tissue" / f"{name}.ome.tif") as tiff:
            for number, level in enumerate(tiff.series[0].levels):
                np.testing.assert_array_equal(level.asarray(), stored(fresh(), f"maps/{name}/{number}"))
        copy = zarr.open_array(tmp_path / "tissue" / "slide.ngff04.zarr" / "maps" / name / "0", mode="r")
        np.testing.assert_array_equal(copy[()], stored(fresh(), f"maps/{name}/0"))


def test_the_seam_check_reads_probability_and_maps(
    plan: Plan, tmp_path: Path, fresh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [Box(500, 510, 530, 900), Box(0, 0, 7, 3)]
    found: list[Array] = []
    monkeypatch.setattr(predict, "seam_check", lambda read, *_: found.extend(read(box) for box in boxes))
    run(plan(), tmp_path / "tissue")
    for box, planes in zip(boxes, found, strict=True):
        for plane, path in zip(planes, ("probability/0", "maps/distance/0", "maps/centre/0"), strict=True):
            whole = stored(fresh(), path)
            np.testing.assert_array_equal(plane, whole.reshape(-1, *SHAPE)[0][box.slices])


def test_manifest_and_verify_know_the_maps(fresh: Callable[..., Path]) -> None:
    manifest = read_manifest(SlideStore(fresh()))
    assert manifest is not None
    for name in ("distance", "centre"):
        shards = [file for file in manifest["files"] if file.startswith(f"slide.ome.zarr/maps/{name}/0/c/")]
        assert len(shards) == 6
    assert verify_slide(SlideStore(fresh())) == []


def test_a_changed_byte_of_a_map_is_found_and_one_block_is_computed_again(
    plan: Plan, copy: Callable[..., Path]
) -> None:
    root = copy()
    before = result(root)
    shard = root / "slide.ome.zarr" / "maps" / "centre" / "0" / "c" / "1" / "2"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert [damage.path for damage in verify_slide(SlideStore(root)) or ()] == [shard.relative_to(root).as_posix()]
    assert computed(run(plan(), root)) == {"predict": 1}
    assert result(root) == before


# ---- objects ---------------------------------------------------------------------------------------------------------


def test_auto_takes_the_methods_and_limits_of_the_model(fresh: Callable[..., Path]) -> None:
    parts = expected(fresh(), 5, "centre")  # 0.02 of 255
    areas = whole_objects.kept(parts, lambda one: one.area <= 2000 / MPP**2)
    np.testing.assert_array_equal(stored(fresh(), "labels/objects/0"), areas)
    facts = SlideStore(fresh()).facts("label")
    assert facts["split"]["objects"] > 5
    assert (facts["split"]["map"], facts["split"]["depth_byte"]) == ("centre", 5)


def test_boundaries_split_objects_as_on_the_whole_image(fresh: Callable[..., Path]) -> None:
    root = fresh("objects.max_area_um2=100000", model="boundary")
    labels = stored(root, "labels/objects/0")
    np.testing.assert_array_equal(labels, expected(root, 5, "boundary", threshold=102))
    facts = SlideStore(root).facts("label")["split"]
    assert facts["map"] == "boundary"
    assert facts["parts"] > facts["objects"] > 10


@pytest.mark.parametrize(
    ("settings", "depth", "source", "threshold"),
    [
        (("objects.seed_depth=0.1",), 26, "centre", BYTE),
        (("objects.seed_depth=0.001", "objects.threshold=0.98"), 1, "centre", 250),
        (("objects.method=components",), 0, "", BYTE),
    ],
)
def test_changed_settings_cost_no_network_call(
    plan: Plan, copy: Callable[..., Path], settings: tuple[str, ...], depth: int, source: str, threshold: int
) -> None:
    root, chosen = copy(), (*settings, "objects.max_area_um2=100000")
    assert set(computed(run(plan(*chosen), root))) <= AFTER
    if source:
        labels = expected(root, depth, source, threshold)
    else:
        labels = whole_objects.numbered((stored(root, "probability/0")[0] >= threshold).astype(np.uint8), 8)
    np.testing.assert_array_equal(stored(root, "labels/objects/0"), labels)
    assert verify_slide(SlideStore(root)) == []


def test_a_model_with_maps_alone_gives_components_until_seeds_are_asked_for(
    fresh: Callable[..., Path], plan: Plan, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(fresh(model="maps"), tmp_path / "tissue"))
    mask = (stored(root, "probability/0")[0] >= BYTE).astype(np.uint8)
    np.testing.assert_array_equal(stored(root, "labels/objects/0"), whole_objects.numbered(mask, 8))
    assert "predict" not in computed(run(plan("objects.method=seeds", "objects.seed_depth=0.05", model="maps"), root))
    np.testing.assert_array_equal(stored(root, "labels/objects/0"), expected(root, 13, "distance"))


def test_objects_over_the_size_limit_are_counted_and_kept_whole(plan: Plan, copy: Callable[..., Path]) -> None:
    root = copy()
    run(plan("objects.split_max_um=15", "objects.max_area_um2=100000"), root)
    np.testing.assert_array_equal(stored(root, "labels/objects/0"), expected(root, 5, "centre", largest_px=30))
    facts = SlideStore(root).facts("label")["split"]
    assert facts["too_large"] > 0
    assert facts["too_large_px"] == 30


@pytest.mark.parametrize(
    ("settings", "model", "words"),
    [
        (("objects.method=seeds",), "plain", r"expected a model with a map of distance or centre, found no maps"),
        (("objects.split=watershed", "objects.method=seeds"), "maps", r"expected none .*Use objects\.split=none"),
        (("objects.method=boundary",), "seeds", "expected a model with a map of boundary, found distance, centre"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_starts(
    plan: Plan, settings: tuple[str, ...], model: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(*settings, model=model)


def test_settings_are_those_of_the_user_then_of_the_model() -> None:
    spec = UNetSpec(maps=("distance", "centre"), objects=SEEDS)
    assert resolve(ObjectsSection(), spec) == SEEDS
    assert resolve(ObjectsSection(seed_depth=0.3, max_area_um2=5.0), spec) == SEEDS.model_copy(
        update={"depth": 0.3, "max_area_um2": 5.0}
    )
    assert resolve(ObjectsSection(method="components"), spec).method == "components"
    assert resolve(ObjectsSection(), UNetSpec(maps=("distance",))) == ObjectSettings()
    asked = ObjectsSection(method="seeds")
    assert resolve(asked, UNetSpec(maps=("boundary", "centre"))).source == "centre"
    assert resolve(asked, UNetSpec(maps=("centre",), objects=ObjectSettings())).source == "centre"
    watershed = ObjectsSection(method="components", split="watershed")
    assert resolve(watershed, spec).method == "components"
    assert resolve(ObjectsSection(split="watershed"), spec).method == "components"


# ---- hashes ----------------------------------------------------------------------------------------------------------


def test_hash_of_labels_without_seeds_has_no_key_of_seeds(plan: Plan) -> None:
    """The same text as before there were maps; seeds change it, and what does not decide labels does not."""
    plain, old = plan(model="plain"), ObjectsSection().model_dump(mode="json")
    del old["method"], old["seed_depth"]
    old |= {"threshold": BYTE / 255, "min_area_um2": 0.0, "open_um": None, "close_um": None, "discs_um": ((0.0, 0.0),)}
    old |= {"split_depth_um": None, "split_max_um": None}
    assert plain.hashes["label"] == digest(["label", 2, [old, MPP], [plain.hashes["predict"]]])
    for same in ("objects.method=components", "objects.seed_depth=0.7"):
        assert plan(same, model="plain").hashes == plain.hashes
    seeds = plan()
    assert plan("objects.method=seeds", "objects.seed_depth=0.02", "objects.split_depth_um=3").hashes == seeds.hashes
    for other in ("method=components", "seed_depth=0.03", "split_max_um=100", "max_area_um2=10"):
        assert plan(f"objects.{other}").hashes["label"] != seeds.hashes["label"]
        assert plan(f"objects.{other}").hashes["predict"] == seeds.hashes["predict"]


# ---- dropped, pruned, replaced ---------------------------------------------------------------------------------------


def test_maps_are_dropped_with_the_probability_and_made_again(
    plan: Plan, fresh: Callable[..., Path], copy: Callable[..., Path]
) -> None:
    kept, root = result(fresh()), copy("outputs.probability=drop")
    left = result(root)
    gone = tuple(f"slide.ome.zarr/{group}/0/" for group in ("probability", "maps/distance", "maps/centre"))
    assert set(kept) - set(left) == {name for name in kept if name.startswith(gone)} != set()
    Image.from_zarr(zarr.open_group(root / "slide.ome.zarr" / "maps" / "centre", mode="r"))
    assert verify_slide(SlideStore(root)) == []
    assert computed(run(plan("outputs.probability=drop"), root)) == {}, "nothing is missing"
    again = run(plan(), root)
    assert "was dropped" in again.notices[0]
    assert computed(again) == {}
    assert computed(run(plan(), root, forced=True))["predict"] == 6
    assert result(root) == kept


def test_a_slide_without_maps_drops_its_probability_as_before(fresh: Callable[..., Path], plan: Plan) -> None:
    root = fresh("outputs.probability=drop", model="plain")
    assert not (root / "slide.ome.zarr" / "maps").exists()
    assert computed(run(plan("outputs.probability=drop", model="plain"), root)) == {}
    assert computed(run(plan(model="plain"), fresh(model="plain"))) == {}


def test_pruning_removes_maps_with_the_probability(copy: Callable[..., Path]) -> None:
    store = SlideStore(copy())
    removed = prune_slide(store, {"tables", "overview", "labels", "geojson", "tissue", "image"})
    assert removed.parts == ("probability",)
    assert not (store.zarr / "maps").exists()
    assert verify_slide(store) == []


def test_a_model_without_maps_replaces_those_of_another(
    plan: Plan, fresh: Callable[..., Path], copy: Callable[..., Path]
) -> None:
    root = copy()
    run(plan(model="plain"), root, forced=True)
    assert not (root / "slide.ome.zarr" / "maps").exists()
    assert result(root) == result(fresh(model="plain"))
    store = SlideStore(root)
    manifest = read_manifest(store)
    assert manifest is not None
    assert {path.relative_to(root).as_posix() for path in result_files(store)} == set(manifest["files"])


def test_estimates_count_the_maps(plan: Plan) -> None:
    more = at_most_bytes(plan()) - at_most_bytes(plan(model="plain"))
    assert more == pytest.approx(2 * SHAPE[0] * SHAPE[1] * 0.6 * 4 / 3, abs=2)
    chosen = plan()
    assert look(chosen).cells.all()
    sizes = sample(chosen, Box(0, 0, 512, 512)).sizes
    assert sizes["maps"] > sizes["probability"] > 1000


# ---- several networks ------------------------------------------------------------------------------------------------


def test_ensembles_average_maps_and_settings(plan: Plan, tmp_path: Path, weights: dict[str, Path]) -> None:
    other = ObjectSettings(method="seeds", source="centre", depth=0.06, max_area_um2=None)
    second = weights_of(tmp_path, SPEC.model_copy(update={"objects": other}), seed=9)
    both = plan(f"model.weights=[{weights['seeds']}, {second}]", "model.tta=d4")
    assert both.object_settings.depth == pytest.approx(0.04)
    assert both.object_settings.max_area_um2 is None
    run(both, tmp_path / "tissue")
    np.testing.assert_array_equal(
        stored(tmp_path / "tissue", "labels/objects/0"), expected(tmp_path / "tissue", 10, "centre")
    )
