"""The names that unet_core exports, and training and evaluation on arrays in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.measure import label

import unet_core
from tests.support.make_discs import drawn
from tests.unit.unet_core.training_runs import case, recipe, run
from unet_core.class_map import class_map
from unet_core.data.recoloured import recoloured
from unet_core.errors import AnnotationError, RecipeError, UnknownModelError
from unet_core.metrics.overlap import Overlaps, object_scores, object_sums, pixel_counts
from unet_core.model_file import checkpoint
from unet_core.model_file.header import describe, resolve
from unet_core.networks.unet import UNet
from unet_core.networks.whole_pass import whole_pass
from unet_core.spec import UNetSpec
from unet_core.training.model_selection import least_px, score
from unet_core.training.trainer import TrainData

pytestmark = pytest.mark.usefixtures("one_thread")

Arrays = list[NDArray[Any]]


def discs(count: int) -> tuple[Arrays, Arrays]:
    pairs = [drawn(seed) for seed in range(count)]
    return [image for image, _ in pairs], [labels for _, labels in pairs]


def components(mask_YX: NDArray[np.bool_], least: int = 1) -> NDArray[np.integer]:
    """8-connected components, those below a number of pixels left out."""
    labels_YX: NDArray[np.integer] = label(mask_YX, connectivity=2)
    return np.where((np.bincount(labels_YX.ravel()) >= least)[labels_YX], labels_YX, 0)


# ---- names ---------------------------------------------------------------------------------------------------------


def test_every_exported_name_is_what_its_module_defines() -> None:
    assert set(unet_core.__all__) == {"UNet", "UNetSpec", "load_model", "save_model", "train", "evaluate"}
    assert unet_core.UNet is UNet
    assert unet_core.UNetSpec is UNetSpec
    assert unet_core.load_model is checkpoint.load_model
    assert all(getattr(unet_core, name).__doc__ for name in unet_core.__all__)
    assert set(unet_core.__all__) <= set(dir(unet_core))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        unet_core.predict  # noqa: B018  the access raises
    assert not hasattr(unet_core, "segment")


# ---- model files ---------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_by_name_by_version_and_by_path() -> None:
    default, fourth, file = (unet_core.load_model(name) for name in ("nuclei", "nuclei@4", resolve("nuclei@4")))
    for other in (fourth, file):
        assert other.spec == default.spec
        assert all(torch.equal(one, two) for one, two in zip(default.parameters(), other.parameters(), strict=True))
    assert unet_core.load_model("nuclei@1").spec != default.spec
    with pytest.raises(UnknownModelError, match="nuclei@1"):
        unet_core.load_model("nucleus")


@pytest.mark.parametrize("precision", ["single", "half"])
def test_a_saved_model_is_loaded_with_its_spec_weights_and_provenance(tmp_path: Path, precision: Any) -> None:
    model, path = UNet(UNetSpec(depth=1, width=2, threshold=0.4)), tmp_path / "model.safetensors"
    unet_core.save_model(model, str(path), provenance={"source": "a test"}, precision=precision)
    loaded = unet_core.load_model(str(path))
    assert loaded.spec == model.spec
    for one, two in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one if precision == "single" else one.half().float(), two)
    assert describe(path).provenance == {"source": "a test"}
    assert not loaded.training


# ---- training ------------------------------------------------------------------------------------------------------


def test_training_on_arrays_equals_a_training_run_on_annotated_images(tmp_path: Path) -> None:
    images, masks = discs(4)
    settings = recipe(data={"classes": ("disc",)})
    before = torch.get_num_threads()
    model = unet_core.train(images, masks, out=tmp_path / "new" / "arrays", config=settings, held_back=[3])
    run(tmp_path / "run", settings, TrainData([case(seed) for seed in range(3)], [case(3)], ("disc",)))
    expected = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert torch.get_num_threads() == before
    assert not model.training
    assert model.spec == expected.spec
    assert model.spec.threshold is not None
    for one, two in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_the_same_call_loads_a_finished_training_and_another_one_is_refused(tmp_path: Path) -> None:
    images, masks = discs(2)
    unet_core.train(images, masks, out=str(tmp_path), config=recipe())
    before = (tmp_path / "best.safetensors").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    again = unet_core.train(images, masks, out=tmp_path, config=recipe())
    assert again.spec.class_names == ("object",)
    assert before == ((tmp_path / "best.safetensors").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes())
    with pytest.raises(RecipeError):
        unet_core.train(images, masks, out=tmp_path, config=recipe(), held_back=[0])


def test_masks_hold_classes_where_several_are_named(tmp_path: Path) -> None:
    images, masks = discs(2)
    classes = [np.where(mask == 0, 0, 1 + mask % 2).astype(np.uint8) for mask in masks]
    settings = recipe(data={"classes": ("even", "odd")}, stopping={"every": 20})
    model = unet_core.train(images, classes, out=tmp_path, config=settings)
    assert model.spec.class_names == ("even", "odd")
    found = unet_core.evaluate(model, images, classes)
    expected = []
    for number in (1, 2):
        pairs = [(image.transpose(2, 0, 1), mask == number) for image, mask in zip(images, classes, strict=True)]
        predicted = [components(class_map(whole_pass(model, image), 0.5) == number) for image, _ in pairs]
        sums = [
            object_sums(Overlaps.of(ids, label(true, connectivity=2)))
            for ids, (_, true) in zip(predicted, pairs, strict=True)
        ]
        expected.append(object_scores(np.sum(sums, axis=0)))
    for name, value in (("pq", found.pq), ("aji", found.aji), ("f1_50", found.f1_50)):
        assert value == pytest.approx(np.mean([one[name] for one in expected])), name


# ---- evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nuclei@1", "nuclei@2"])
def test_scores_equal_those_by_which_training_selects(name: str) -> None:
    images, masks = discs(3)
    model = unet_core.load_model(name)
    cases = [case(seed) for seed in range(3)]
    found = unet_core.evaluate(model, images, masks)
    rule = model.spec.threshold or 0.5, least_px(model.spec)
    probabilities = [whole_pass(model, one.image_CYX) for one in recoloured(cases, model.spec.normalisation)]
    ((pixels, objects),) = score(probabilities, cases, [model.spec])
    assert (found.dice, found.f1_50) == pytest.approx((pixels.f1, objects.f1))
    assert 0 < found.dice < 1
    predicted = [components(class_map(one, rule[0]) > 0, rule[1]) for one in probabilities]
    sums = [object_sums(Overlaps.of(ids, one.labels_YX)) for ids, one in zip(predicted, cases, strict=True)]
    expected = object_scores(np.sum(sums, axis=0))
    assert (found.pq, found.aji) == pytest.approx((float(expected["pq"]), float(expected["aji"])))


def test_a_model_is_scored_on_images_brought_to_its_colours() -> None:
    model, (images, masks) = unet_core.load_model("nuclei@2"), discs(1)
    assert model.spec.normalisation is not None
    as_stored = class_map(whole_pass(model, images[0].transpose(2, 0, 1)), model.spec.threshold or 0.5)
    found = components(as_stored > 0, least_px(model.spec))
    assert unet_core.evaluate(model, images, masks).dice != pixel_counts(found > 0, masks[0] > 0).f1


# ---- refusals ------------------------------------------------------------------------------------------------------

IMAGE, MASK = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.int32)


@pytest.mark.parametrize(
    ("images", "masks", "held_back", "message"),
    [
        ([IMAGE], [], (), "one mask per image, found 1 images and 0 masks"),
        ([IMAGE.astype(np.float32)], [MASK], (), r"images\[0\]: expected unsigned integers.*float32"),
        ([IMAGE[None]], [MASK], (), r"images\[0\]: expected unsigned integers \(H, W\) or \(H, W, C\)"),
        ([IMAGE, IMAGE], [MASK, MASK[:32]], (), r"masks\[1\]: expected integers \(64, 64\).*\(32, 64\)"),
        ([IMAGE], [MASK.astype(bool)], (), r"masks\[0\]: expected integers.*bool"),
        ([IMAGE], [MASK - 1], (), r"masks\[0\]: expected numbers from 0 to .*found -1 to -1"),
        ([IMAGE], [MASK.astype(np.int64) + 2**32], (), r"masks\[0\]: expected numbers from 0 to 2147483647"),
        ([IMAGE], [MASK], (0,), "at least one image to train on"),
        ([IMAGE, IMAGE], [MASK, MASK], (-1,), r"held_back: expected indices 0 to 1, found \[-1\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, images: Arrays, masks: Arrays, held_back: tuple[int, ...], message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        unet_core.train(images, masks, out=tmp_path / "out", config=recipe(), held_back=held_back)
    assert not (tmp_path / "out").exists()


def test_classes_that_are_not_named_are_rejected(tmp_path: Path) -> None:
    settings = recipe(data={"classes": ("even", "odd")})
    with pytest.raises(AnnotationError, match="expected numbers from 0 to 2, found 256 to 256"):
        unet_core.train([IMAGE], [MASK + 256], out=tmp_path, config=settings)


def test_images_with_other_channels_than_the_model_are_rejected() -> None:
    model = unet_core.load_model("nuclei@1")
    with pytest.raises(AnnotationError, match=r"expected 3 channels.*found 4"):
        unet_core.evaluate(model, [np.zeros((64, 64, 4), np.uint8)], [MASK])
