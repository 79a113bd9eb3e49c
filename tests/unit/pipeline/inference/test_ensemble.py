"""The model of a run: one network or several that agree, and its part in the hashes of stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import InputSection, ModelSection, RunConfig, load_config
from pipeline.errors import ConfigError, ModelError
from pipeline.inference.ensemble import load_model
from pipeline.inputs.cases_table import Case
from pipeline.runs.plan import SlidePlan
from pipeline.runs.slide_run import _difference
from pipeline.storage.atomic_files import digest
from tests.support.commands import CONTEXT
from unet_core.model_file.checkpoint import save
from unet_core.model_file.header import describe, sha256
from unet_core.networks.factory import build
from unet_core.spec import ObjectSettings, UNetSpec, preset

SPEC = UNetSpec(depth=1, width=2, mpp=0.5, class_names=("cell",), threshold=0.3, min_area_um2=2.0)


def weights(folder: Path, name: str, spec: UNetSpec = SPEC, **changes: object) -> str:
    """A network's file; files of other names have other weights, also for equal specs."""
    torch.manual_seed(sum(name.encode()))
    path = folder / f"{name}.safetensors"
    save(path, build(UNetSpec.model_validate(spec.model_dump() | changes)), {"name": name})
    return str(path)


# ---- one -----------------------------------------------------------------------------------------------------------


def test_single_network_has_its_own_digest_and_summary(tmp_path: Path) -> None:
    path = weights(tmp_path, "one")
    for asked in (path, (path,)):
        model = load_model(ModelSection(weights=asked))
        assert (model.name, model.sha256, model.spec) == ("one", sha256(Path(path)), describe(Path(path)).spec)
        assert (model.shape.step, model.shape.halo, model.passes) == (2, 8, 1)
        assert model.pixels_depend_on == [model.sha256]
        assert set(model.summary()) == {"name", "sha256", "spec", "halo_px", "step_px"}


# ---- several -------------------------------------------------------------------------------------------------------


