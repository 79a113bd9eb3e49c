"""Seam-exact with stain normalisation.

Stored results equal one pass over the whole normalised slide. The oracle fits and recolours in numpy alone. A control
test shows that a map fitted to each tile changes the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import ModelSection, load_config
from pipeline.errors import ModelError
from pipeline.evaluation.methods import networks
from pipeline.execution.blocks import MapBlocks, serial
from pipeline.execution.local_cluster import local_cluster
from pipeline.geometry import Box
from pipeline.inference.ensemble import load_model
from pipeline.inference.predictor import load_networks, single_pass
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import SlideRun, slide_root
from pipeline.storage.slide_store import SlideStore
from tests.exactness.test_exact import write_tiff
from tests.support import oracle
from tests.support import oracle_colours as colours
from tests.support.make_store import StopAfter, StoppedError, tree_bytes
from tests.unit.pipeline.predicting import CONTEXT, assert_equal_to_rounding, chosen, cut, weights_of
from unet_core.model_file.checkpoint import load, save, with_spec
from unet_core.spec import UNetSpec

TARGETS: dict[str, Any] = {
    "none": None,
    "reinhard": ((0.9, -0.1, 0.15), (0.45, 0.1, 0.12)),
    "macenko": ((1.1, 1.4, 0.8), (0.2, 0.8, 0.55)),
}


@dataclass(frozen=True)
class Normalisation:
    """The colour normalisation that a model requires."""

    stain: str
    equalise: bool = False
    rescale: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        chosen = {"equalise": self.equalise, "rescale": self.rescale}
        return {"stain_normalisation": self.stain, "stain_target": TARGETS[self.stain]} | chosen

    def normalised(self, image: NDArray[np.uint8], whole: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        chosen = {"equalise": self.equalise, "rescale": self.rescale}
        return colours.shown(image, self.stain, TARGETS[self.stain], **chosen, whole=whole)


NORMALISATIONS = [
    Normalisation("reinhard"),
    Normalisation("macenko"),
    Normalisation("none", equalise=True),
    Normalisation("macenko", equalise=True),
    Normalisation("none", rescale=True),
]
HEIGHT, WIDTH = 523, 1061  # more than 2^18 pixels, so that only every second pixel is used for the fit


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """Tissue that is stained more strongly from left to right."""
    fade = np.linspace(1.0, 0.62, WIDTH)
    return np.ascontiguousarray(np.rint(cut(HEIGHT, WIDTH) * fade).astype(np.uint8))


@pytest.fixture(scope="module")
def dask() -> Iterator[MapBlocks]:
    with local_cluster(2) as mapper:
        yield mapper


def model(folder: Path, required: Normalisation, name: str = "required") -> Path:
    """Write the network that has learnt context, with a required normalisation."""
    network = load(CONTEXT)
    path = folder / f"{name}.safetensors"
    save(path, with_spec(network, UNetSpec.model_validate(network.spec.model_dump() | required.fields)), {})
    return path


def planned(slide: Path, out: Path, weights: Sequence[Path], *settings: str) -> SlidePlan:
    names = json.dumps([str(path) for path in weights]) if len(weights) > 1 else str(weights[0])
    common = ["input.mpp=0.25", "compute.precision=fp32", f"model.weights={names}", "tissue=null"]
    common += ["tiles.tile=256", "tiles.block=512"]
    batch = plan_batch(BatchRequest(inputs=(slide,), out=out, config=load_config(None, [*common, *settings])))
    assert [outcome.cause for outcome in batch.outcomes] == [""]
    (plan,) = batch.plans.values()
    return plan


def opened(plan: SlidePlan, out: Path, *, forced: bool = False) -> SlideRun:
    run = SlideRun(plan, SlideStore(slide_root(out, plan.key)))
    assert run.prepare(forced=forced) == "todo"
    return run


def predicted(plan: SlidePlan, out: Path, map_blocks: MapBlocks = serial) -> NDArray[np.uint8]:
    run = opened(plan, out)
    step_through(run, {}, map_blocks)
    return np.asarray(run.store.read("probability/0")[()])


def step_through(run: SlideRun, others: Mapping[str, MapBlocks], map_blocks: MapBlocks = serial) -> None:
    """Run the stages up to ``predict``; ``others`` holds another ``MapBlocks`` for some of them."""
    for stage in ("ingest", "tissue", "predict"):
        run.step(stage, others.get(stage, map_blocks))


@pytest.mark.parametrize(
    "required",
    [NORMALISATIONS[0], NORMALISATIONS[3], *(pytest.param(one, marks=pytest.mark.long) for one in NORMALISATIONS[1:3])],
    ids=str,
)
def test_tiled_equals_whole(tmp_path: Path, image: NDArray[np.uint8], required: Normalisation) -> None:
    tiled_equals_whole(tmp_path, image, required, serial)


@pytest.mark.long
def test_workers_normalise_alike(tmp_path: Path, image: NDArray[np.uint8], dask: MapBlocks) -> None:
    tiled_equals_whole(tmp_path, image, NORMALISATIONS[1], dask)


def tiled_equals_whole(tmp_path: Path, image: NDArray[np.uint8], required: Normalisation, mapper: MapBlocks) -> None:
    weights = model(tmp_path, required)
    plan = planned(write_tiff(tmp_path / "slide.tif", image), tmp_path / "out", [weights])
    stored = predicted(plan, tmp_path / "out", mapper)
    expected = oracle.whole_pass(oracle.network(weights), required.normalised(image))
    assert expected.std() > 3, "the output is not constant"
    assert (np.abs(expected.astype(int) - oracle.whole_pass(oracle.network(weights), image)) > 1).mean() > 0.1
    assert_equal_to_rounding(stored, expected, share=1e-3)


@pytest.mark.parametrize("required", NORMALISATIONS[:3], ids=str)
def test_control_map_fitted_to_each_tile_changes_pixels(
    tmp_path: Path, image: NDArray[np.uint8], required: Normalisation
) -> None:
    network = oracle.network(model(tmp_path, required))
    whole = oracle.whole_pass(network, required.normalised(image))
    left = oracle.whole_pass(network, required.normalised(image, whole=image[:, :, : WIDTH // 2]))
    apart = np.abs(whole.astype(int) - left)[:, :, : WIDTH // 2] > 1
    print(f"{apart.mean():.1%} of pixels differ if the map is fitted to half of the slide")
    assert apart.mean() > 0.05


def test_each_network_of_an_ensemble_uses_its_own_normalisation(tmp_path: Path) -> None:
    picture, required = (
        cut(150, 300),
        [Normalisation("macenko"), Normalisation("none"), Normalisation("none", equalise=True)],
    )
    files, outputs = [], []
    for seed, one in enumerate(required):
        spec = UNetSpec.model_validate({"depth": 4, "width": 2, "mpp": 0.25, "class_names": ("a",)} | one.fields)
        (tmp_path / str(seed)).mkdir()
        files.append(weights_of(tmp_path / str(seed), spec, seed).rename(tmp_path / f"{seed}.safetensors"))
        network = oracle.network(files[-1])
        outputs.append(oracle.whole_pass(network, one.normalised(picture)).astype(float))
    out = tmp_path / "out"
    plan = planned(write_tiff(tmp_path / "slide.tif", picture), out, files)
    stored = predicted(plan, out)
    assert np.abs(stored - np.mean(outputs, axis=0)).max() <= 1.01
    fitted = SlideStore(slide_root(out, plan.key)).facts("tissue")["normalisation"]
    by_file = dict(zip((one.weights.path.stem for one in plan.model.members), fitted, strict=True))
    assert by_file["1"] is None
    assert by_file["0"]["matrix"] is not None
    assert by_file["2"]["ranks"] is not None


@pytest.mark.parametrize("required", NORMALISATIONS[1:3], ids=str)
def test_evaluation_normalises_like_segmentation(tmp_path: Path, required: Normalisation) -> None:
    """Each annotated image is fitted like a slide."""
    picture = cut(150, 190)
    (method,) = networks([load_model(ModelSection(weights=str(model(tmp_path, required))))], "cpu")
    found = method.answers(picture)(Box(0, 0, 150, 190))
    expected = oracle.whole_pass(oracle.network(tmp_path / "required.safetensors"), required.normalised(picture))
    assert_equal_to_rounding(found, expected, share=2e-3)


def test_network_without_fitted_colour_map_is_refused(tmp_path: Path) -> None:
    network = load_networks(chosen(model(tmp_path, Normalisation("macenko"))), "cpu", "fp32", "none")
    with pytest.raises(ModelError, match="expected a map fitted to the slide"):
        single_pass(network, cut(50, 50), Box(0, 0, 50, 50))


# ---- the fit during a run --------------------------------------------------------------------------------------


def test_resumed_run_keeps_the_fitted_colours(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    """The run is stopped between blocks of ``tissue``, then between blocks of ``predict``."""
    slide, weights = (
        write_tiff(tmp_path / "slide.tif", image),
        model(tmp_path, Normalisation("reinhard", equalise=True)),
    )
    roots = []
    for name, stops in (("one", ()), ("two", (("tissue", 3), ("predict", 2)))):
        out = tmp_path / name
        plan = planned(slide, out, [weights])
        for stage, blocks in stops:
            run = opened(plan, out)
            with pytest.raises(StoppedError):
                step_through(run, {stage: StopAfter(blocks)})
        predicted(plan, out)
        roots.append(slide_root(out, plan.key))
    one, two = (SlideStore(root).facts("tissue") for root in roots)
    assert one == two
    arrays = [tree_bytes(root / "slide.ome.zarr") for root in roots]
    assert arrays[0] == arrays[1]


def hashes(slide: Path, out: Path, *weights: Path) -> dict[str, str]:
    return dict(planned(slide, out, weights).hashes)


def test_normalisation_settings_are_part_of_the_stage_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.runs import plan as plans

    slide = write_tiff(tmp_path / "slide.tif", cut(60, 80))
    files = [
        model(tmp_path, required, str(number))
        for number, required in enumerate([Normalisation("none"), *NORMALISATIONS])
    ]
    every = [hashes(slide, tmp_path / "out", one) for one in files]
    assert len({one["ingest"] for one in every}) == 1
    assert len({one["tissue"] for one in every}) == len({one["predict"] for one in every}) == len(files)
    assert hashes(slide, tmp_path / "out", CONTEXT)["tissue"] == every[0]["tissue"], (
        "equal to a model without normalisation"
    )
    monkeypatch.setattr(plans, "FIT_VERSION", plans.FIT_VERSION + 1)
    later = [hashes(slide, tmp_path / "out", one) for one in files]
    differ = [one["predict"] != other["predict"] for one, other in zip(every, later, strict=True)]
    assert differ == [False, *[True] * len(NORMALISATIONS)]


def test_another_normalisation_is_fitted_anew(tmp_path: Path) -> None:
    """Two models, one after the other, in one output folder."""
    picture, out = cut(120, 300), tmp_path / "out"
    slide = write_tiff(tmp_path / "slide.tif", picture)
    for number, required in enumerate(
        [Normalisation("none"), Normalisation("macenko"), Normalisation("macenko", equalise=True)]
    ):
        weights = model(tmp_path, required, str(number))
        stored = predicted(planned(slide, out, [weights]), out)
        expected = oracle.whole_pass(oracle.network(weights), required.normalised(picture))
        assert_equal_to_rounding(stored, expected, share=2e-3)


ODD: dict[str, Callable[[], NDArray[np.uint8]]] = {
    "glass": lambda: np.full((3, 90, 130), 244, np.uint8),
    "fluorescence": lambda: cut(90, 130) // 8,
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_slide_without_possible_fit_completes_with_a_flag(
    tmp_path: Path, make: Callable[[], NDArray[np.uint8]]
) -> None:
    picture, weights = make(), model(tmp_path, Normalisation("macenko"))
    plan = planned(write_tiff(tmp_path / "slide.tif", picture), tmp_path / "out", [weights])
    run = opened(plan, tmp_path / "out")
    for stage in plan.hashes:
        run.step(stage, serial)
    run.finish()
    stored = run.store.read("probability/0")[()]
    assert_equal_to_rounding(stored, oracle.whole_pass(oracle.network(weights), picture), share=1e-3)
    facts = json.loads(run.store.manifest.read_text())["stages"]["tissue"]["facts"]
    assert "colours_not_normalised" in facts["flags"]
    (fitted,) = facts["normalisation"]
    assert fitted["matrix"] is None
    assert fitted["kept"][0].startswith("macenko: no")
