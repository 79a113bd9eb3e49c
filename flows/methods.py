"""What is judged: networks and baselines, asked in one way.

The one decision made here: a method is a function from an annotated image to a function from blocks to bytes of
probability. How it came by them is its own affair, so a threshold and a network stand in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.model import refused
from pipeline.errors import ConfigError
from pipeline.geometry import Box
from pipeline.judge import Answer, Rules
from pipeline.predict import Network, PredictSection, Region, load_network, resolve_device
from unet_core.evaluate import least_px
from unet_core.header import Weights, describe, resolve, sha256
from unet_core.mirror import ArrayLike
from unet_core.samples import Annotated
from unet_core.spec import UNetSpec

if TYPE_CHECKING:
    from unet_core.baselines import Baseline

TILE_PX = 1024
PRECISION = "fp32"
"""On every device: scores are not to depend on what a machine multiplies fastest."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to segment an image, and how its bytes become objects. ``mpp`` and ``sha256`` only where there are any."""

    name: str
    how: str
    rules: Rules
    answers: Callable[[ArrayLike], Answer]
    mpp: float | None = None
    sha256: str | None = None


def networks(models: Sequence[str], device: str) -> list[Method]:
    """The models, built-in or files. Raises ConfigError for two of one name or of other classes, ModelError."""
    with refused():
        found = [_network(resolve(model), resolve_device(device)) for model in models]
    names = [method.name for method in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--model: expected files of different names, found {', '.join(twice)} twice. Rename one")
    for method in found[1:]:
        if method.rules.class_names != found[0].rules.class_names:
            raise ConfigError(
                f"--model: expected one list of classes, found {list(found[0].rules.class_names)} in {names[0]} and "
                f"{list(method.rules.class_names)} in {method.name}. Judge them apart"
            )
    return found


def _network(path: Path, device: str) -> Method:
    spec, digest = describe(path).spec, sha256(path)
    section = PredictSection((Weights(path, digest),), spec.foreground, 1, device, PRECISION, TILE_PX)
    network = load_network(section)
    threshold = spec.threshold or 0.5
    rules = Rules(spec.class_names, threshold, least_px(spec))
    by = f"threshold {threshold:g}" if spec.foreground == 1 else "largest probability"
    how = f"{by}, objects of at least {rules.least_px} px, {PRECISION} on {device}"
    return Method(path.stem, how, rules, partial(asked, network), spec.mpp, digest)


def asked(network: Network, image_CYX: ArrayLike, tile_px: int = TILE_PX) -> Answer:
    """What a network answers for blocks of an image that start on its step. Raises ConfigError for other channels."""
    _demand_channels(network.spec, image_CYX)
    step = network.shape.step
    smallest = max(-(-length // step) * step for length in image_CYX.shape[1:])
    side = min(tile_px, smallest)

    def answer(core: Box) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        region = Region.around(image_CYX, network.grid(core, side))
        return network.probability(region, core, side)

    return answer


def _demand_channels(spec: UNetSpec, image_CYX: ArrayLike) -> None:
    channels = image_CYX.shape[0]
    if channels not in (1, spec.in_channels):
        raise ConfigError(
            f"expected images of {spec.in_channels} channels, as the model takes (or of 1, which is repeated), found "
            f"{channels}. Judge a model made for such images, or convert them"
        )


def baselines(first: Method, training: Sequence[Annotated]) -> list[Method]:
    """Otsu's threshold for a single class, and classifiers of pixels where there are images to train them on."""
    from unet_core.baselines import linear_svm, otsu, random_forest  # scikit-learn costs a second

    names = first.rules.class_names
    found = [otsu()] if len(names) == 1 else []
    if training:
        found += [random_forest(training, len(names)), linear_svm(training, len(names))]
    return [_baseline(one, names) for one in found]


def _baseline(baseline: Baseline, class_names: tuple[str, ...]) -> Method:
    rules = Rules(class_names, 0.5, 1, graded=baseline.graded)
    return Method(baseline.name, f"{baseline.how}; every component is kept", rules, baseline.of_image)
