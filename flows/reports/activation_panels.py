"""Feature maps of a network as pictures: one strip per level and one picture per attention gate.

A level is represented by the maps with the largest standard deviation, since most others look alike. Each map is
stretched by itself, so maps show where they differ, not by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.reports.case_panels import middle, png, rgb
from flows.reports.figures import viridis
from flows.reports.html_page import Picture
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage
from unet_core.networks.activations import Activations, FeatureMap, record_activations
from unet_core.networks.unet import SegmentationNetwork

SHOWN_PX = 384
"""Side of the part of the image that the network processes."""
MAPS, MAP_PX, GAP_PX = 8, 192, 4
"""Number of maps per level, and their maximum side; larger maps are subsampled."""


@dataclass(frozen=True, slots=True)
class FeatureMapStrip:
    """A picture of maps with name and caption. ``width``: fraction of the page width."""

    name: str
    caption: str
    picture: Picture
    width: float = 0.25


@dataclass(frozen=True, slots=True)
class MapsShown:
    """The feature maps of a network for one image."""

    network: str
    case: str
    image: Picture
    levels: tuple[FeatureMapStrip, ...]
    gates: tuple[FeatureMapStrip, ...]
    most: int = MAPS

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures."""
        return (self.image, *(strip.picture for strip in (*self.levels, *self.gates)))


@dataclass(frozen=True, slots=True)
class MapInput:
    """The network name and image of a set of feature maps."""

    network: str
    case: AnnotatedImage


def show_maps(network: SegmentationNetwork, map_input: MapInput, folder: str) -> MapsShown:
    """Run a network on the centre of an image and draw its feature maps.

    Args:
        network: The network.
        map_input: Its name and the image.
        folder: Folder of the picture names.
    """
    (case,) = recoloured([map_input.case], network.spec.normalisation)
    box = middle(case.labels_YX.shape, SHOWN_PX)
    image_CYX = repeat_channels(np.asarray(case.image_CYX[(slice(None), *box.slices)]), network.spec.in_channels)
    watched: Activations = record_activations(network, image_CYX)
    image = Picture(f"{folder}/image", f"the part of {case.name} given to the network", png(rgb(image_CYX)))
    levels = tuple(_level_strip(level, folder) for level in watched.levels)
    gates = tuple(_gate_strip(gate, folder) for gate in watched.gates)
    return MapsShown(map_input.network, case.name, image, levels, gates)


def repeat_channels(image_CYX: NDArray[Any], channels: int) -> NDArray[Any]:
    """Repeat a single channel to the number of channels that the network expects."""
    return np.repeat(image_CYX, channels, axis=0) if len(image_CYX) == 1 < channels else image_CYX


def _level_strip(feature_map: FeatureMap, folder: str) -> FeatureMapStrip:
    spread = feature_map.values_CYX.std(axis=(1, 2))
    constant = int((spread == 0).sum())
    chosen = np.argsort(-spread, kind="stable")[:MAPS]
    strip = side_by_side([stretch(feature_map.values_CYX[i]) for i in chosen])
    channels, height, width = feature_map.values_CYX.shape
    caption = f"{channels} maps of {width} x {height} px" + (f", {constant} constant" if constant else "")
    return FeatureMapStrip(
        feature_map.name,
        caption,
        Picture(_file(folder, feature_map.name), f"feature maps of {feature_map.name}", png(strip)),
        len(chosen) / MAPS,
    )


def _gate_strip(feature_map: FeatureMap, folder: str) -> FeatureMapStrip:
    weights_YX = subsample(feature_map.values_CYX[0])
    caption = f"{weights_YX.min():.2f} to {weights_YX.max():.2f}, mean {weights_YX.mean():.2f}"
    picture = Picture(
        _file(folder, feature_map.name), f"attention weights of {feature_map.name}", png(viridis(weights_YX))
    )
    return FeatureMapStrip(feature_map.name, caption, picture)


def _file(folder: str, name: str) -> str:
    return f"{folder}/{name.replace(' ', '-')}"


def stretch(values_YX: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale a map to grey levels from its 1st to its 99th percentile; a constant map is black."""
    shown_YX = subsample(values_YX).astype(np.float64)
    low, high = np.percentile(shown_YX, (1, 99))
    if high <= low:
        low, high = shown_YX.min(), max(shown_YX.max(), shown_YX.min() + 1e-12)
    return np.asarray(((shown_YX - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)


def subsample(values_YX: NDArray[Any]) -> NDArray[Any]:
    """Return every n-th value so that no side exceeds ``MAP_PX``."""
    step = -(-max(values_YX.shape) // MAP_PX)
    return values_YX[::step, ::step]


def side_by_side(maps: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Place maps of equal size in a row, separated by white."""
    height, width = maps[0].shape
    gap = max(1, GAP_PX * width // MAP_PX)
    row = np.full((height, len(maps) * (width + gap) - gap), 255, np.uint8)
    for number, feature_map in enumerate(maps):
        row[:, number * (width + gap) :][:, :width] = feature_map
    return row
