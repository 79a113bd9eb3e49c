"""Dots become outlines as a search pixel by pixel finds them, for any blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import label

from flows.training.training_data import TrainRequest, prepare
from pipeline.annotations.dataset import open_dataset
from pipeline.config import load_as
from pipeline.errors import ConfigError
from pipeline.evaluation.dot_outlines import DOT_PX, outline_dots, outlined_case
from pipeline.evaluation.image_scorer import ImageScorer, ScoringConfig
from tests.unit.flows.annotating import draw, folders, save_image, save_table
from unet_core.class_map import IGNORED
from unet_core.data.sampler import AnnotatedImage
from unet_core.model_file.checkpoint import save
from unet_core.model_file.header import sha256
from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec
from unet_core.training.config import TrainConfig

SHAPE = (70, 90)


@pytest.mark.parametrize("block", [16, 33, 2048])
@pytest.mark.parametrize("seed", range(4))
def test_outlines_equal_those_found_pixel_by_pixel(seed: int, block: int) -> None:
    """Dots on objects, two on one, beside objects and at the border; an outline and an ignored area beside them."""
    rng = np.random.default_rng(seed)
    probability = np.clip(128 + 900 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2), 0, 255).astype(np.uint8)
    objects = label(probability >= 153, connectivity=2)
    objects = np.where((np.bincount(objects.ravel()) >= 10)[objects], objects, 0)
    numbers = np.unique(objects[objects > 0])
    chosen = [rng.permutation(np.argwhere(objects == number))[: 1 + (i == 0)] for i, number in enumerate(numbers[:6])]
    yx = np.concatenate((*chosen, rng.uniform(0, (69, 89), (6, 2))))
    dots = np.column_stack((yx, rng.integers(1, 3, len(yx)))).astype(np.float32)
    labels, kinds = np.zeros(SHAPE, np.int32), np.zeros(SHAPE, np.uint8)
    labels[20:30, 30:45], kinds[20:30, 30:45], kinds[50:60, 10:30] = 3, 2, IGNORED
    case = AnnotatedImage("a", np.zeros((1, *SHAPE), np.uint8), labels, kinds, dots)
    scorer = ImageScorer(lambda core: probability[None][:, *core.slices], case, ScoringConfig(("a",), 0.6, 10), block)
    made, count = outlined_case(case, scorer)

    held: dict[int, list[int]] = {}
    for y, x, kind in dots.tolist():
        held.setdefault(int(objects[round(y), round(x)]), []).append(int(kind))
    single = {number: kinds_[0] for number, kinds_ in held.items() if number and len(kinds_) == 1}
    others = [dot for dot in dots.tolist() if objects[round(dot[0]), round(dot[1])] not in single]
    expected, parts = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    far = np.sqrt(((np.argwhere(np.ones(SHAPE))[:, None] - dots[None, :, :2]) ** 2).sum(axis=2)).min(axis=1) > DOT_PX
    far = far.reshape(SHAPE)
    for y, x in np.ndindex(SHAPE):
        number = int(objects[y, x])
        if kinds[y, x]:
            expected[y, x], parts[y, x] = kinds[y, x], -labels[y, x]
        elif number in single:
            expected[y, x], parts[y, x] = single[number], number
        elif number and (number not in held or far[y, x]):
            expected[y, x] = IGNORED
    assert single
    assert max(map(len, held.values())) > 1
    assert count == len(single)
    assert made.points_N3 is not None
    assert made.points_N3.tolist() == others
    assert np.array_equal(made.class_map[:, :], expected)
    pairs = np.unique(np.stack((parts.ravel(), np.asarray(made.labels_YX).ravel())), axis=1)
    assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1], "labels are those of the objects, one to one"
    assert np.array_equal(np.asarray(made.labels_YX) > 0, parts != 0)


def test_only_the_surroundings_of_dots_are_known_in_an_object_with_several() -> None:
    """Else the objects without a dot that the model joins with them would be learnt as background."""
    probability = np.zeros((1, 40, 120), np.uint8)
    probability[0, 10:30, 10:110] = 255
    dots = np.array([(20, 20, 1), (20, 40, 1)], np.float32)
    case = AnnotatedImage("a", probability, np.zeros((40, 120), np.int32), None, dots)
    scorer = ImageScorer(lambda core: probability[:, *core.slices], case, ScoringConfig(("a",), 0.6, 10), 33)
    made, count = outlined_case(case, scorer)
    y, x = np.indices((40, 120))
    near = np.minimum(np.hypot(y - 20, x - 20), np.hypot(y - 20, x - 40)) <= DOT_PX
    np.testing.assert_array_equal(made.class_map[:, :] == IGNORED, (probability[0] > 0) & ~near)
    assert count == 0
    assert made.points_N3 is not None
    np.testing.assert_array_equal(made.points_N3, dots)


def model_and_dot(folder: Path) -> tuple[Path, Path, Path]:
    """A random network at 0.5 um per pixel, and the folders of an image and of its only dot."""
    torch.manual_seed(0)
    path = folder / "model.safetensors"
    save(path, UNet(UNetSpec(depth=1, width=2, mpp=0.5)).eval(), {})
    images, masks = folders(folder)
    save_image(images, "a", draw(1))
    save_table(masks / "a.csv", "x,y", "5,5")
    return path, images, masks


def test_a_dataset_needs_the_resolution_of_the_model(tmp_path: Path) -> None:
    path, images, masks = model_and_dot(tmp_path)
    table = save_table(tmp_path / "t.csv", "image,mpp,weight", "a,0.5,3")
    found = outline_dots(open_dataset(images, masks, table, None, 0.5), str(path))
    (case,) = found.cases
    assert case.weight == 3.0
    outlined = 0 if case.points_N3 is None else 1 - len(case.points_N3)
    assert f"{outlined} of 1 dots" in found.remarks[-1]
    assert "of 1 dots have an outline by model; the others stay dots" in found.remarks[-1]
    for mpp, message in ((None, "found none in a"), (0.25, "found 0.25 in a")):
        other = replace(open_dataset(images, masks, table), mpp={"a": mpp})
        with pytest.raises(ConfigError, match=rf"expected images of the model's 0\.5 um per pixel, {message}"):
            outline_dots(other, str(path))


def test_the_model_that_outlines_dots_is_part_of_the_run_and_of_its_model(tmp_path: Path) -> None:
    path, images, masks = model_and_dot(tmp_path)
    table = save_table(tmp_path / "t.csv", "image,mpp", "a,0.5")
    config = load_as(
        TrainConfig, None, ["network.depth=1", "network.width=2", "network.mpp=0.5", "folds.hold_back=null"]
    )
    for model, expected in ((str(path), sha256(path)), (None, None)):
        (job,) = prepare(TrainRequest(images, masks, table, tmp_path / "run", config, model)).jobs
        shown = job.material.shown(job.spec())
        chosen_by = shown.training if shown.annotated is None else shown.annotated
        (one,) = chosen_by
        assert one.points_N3 is not None, "settings are chosen by the dots, not by outlines of a model"
        assert job.identity(job.spec()).get("pseudo") == job.provenance(1).get("pseudo") == expected


def test_a_run_with_other_dots_is_another_run(tmp_path: Path) -> None:
    _, images, masks = model_and_dot(tmp_path)
    config = load_as(TrainConfig, None, ["network.depth=1", "network.width=2", "folds.hold_back=null"])
    identities = []
    for position in ("5,5", "5,6", "5,5"):
        save_table(masks / "a.csv", "x,y", position)
        (job,) = prepare(TrainRequest(images, masks, None, tmp_path / "run", config, None)).jobs
        identities.append(job.identity(job.spec()))
    assert identities[0] == identities[2] != identities[1]