def test_ensemble_does_not_depend_on_order_of_members(tmp_path: Path) -> None:
    gated = preset("attention", width=2, depth=2, mpp=0.5, class_names=("cell",))
    files = [weights(tmp_path, "one"), weights(tmp_path, "two", gated), weights(tmp_path, "three", threshold=0.4)]
    models = [load_model(ModelSection(weights=tuple(order))) for order in (files, files[::-1])]
    assert models[0] == models[1]
    model = models[0]
    digests = sorted(sha256(Path(path)) for path in files)
    assert model.sha256 == digest(digests)
    assert [one.sha256 for one in model.weights] == digests
    assert sorted(model.name.split(" + ")) == ["one", "three", "two"]
    assert (model.shape.step, model.shape.halo) == (4, 16)
    assert model.spec.threshold == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert model.spec.min_area_um2 == pytest.approx(4 / 3)
    summary = {one["name"]: (one["threshold"], one["min_area_um2"]) for one in model.summary()["members"]}
    assert summary == {"one": (0.3, 2.0), "two": (0.5, 0.0), "three": (0.4, 2.0)}
    assert model.summary()["spec"]["threshold"] == model.spec.threshold


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mpp": 0.25}, "same mpp"),
        ({"class_names": ("nucleus",)}, "same class_names"),
        ({"classes": 3, "class_names": ("cell", "debris")}, "same class_names"),
        ({"in_channels": 1, "mean": (0.5,), "std": (0.2,)}, "same in_channels"),
        ({"maps": ("centre",)}, "same maps .*(found none and centre|found centre and none)"),
    ],
)
def test_members_that_disagree_are_refused_by_name(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    files = (weights(tmp_path, "one"), weights(tmp_path, "two", **changes))
    with pytest.raises(ModelError, match=words) as caught:
        load_model(ModelSection(weights=files))
    assert all(path in str(caught.value) for path in files)


MAPS = ("distance", "centre")
SEEDS = ObjectSettings(method="seeds", source="centre", depth=0.1, max_area_um2=50.0)


@pytest.mark.parametrize(
    ("objects", "words"),
    [(None, r"same objects\.method"), (SEEDS.model_copy(update={"source": "distance"}), r"same objects\.source")],
)
def test_members_that_make_objects_in_other_ways_are_refused(
    tmp_path: Path, objects: ObjectSettings | None, words: str
) -> None:
    files = (
        weights(tmp_path, "one", maps=MAPS, objects=SEEDS),
        weights(tmp_path, "two", maps=MAPS, objects=objects),
    )
    with pytest.raises(ModelError, match=words):
        load_model(ModelSection(weights=files))


@pytest.mark.parametrize(("limit", "expected"), [(80.0, 80.0), (20.0, 50.0), (None, None)])
def test_settings_of_objects_are_averaged(tmp_path: Path, limit: float | None, expected: float | None) -> None:
    other = SEEDS.model_copy(update={"depth": 0.4, "max_area_um2": limit})
    files = [weights(tmp_path, name, maps=MAPS, objects=how) for name, how in (("one", SEEDS), ("two", other))]
    found = load_model(ModelSection(weights=tuple(files))).spec.objects
    assert found == SEEDS.model_copy(update={"depth": 0.25, "max_area_um2": expected})
    plain = load_model(ModelSection(weights=(weights(tmp_path, "a"), weights(tmp_path, "b"))))
    assert plain.spec.objects is None


def test_the_same_weights_twice_are_refused(tmp_path: Path) -> None:
    path = weights(tmp_path, "one")
    (tmp_path / "copy.safetensors").write_bytes(Path(path).read_bytes())
    with pytest.raises(ModelError, match="found the same"):
        load_model(ModelSection(weights=(path, str(tmp_path / "copy.safetensors"))))


def test_missing_member_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model 'gone'"):
        load_model(ModelSection(weights=(weights(tmp_path, "one"), "gone")))


def test_no_weights_at_all_and_unknown_augmentations_are_refused() -> None:
    for setting in ("model.weights=[]", "model.weights=[1]", "model.tta=d8", "model.tta=true"):
        with pytest.raises(ConfigError, match=r"model\.(weights|tta)"):
            load_config(None, [setting])


def test_model_of_a_case_keeps_augmentation(tmp_path: Path) -> None:
    config = RunConfig(model=ModelSection(weights=("a", "b"), tta="d4"), input=InputSection(mpp=0.5))
    case = Case(tmp_path / "cases.csv", 2, "slide", {"model": "nuclei"})
    assert case.config(config).model == ModelSection(weights="nuclei", tta="d4")
    assert Case(tmp_path / "cases.csv", 3, "slide", {"model": ""}).config(config) == config


# ---- hashes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide, and weights beside it."""
    folder = tmp_path_factory.mktemp("hashes")
    tifffile.imwrite(folder / "slide.tif", np.full((64, 64, 3), 200, np.uint8), photometric="rgb")
    weights(folder, "other", describe(CONTEXT).spec.model_copy(update={"depth": 1, "width": 2, "threshold": 0.9}))
    return folder


def planned(folder: Path, *settings: str) -> SlidePlan:
    common = ["input.mpp=0.25", "compute.device=cpu", "compute.precision=fp32", f"model.weights={CONTEXT}"]
    request = BatchRequest(
        inputs=(folder / "slide.tif",), out=folder / "out", config=load_config(None, [*common, *settings])
    )
    (plan,) = plan_batch(request, writing=False).plans.values()
    return plan


def test_hashes_of_single_network_are_those_of_first_version(folder: Path) -> None:
    """The hashes are written out, so that existing results stay complete."""
    plan = planned(folder)
    hashes, tissue = plan.hashes, plan.config.tissue
    assert tissue is not None
    mpp = plan.resolution.mpp
    looked = [tissue.model_dump(mode="json"), mpp, 92, [plan.model.spec.stain_mean, plan.model.spec.stain_covariance]]
    assert hashes["tissue"] == digest(["tissue", 2, looked, [hashes["ingest"]]])
    upstream = [hashes["ingest"], hashes["tissue"]]
    assert hashes["predict"] == digest(["predict", 1, [sha256(CONTEXT), "cpu", "fp32"], upstream])
    assert planned(folder, f"model.weights=[{CONTEXT}]", "model.tta=none").hashes == hashes


def test_augmentation_and_members_change_hashes_from_predict_on(folder: Path) -> None:
    plain, turned = planned(folder), planned(folder, "model.tta=d4")
    several = planned(folder, f"model.weights=[{CONTEXT}, {folder / 'other.safetensors'}]")
    both = planned(folder, f"model.weights=[{folder / 'other.safetensors'}, {CONTEXT}]", "model.tta=d4")
    assert len({plan.hashes["predict"] for plan in (plain, turned, several, both)}) == 4
    for plan in (turned, several, both):
        changed = [stage for stage in plan.hashes if plan.hashes[stage] != plain.hashes[stage]]
        assert changed[0] == "predict", "the halo is the same, so the tissue is"
    assert several.threshold == pytest.approx((plain.threshold + 0.9) / 2)
    asked = planned(folder, f"model.weights=[{CONTEXT}, {folder / 'other.safetensors'}]", "objects.threshold=0.2")
    assert asked.threshold == 0.2
    assert _difference(plain.summary(), turned) == "test-time augmentation, none -> d4"
    assert "the weights" in _difference(plain.summary(), several)
    assert turned.summary()["model"]["tta"] == "d4"
