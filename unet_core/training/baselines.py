"""Baseline methods that a network has to outperform: Otsu's threshold and classifiers on features of each pixel.

A baseline returns bytes of probability for any box of an image, as a network does, so the same code scores both. Otsu's
threshold needs no training; a random forest and a linear support vector machine train on a bounded, seeded sample of
pixels. Only the forest has probabilities, so calibration applies to it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.feature import multiscale_basic_features
from skimage.filters import threshold_otsu

from unet_core.class_map import IGNORED
from unet_core.data.sampler import AnnotatedImage
from unet_core.metrics.overlap import Array
from unet_core.mirror import ArrayLike, BoxLike, Square, read_mirrored
from unet_core.optional import TRAIN, optional_import

ReadProbability = Callable[[BoxLike], NDArray[np.uint8]]
"""Maps a box of one image to probabilities (k, h, w) as bytes."""

TRAINING_PX = 20_000
"""Training pixels of a classifier, equally many from each image."""
SEED = 0
STRIP_PX = 1024
SIGMA_MAX = 8.0
MARGIN_PX = 40
"""Reach of the features: Gaussians end at 4 sigma, their second derivatives a little later."""
DARK = 64 / 255
"""Median brightness, as a fraction of white, below which an image is fluorescence."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A method for any image.

    Attributes:
        name: Display name.
        how: Description for reports.
        graded: Whether its bytes are probabilities (else only 0 and 255).
        of_image: Maps an image (c, y, x) to the method's output for boxes of it.
    """

    name: str
    how: str
    graded: bool
    of_image: Callable[[ArrayLike], ReadProbability]


def otsu() -> Baseline:
    """Return Otsu's threshold of each image, on saturation of stained tissue or grey of fluorescence."""
    how = (
        "Otsu's threshold of each image, on saturation where its median brightness is at least 64 of 255 and it has "
        "three unlike channels (stained), else on grey (fluorescence, brighter is object); no training"
    )
    return Baseline("otsu", how, graded=False, of_image=_otsu_of)


def _otsu_of(image_CYX: ArrayLike) -> ReadProbability:
    stained, limit = _is_stained(image_CYX), _limit(image_CYX)

    def levels(box: BoxLike) -> Array:
        return _levels(read_mirrored(image_CYX, box), limit, stained=stained)

    threshold = _threshold(lambda: map(levels, _strips(image_CYX.shape[1:])))

    def answer(box: BoxLike) -> NDArray[np.uint8]:
        return np.where(levels(box) > threshold, 255, 0).astype(np.uint8)[None]

    return answer


def _threshold(levels: Callable[[], Iterable[Array]]) -> float:
    """Return the result of `threshold_otsu` for a whole image of real numbers: 256 bins between its extremes."""
    extremes = np.array([(part.min(), part.max()) for part in levels()])
    low, high = float(extremes[:, 0].min()), float(extremes[:, 1].max())
    if low == high:
        return high
    counted = [np.histogram(part, 256, (low, high)) for part in levels()]
    edges = counted[0][1]
    return float(threshold_otsu(hist=(np.sum([counts for counts, _ in counted], axis=0), (edges[1:] + edges[:-1]) / 2)))


def _levels(pixels_CYX: Array, limit: float, *, stained: bool) -> Array:
    """Return saturation (hexcone: (largest - smallest) / largest) or grey of each pixel in 0..1."""
    scaled = pixels_CYX.astype(np.float64) / limit
    if not stained:
        return np.asarray(scaled.mean(axis=0))
    largest = scaled.max(axis=0)
    spread = largest - scaled.min(axis=0)
    return np.asarray(np.divide(spread, largest, out=np.zeros_like(spread), where=largest > 0))


