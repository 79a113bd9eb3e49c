"""Reference colours of stain normalisation, computed directly from the papers' equations.

Imports numpy only. Images are (3, y, x) uint8; targets are two rows of three numbers, as in a model file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Numbers = NDArray[np.float64]
Affine = tuple[Numbers, Numbers]
"""Matrix (3, 3) and offset (3,) for densities."""

L_ALPHA_BETA = [np.array(axis) / np.linalg.norm(axis) for axis in ((1, 1, 1), (1, 1, -2), (1, -1, 0))]
STEPS = 8192


def density(image: NDArray[Any]) -> Numbers:
    """Optical density: -ln of the transmitted part of the light."""
    return -np.log((image.astype(float) + 1) / 256)


def looked_at(image: Image) -> Image:
    """Pixels (3, n) that a map is fitted to: every 2nd, 4th, ... in both directions, until at most 2^18 remain."""
    while image[0].size > 2**18:
        image = image[:, ::2, ::2]
    return image.reshape(3, -1)


def absorbing(image: Image) -> Numbers:
    """Densities (n, 3) of the sampled pixels that absorb."""
    found = density(looked_at(image)).T
    return found[found.mean(axis=1) >= 0.15]


def reinhard(image: Image, target: Any) -> Affine:
    """Set mean and standard deviation along l, alpha and beta to those of the target."""
    seen = absorbing(image)
    matrix, offset = np.zeros((3, 3)), np.zeros(3)
    for axis, mean, deviation in zip(L_ALPHA_BETA, *target, strict=True):
        own = seen @ axis
        matrix += deviation / own.std() * np.outer(axis, axis)
        offset += (mean - own.mean() * deviation / own.std()) * axis
    return matrix, offset


def macenko_stains(image: Image) -> tuple[Numbers, Numbers]:
    """Directions of the two stains (2, 3), more red first, and the 99th percentile of the concentration of each."""
    seen = absorbing(image)
    _, _, directions = np.linalg.svd(seen, full_matrices=False)
    one, two = directions[0] * np.sign(directions[0].sum()), directions[1]
    angles = np.arctan2(seen @ two, seen @ one)
    stains = [np.cos(angle) * one + np.sin(angle) * two for angle in np.percentile(angles, [1, 99])]
    stains.sort(key=lambda stain: -stain[0])
    concentrations, *_ = np.linalg.lstsq(np.stack(stains).T, seen.T, rcond=None)
    return np.stack(stains), np.percentile(concentrations, 99, axis=1)


def macenko(image: Image, target: Any) -> Affine:
    """Replace the slide's two stains by the target's, scaled by concentration; other components are dropped."""
    stains, strengths = macenko_stains(image)
    concentrations, *_ = np.linalg.lstsq(stains.T, np.eye(3), rcond=None)  # for a density of 1 in each channel
    return np.array(target).T @ (concentrations / strengths[:, None]), np.zeros(3)


def untouched(image: Image, target: Any) -> Affine:
    """Identity: no stain normalisation."""
    return np.eye(3), np.zeros(3)


STAINS = {"none": untouched, "reinhard": reinhard, "macenko": macenko}


def ranks(seen: NDArray[np.integer[Any]], values: NDArray[np.integer[Any]]) -> Numbers:
    """Ranks of values among ``seen``: linear between 65 quantiles, each at the middle of equal values."""
    ordered = sorted(seen.tolist())
    knots = sorted({ordered[round(k * (len(ordered) - 1) / 64)] for k in range(65)})
    middle = [np.mean(seen < knot) + np.mean(seen == knot) / 2 for knot in knots]
    return np.asarray(np.interp(values, knots, middle))


def rescaled(seen: NDArray[np.integer[Any]], values: NDArray[np.integer[Any]]) -> Numbers:
    """Shares 0..1 of values: medians below and above the best threshold of all (Otsu 1979) at 0.05 and 0.4."""
    seen = np.sort(seen.ravel())
    splits = np.flatnonzero(np.diff(seen)) + 1
    variances = [at * (len(seen) - at) * (seen[:at].mean() - seen[at:].mean()) ** 2 for at in splits]
    best = splits[int(np.argmax(variances))]
    dark, bright = np.median(seen[:best]), np.median(seen[best:])
    return np.asarray((0.05 + 0.35 * (values - dark) / (bright - dark)).clip(0, 1))


def exact(image: Image, stain: str, target: Any) -> Numbers:
    """Grey values (3, n or y, x) after stain normalisation, directly from the equations, not rounded."""
    matrix, offset = STAINS[stain](image, target)
    made = np.tensordot(matrix, density(image), 1) + offset.reshape(3, 1, 1)
    return np.asarray((256 * np.exp(-made) - 1).clip(0, 255))


def shown(
    image: Image, stain: str, target: Any, *, equalise: bool = False, rescale: bool = False, whole: Image | None = None
) -> Image:
    """Input bytes of the network for an image, with the map fitted to ``whole`` (default: the image).

    Densities are single precision, in steps of 1/8192; fitted numbers have six decimals.
    """
    whole = image if whole is None else whole
    matrix, offset = (numbers.round(6) for numbers in STAINS[stain](whole, target))
    values = image.astype(np.int64)
    if stain != "none":
        steps = (STEPS * density(image)).astype(np.float32)
        rows = zip(matrix.astype(np.float32), (STEPS * offset).astype(np.float32), strict=True)
        mixed = np.stack([((steps[0] * r + steps[1] * g) + steps[2] * b) + more for (r, g, b), more in rows])
        values = np.rint(256 * np.exp(-np.rint(mixed).clip(0) / STEPS) - 1).clip(0, 255).astype(np.int64)
    if rescale:
        return np.stack([np.rint(255 * rescaled(*pair)) for pair in zip(looked_at(whole), values, strict=True)]).astype(
            np.uint8
        )
    if equalise:
        seen = looked_at(whole)
        made = matrix @ density(seen) + offset[:, None]
        after = np.rint(256 * np.exp(-made) - 1).clip(0, 255).astype(int) if stain != "none" else seen.astype(int)
        counted = after[:, density(seen).mean(axis=0) >= 0.15]
        values = np.stack([np.rint(255 * ranks(*pair)) for pair in zip(counted, values, strict=True)])
    return values.astype(np.uint8)
