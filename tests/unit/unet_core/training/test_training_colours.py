"""Training with stain normalisation uses the normalised colours everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import oracle_colours as oracle
from tests.unit.unet_core.training_runs import Silent, case, material, recipe, run
from unet_core.data.sampler import AnnotatedImage
from unet_core.errors import RecipeError
from unet_core.model_file.header import describe
from unet_core.normalisation import source
from unet_core.training.trainer import TrainData, Trainer, TrainJob


@pytest.mark.parametrize("stain", ["none", "reinhard", "macenko"])
def test_training_and_validation_use_the_normalised_colours(tmp_path: Path, stain: Any) -> None:
    """Moments, tiles, validation images and those of the threshold selection are in the new colours."""
    data = material(3, 1)
    asked = recipe(network={"stain_normalisation": stain, "equalise": stain != "reinhard"})
    training = Trainer.of(TrainJob(tmp_path, data, asked), Silent())
    spec = training.learner.model.spec
    assert (spec.stain_target is None) == (stain == "none")
    rows = [source(np.asarray(one.image_CYX[:, :, :]).reshape(3, -1), stain) for one in data.training]
    if stain != "none":
        np.testing.assert_allclose(spec.stain_target, np.median(np.array(rows), axis=0), atol=1e-4)
    expected_pixels = {
        one.name: oracle.shown(np.asarray(one.image_CYX), stain, spec.stain_target, equalise=spec.equalise)
        for one in (*data.training, *data.held_back)
    }
    pixels = np.concatenate([expected_pixels[one.name].reshape(3, -1) for one in data.training], axis=1) / 255
    assert spec.mean == pytest.approx(pixels.mean(axis=1), abs=1e-4)
    assert spec.std == pytest.approx(pixels.std(axis=1), abs=1e-4)
    for one in (*training.sampler.cases, *training.seen, *training.choosing):
        assert np.array_equal(one.image_CYX[:, :, :], expected_pixels[one.name])
    assert any((expected_pixels[one.name] != one.image_CYX).any() for one in data.training)
    assert run(tmp_path, asked, data).done
    assert describe(tmp_path / "best.safetensors").spec.normalisation == spec.normalisation


def test_training_from_a_model_keeps_its_colours(tmp_path: Path) -> None:
    run(tmp_path / "first", recipe(network={"stain_normalisation": "macenko"}, schedule={"steps": 1}))
    first = tmp_path / "first" / "best.safetensors"
    training = Trainer.of(TrainJob(tmp_path, material(2, 0), recipe(network={"start": str(first)})), Silent())
    target = describe(first).spec.stain_target
    for one in training.sampler.cases:
        image = np.asarray(case(int(one.name)).image_CYX)
        assert np.array_equal(one.image_CYX[:, :, :], oracle.shown(image, "macenko", target))


def test_images_without_stains_are_rejected(tmp_path: Path) -> None:
    grey = AnnotatedImage("grey", np.full((1, 60, 60), 90, np.uint8), np.ones((60, 60), np.int32))
    with pytest.raises(RecipeError, match=r"network\.stain_normalisation=macenko.*found in all of them: not RGB"):
        run(tmp_path, recipe(network={"stain_normalisation": "macenko"}), TrainData([grey]))
