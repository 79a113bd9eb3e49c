"""Training and evaluation compute the bytes that segmentation stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

from pipeline.geometry import Box
from pipeline.inference import predictor
from unet_core.colour_transform import recolour
from unet_core.model_file.checkpoint import load, save
from unet_core.model_file.header import Weights, resolve, sha256
from unet_core.networks.factory import build
from unet_core.networks.whole_pass import whole_outputs, whole_pass
from unet_core.normalisation import ColourMap, fit, sample
from unet_core.spec import UNetSpec

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE_PX = 256
GOLDEN = Path(__file__).parents[3] / "exactness" / "golden"
FILES = {
    **{
        name: resolve(name)
        for name in ("nuclei@1", "nuclei@2", "nuclei@4", "nuclei-fluorescence@1", "nuclei-fluorescence@2")
    },
    "two classes": GOLDEN / "classes.safetensors",
}
UNEVEN = {"mean": (0.71, 0.43, 0.62), "std": (0.13, 0.21, 0.17)}
SPECS = {
    "three classes": UNetSpec(depth=2, width=4, classes=4, **UNEVEN),
    "three classes, sigmoid": UNetSpec(depth=2, width=4, classes=4, head="sigmoid", **UNEVEN),
    "one class, sigmoid": UNetSpec(depth=2, width=4, head="sigmoid", **UNEVEN),
    "maps": UNetSpec(depth=2, width=4, maps=("distance", "boundary"), **UNEVEN),
    "batch norm": UNetSpec(depth=2, width=4, padding="same", norm="batch", **UNEVEN),
    "unet++": UNetSpec(architecture="unet++", width=4, padding="same", norm="batch", **UNEVEN),
    "attention": UNetSpec(architecture="attention", depth=2, width=4, padding="same", norm="batch", **UNEVEN),
}


def images(channels: int) -> dict[str, NDArray[Any]]:
    """A stained tissue, random pixels of 8 and of 16 bits."""
    generator = np.random.default_rng(3)
    tissue = data.immunohistochemistry()[:SIDE_PX, :SIDE_PX].transpose(2, 0, 1)[:channels]
    shape = (channels, SIDE_PX, SIDE_PX)
    return {
        "tissue": np.ascontiguousarray(tissue),
        "random": generator.integers(0, 256, shape, np.uint8),
        "16 bits": generator.integers(0, 65536, shape, np.uint16),
    }


def stored(path: Path, image_CYX: NDArray[Any], colours: ColourMap | None) -> NDArray[Any]:
    """Bytes that segmentation stores for an image, from one call of the network."""
    loaded = predictor.load_networks((Weights(path, sha256(path)),), "cpu", "fp32", "none")
    return predictor.single_pass(loaded, image_CYX, Box(0, 0, SIDE_PX, SIDE_PX), (colours,))


def assert_equal_bytes(path: Path) -> None:
    model = load(path)
    for kind, image_CYX in images(model.spec.in_channels).items():
        colours = fit(sample(image_CYX), model.spec.normalisation) if model.spec.normalisation else None
        shown = image_CYX if colours is None else recolour(torch.from_numpy(image_CYX), colours).numpy()
        found, expected = whole_outputs(model, shown), stored(path, image_CYX, colours)
        assert len(np.unique(expected)) > 4, f"{kind}: too few grey levels to compare"
        np.testing.assert_array_equal(found, expected, err_msg=kind)


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_bytes_of_stored_models_equal_those_of_segmentation(path: Path) -> None:
    assert_equal_bytes(path)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_bytes_of_each_architecture_equal_those_of_segmentation(tmp_path: Path, spec: UNetSpec) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save(path, build(spec), {})
    assert_equal_bytes(path)


def test_grey_pixels_are_repeated_for_a_network_of_several_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(SPECS["three classes"]).eval()
    grey = images(1)["random"]
    np.testing.assert_array_equal(whole_pass(model, grey), whole_pass(model, grey.repeat(3, 0)))