def _is_stained(image_CYX: ArrayLike) -> bool:
    """Return whether an image is coloured bright-field, from at most 1024 x 1024 px at its centre."""
    if image_CYX.shape[0] != 3:
        return False
    starts = [max(0, (length - STRIP_PX) // 2) for length in image_CYX.shape[1:]]
    stops = [min(length, start + STRIP_PX) for start, length in zip(starts, image_CYX.shape[1:], strict=True)]
    middle = read_mirrored(image_CYX, Square(*starts, *stops))
    coloured = bool((middle != middle[:1]).any())
    return coloured and bool(np.median(middle.mean(axis=0)) >= DARK * _limit(image_CYX))


def _limit(image_CYX: ArrayLike) -> float:
    dtype = np.asarray(image_CYX[(slice(0, 1), slice(0, 1), slice(0, 1))]).dtype
    return float(np.iinfo(dtype).max)


def _strips(shape_yx: Sequence[int]) -> Iterator[Square]:
    """Yield squares that cover an image, to bound the size of a read."""
    height, width = shape_yx
    for y in range(0, height, STRIP_PX):
        for x in range(0, width, STRIP_PX):
            yield Square(y, x, min(y + STRIP_PX, height), min(x + STRIP_PX, width))


# ---- classifiers of pixels -----------------------------------------------------------------------------------------


def random_forest(cases: Sequence[AnnotatedImage], foreground: int) -> Baseline:
    """Train 100 trees on features of pixels (defaults of scikit-learn except for 5 pixels per leaf)."""
    with optional_import(TRAIN, "baseline 'random forest'"):
        from sklearn.ensemble import RandomForestClassifier
    model = RandomForestClassifier(100, min_samples_leaf=5, random_state=SEED, n_jobs=1)
    how = f"100 trees on {_described(cases)}"
    return Baseline("random forest", how, graded=True, of_image=_classifier(model, cases, foreground))


def linear_svm(cases: Sequence[AnnotatedImage], foreground: int) -> Baseline:
    """Train a linear support vector machine on standardised features of pixels."""
    with optional_import(TRAIN, "baseline 'linear SVM'"):
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    model = make_pipeline(StandardScaler(), LinearSVC(dual=False, random_state=SEED))
    how = f"linear support vector machine on {_described(cases)}, standardised"
    return Baseline("linear SVM", how, graded=False, of_image=_classifier(model, cases, foreground))


def _described(cases: Sequence[AnnotatedImage]) -> str:
    return (
        f"multiscale intensity, edges and texture (sigma 1 to {SIGMA_MAX:g} px) of {TRAINING_PX} pixels of "
        f"{len(cases)} training images, seed {SEED}"
    )


def _classifier(model: Any, cases: Sequence[AnnotatedImage], foreground: int) -> Callable[[ArrayLike], ReadProbability]:
    features, classes = training_pixels(cases)
    model.fit(features, classes)
    known = [int(one) for one in model.classes_]

    def of_image(image_CYX: ArrayLike) -> ReadProbability:
        def answer(box: BoxLike) -> NDArray[np.uint8]:
            pixels_NF = _features(image_CYX, box)
            shares = np.zeros((len(pixels_NF), foreground + 1), np.float32)
            if hasattr(model, "predict_proba"):
                shares[:, known] = model.predict_proba(pixels_NF)
            else:
                shares[np.arange(len(pixels_NF)), model.predict(pixels_NF)] = 1
            bytes_NK = (shares[:, 1:] * 255).round().astype(np.uint8)
            return np.ascontiguousarray(bytes_NK.T.reshape(foreground, box.y1 - box.y0, box.x1 - box.x0))

        return answer

    return of_image


def training_pixels(cases: Sequence[AnnotatedImage]) -> tuple[Array, Array]:
    """Return features (n, f) and classes (n,) of `TRAINING_PX` random pixels, equally many from each image.

    A random square of 1024 px represents a larger image.
    """
    generator = np.random.default_rng(SEED)
    drawn = [_drawn(case, -(-TRAINING_PX // len(cases)), generator) for case in cases]
    features, classes = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    return features[:TRAINING_PX], classes[:TRAINING_PX]


def _drawn(case: AnnotatedImage, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
    sides = [min(length, STRIP_PX) for length in case.image_CYX.shape[1:]]
    free = [length - side for side, length in zip(sides, case.image_CYX.shape[1:], strict=True)]
    y, x = (int(generator.integers(room + 1)) for room in free)
    square = Square(y, x, y + sides[0], x + sides[1])
    chosen = generator.choice(sides[0] * sides[1], min(count, sides[0] * sides[1]), replace=False)
    classes_YX = case.class_map[y : square.y1, x : square.x1]
    chosen = chosen[classes_YX.ravel()[chosen] != IGNORED]
    return _features(case.image_CYX, square)[chosen], classes_YX.ravel()[chosen]


def _features(image_CYX: ArrayLike, box: BoxLike) -> Array:
    """Return the features (pixels, f) of a box; the image is mirrored beyond its edges."""
    margin = Square(box.y0 - MARGIN_PX, box.x0 - MARGIN_PX, box.y1 + MARGIN_PX, box.x1 + MARGIN_PX)
    pixels_YXC = np.moveaxis(read_mirrored(image_CYX, margin), 0, -1)
    scaled = pixels_YXC.astype(np.float32) / _limit(image_CYX)
    found = multiscale_basic_features(scaled, sigma_min=1, sigma_max=SIGMA_MAX, channel_axis=-1)
    inner = found[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    return np.ascontiguousarray(inner.reshape(-1, found.shape[-1]))
