"""Targets of the output maps of a tile, from outlines and dots.

    distance   distance to the edge of the object, over its maximum in the object; 0 on background
    centre     exp(-d^2 / (2 sigma^2)) with d the distance to the nearest centre of an object
    boundary   1 on the pixels of an object that touch another object or background, else 0

The centre of an outlined object is the mean of its pixels, weighted by the cube of their distance to the edge, so it
lies inside. A dot states a centre and nothing about distance and boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import label
from skimage.segmentation import find_boundaries
from torch import Tensor

from unet_core.data.weight_map import part_touching
from unet_core.mirror import mirrored
from unet_core.spec import MapName

Array = NDArray[Any]

MARGIN_PX = 32
"""Pixels around a tile's target in which objects are seen whole."""


class MapSettings(BaseModel):
    """Output maps that a network learns beside the foreground, and how dots are learnt.

    Attributes:
        names: Maps that the network computes; empty: the foreground only.
        distance: Factor of the squared error of the distance.
        centre: Factor of the cross-entropy of the centre; a pixel weighs 1 + 6 * target.
        boundary: Factor of the cross-entropy of the boundary.
        sigma_px: Standard deviation of the Gaussian of a centre.
        dot_px: Pixels up to this distance of a dot are foreground.
        far_px: Pixels from this distance of every dot on are background; pixels between are not trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    names: Annotated[tuple[MapName, ...], Field(strict=False)] = ("distance", "centre")
    distance: NonNegativeFloat = 3.0
    centre: NonNegativeFloat = 3.0
    boundary: NonNegativeFloat = 0.3
    sigma_px: PositiveFloat = 2.0
    dot_px: PositiveFloat = 3.5
    far_px: PositiveFloat = 15.0

    @model_validator(mode="after")
    def _names_differ_and_background_is_far(self) -> Self:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names: expected distinct maps, found {list(self.names)}")
        if self.far_px < self.dot_px:
            raise ValueError(f"far_px: expected at least dot_px={self.dot_px:g}, found {self.far_px:g}")
        return self


NO_MAPS = MapSettings(names=())


@dataclass(frozen=True, slots=True)
class DotField:
    """Distance of each tile pixel to the nearest dot (y, x), in pixels of the tile, and the class of that dot."""

    distance_YX: Array
    classes_YX: Array

    @classmethod
    def of(cls, points_N3: NDArray[np.float32], at_2YX: Tensor, corner_yx: Sequence[int], shape: Sequence[int]) -> Self:
        """Compute the field of a tile.

        Args:
            points_N3: Dots of the image: y, x in pixels, and class.
            at_2YX: Source of each tile pixel, in pixels from ``corner_yx``.
            corner_yx: Pixel of the mirrored image.
            shape: Height and width of the image; beyond it dots are mirrored like pixels.
        """
        at = at_2YX.numpy().astype(np.float64)
        step = 1.0
        if at.shape[2] > 1:
            step = float(np.hypot(*np.diff(at, axis=2)).mean())
        if not len(points_N3):
            return cls(np.full(at.shape[1:], np.inf), np.zeros(at.shape[1:], np.int32))
        source = np.stack([mirrored(at[axis] + corner_yx[axis], shape[axis]) for axis in (0, 1)], axis=-1)
        distance, nearest = cKDTree(points_N3[:, :2]).query(source)
        return cls(distance / step, points_N3[nearest, 2].astype(np.int32))


def map_targets(
    settings: MapSettings, labels_YX: Array, known_YX: Array, dots: DotField | None = None
) -> tuple[Tensor, Tensor]:
    """Return the targets of the maps and where they are known.

    Objects that touch the border of the tile or unknown pixels may be cut: their distance and centre are unknown, as is
    the boundary beside unknown pixels.

    Args:
        settings: The maps.
        labels_YX: Objects of a tile (y, x), 0 is background.
        known_YX: Whether the annotation states what a pixel is.
        dots: The dots of the tile; None: all objects are outlined.

    Returns:
        Maps (m, y, x) float32 in 0..1, and known pixels (m, y, x) bool.
    """
    dense_YX, count = label(labels_YX, return_num=True, connectivity=2)  # a mirrored object has its number twice
    depth_YX = ndimage.distance_transform_edt(part_touching(np.pad(dense_YX, 1)) > 0)[1:-1, 1:-1]
    beside_YX = known_YX & ndimage.binary_dilation(~known_YX, np.ones((3, 3)))
    ends = (dense_YX[0], dense_YX[-1], dense_YX[:, 0], dense_YX[:, -1], dense_YX[beside_YX])
    cut = np.concatenate(ends)
    whole_YX = known_YX & ~np.isin(dense_YX, cut[cut > 0])
    outlined_YX = whole_YX if dots is None else whole_YX & (dense_YX > 0)
    maps, known = [], []
    for name in settings.names:
        if name == "distance":
            highest = np.maximum(ndimage.maximum(depth_YX, dense_YX, np.arange(count + 1)), 1)
            maps.append(np.where(dense_YX > 0, depth_YX / highest[dense_YX], 0))
            known.append(outlined_YX)
        elif name == "centre":
            squared_YX = _squared_distance_to_centres(dense_YX, depth_YX, count)
            if dots is not None:
                squared_YX = np.minimum(squared_YX, dots.distance_YX**2)
            maps.append(np.exp(-squared_YX / (2 * settings.sigma_px**2)))
            known.append(whole_YX)
        else:
            maps.append(find_boundaries(dense_YX, mode="inner"))
            sure_YX = known_YX & ~beside_YX
            known.append(sure_YX if dots is None else sure_YX & (dense_YX > 0))
    stacked = np.stack(maps).astype(np.float32), np.stack(known)
    return torch.from_numpy(stacked[0]), torch.from_numpy(stacked[1])


def _squared_distance_to_centres(dense_YX: Array, depth_YX: Array, count: int) -> Array:
    """Squared distance of each pixel to the nearest centre (y, x); infinite without objects."""
    if not count:
        return np.full(dense_YX.shape, np.inf)
    weight_YX = np.maximum(depth_YX, 0.5) ** 3
    centres = np.array(ndimage.center_of_mass(weight_YX, dense_YX, np.arange(1, count + 1)))
    y, x = np.indices(dense_YX.shape)
    distance, _ = cKDTree(centres).query(np.stack((y, x), axis=-1))
    return np.asarray(distance) ** 2
