"""Maps inside a network as strips of small pictures: one strip a level, one picture a gate of attention.

The one decision made here: a level is shown by the maps that vary most, for most others look alike, and each map is
stretched by itself: what is compared is where maps differ, not by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.reports.case_panels import middle, png, rgb
from flows.reports.figures import in_colours
from flows.reports.html_page import Picture
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage
from unet_core.networks.activations import Map, Watched, watch
from unet_core.networks.unet import SegmentationNetwork

SHOWN_PX = 384
"""Side of the part of an image that is looked at."""
MAPS, MAP_PX, GAP_PX = 8, 192, 4
"""Maps of a level that are shown, and their largest side: larger ones are thinned out."""


@dataclass(frozen=True, slots=True)
class FeatureMapStrip:
    """A picture of some maps, what it is called and what is said of it. ``width``: the part of the room it takes."""

    name: str
    said: str
    picture: Picture
    width: float = 0.25


@dataclass(frozen=True, slots=True)
class MapsShown:
    """The inside of a network while it looks at an image."""

    network: str
    case: str
    image: Picture
    levels: tuple[FeatureMapStrip, ...]
    gates: tuple[FeatureMapStrip, ...]
    most: int = MAPS

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All of them."""
        return (self.image, *(strip.picture for strip in (*self.levels, *self.gates)))


@dataclass(frozen=True, slots=True)
class Looked:
    """What is looked at: an image, and the name of the network that looks."""

    network: str
    case: AnnotatedImage


def show_maps(network: SegmentationNetwork, looked: Looked, folder: str) -> MapsShown:
    """Run a network over the middle of an image; pictures are named below ``folder``."""
    (case,) = recoloured([looked.case], network.spec.normalisation)
    box = middle(case.labels_YX.shape, SHOWN_PX)
    image_CYX = replicated(np.asarray(case.image_CYX[(slice(None), *box.slices)]), network.spec.in_channels)
    watched: Watched = watch(network, image_CYX)
    shown = Picture(f"{folder}/image", f"the part of {case.name} that was looked at", png(rgb(image_CYX)))
    levels = tuple(_level(one, folder) for one in watched.levels)
    return MapsShown(looked.network, case.name, shown, levels, tuple(_gate(one, folder) for one in watched.gates))


def replicated(image_CYX: NDArray[Any], channels: int) -> NDArray[Any]:
    """An image with as many channels as a network takes: a single one is repeated."""
    return np.repeat(image_CYX, channels, axis=0) if len(image_CYX) == 1 < channels else image_CYX


def _level(one: Map, folder: str) -> FeatureMapStrip:
    spread = one.values_CYX.std(axis=(1, 2))
    silent = int((spread == 0).sum())
    chosen = np.argsort(-spread, kind="stable")[:MAPS]
    strip = in_a_row([stretched(one.values_CYX[i]) for i in chosen])
    channels, height, width = one.values_CYX.shape
    said = f"{channels} maps of {width} x {height} px" + (f", {silent} silent" if silent else "")
    return FeatureMapStrip(
        one.name, said, Picture(_file(folder, one.name), f"maps of {one.name}", png(strip)), len(chosen) / MAPS
    )


def _gate(one: Map, folder: str) -> FeatureMapStrip:
    weights_YX = thinned(one.values_CYX[0])
    said = f"{weights_YX.min():.2f} to {weights_YX.max():.2f}, mean {weights_YX.mean():.2f}"
    picture = Picture(_file(folder, one.name), f"attention of {one.name}", png(in_colours(weights_YX)))
    return FeatureMapStrip(one.name, said, picture)


def _file(folder: str, name: str) -> str:
    return f"{folder}/{name.replace(' ', '-')}"


def stretched(values_YX: NDArray[Any]) -> NDArray[np.uint8]:
    """A map as grey levels, from its 1st percentile to its 99th; one value everywhere is black."""
    shown_YX = thinned(values_YX).astype(np.float64)
    low, high = np.percentile(shown_YX, (1, 99))
    if high <= low:
        low, high = shown_YX.min(), max(shown_YX.max(), shown_YX.min() + 1e-12)
    return np.asarray(((shown_YX - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)


def thinned(values_YX: NDArray[Any]) -> NDArray[Any]:
    """Every n-th value of a map that is too large to be shown whole."""
    step = -(-max(values_YX.shape) // MAP_PX)
    return values_YX[::step, ::step]


def in_a_row(maps: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Maps of one size beside one another, white between them."""
    height, width = maps[0].shape
    gap = max(1, GAP_PX * width // MAP_PX)
    row = np.full((height, len(maps) * (width + gap) - gap), 255, np.uint8)
    for number, one in enumerate(maps):
        row[:, number * (width + gap) :][:, :width] = one
    return row
