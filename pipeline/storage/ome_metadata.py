"""OME-Zarr 0.5 metadata of a slide's arrays, validated by the models of ome-zarr-models.

Coordinates are those of pixel centres, so each level is translated by half of its own pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ome_zarr_models.common.omero import Channel, Omero, Window
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.base import BaseOMEAttrs
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.image_label_types import Label, Source
from ome_zarr_models.v05.labels import LabelsAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale

from pipeline.rendering.contrast import Rgb, channel_colours, windows
from pipeline.storage.slide_store import StoredArray


def image_attributes(name: str, mpp_um: float, levels: int, omero: Omero) -> dict[str, Any]:
    """The ``ome`` attributes of the group of a (c, y, x) image: its levels, and how viewers display its channels."""
    scales = _multiscale(name, mpp_um, levels, channels=True)
    return _plain(ImageAttrs.model_validate({"multiscales": [scales], "omero": omero, "version": "0.5"}))


def map_attributes(name: str, mpp_um: float, levels: int) -> dict[str, Any]:
    """The ``ome`` attributes of the group of a (y, x) map: its levels."""
    scales = _multiscale(name, mpp_um, levels, channels=False)
    return _plain(ImageAttrs.model_validate({"multiscales": [scales], "version": "0.5"}))


def objects_attributes(mpp_um: float, levels: int) -> dict[str, Any]:
    """The ``ome`` attributes of the group of the objects' (y, x) labels; the image is two groups above."""
    scales = _multiscale("objects", mpp_um, levels, channels=False)
    label = Label(version="0.5", source=Source(image="../../"))
    found = {"multiscales": [scales], "image-label": label, "version": "0.5"}
    return _plain(ImageLabelAttrs.model_validate(found))


def labels_attributes() -> dict[str, Any]:
    """The ``ome`` attributes of the group that lists the labels."""
    return _plain(LabelsAttrs(labels=["objects"], version="0.5"))


def _multiscale(name: str, mpp_um: float, levels: int, *, channels: bool) -> Multiscale:
    """Axes and levels: scale mpp * 2^l, and the translation of the first pixel's centre at each level.

    Source: OME-Zarr 0.5, "multiscales" metadata; coordinates are those of pixel centres.
    """
    space = [Axis(name=axis, type="space", unit="micrometer") for axis in "yx"]
    channel = [Axis(name="c", type="channel")] if channels else []
    datasets = tuple(
        Dataset.build(
            path=str(level),
            scale=[1.0] * channels + [mpp_um * 2**level] * 2,
            translation=[0.0] * channels + [mpp_um * (2**level - 1) / 2] * 2,
        )
        for level in range(levels)
    )
    return Multiscale(axes=[*channel, *space], datasets=datasets, name=name)


def image_omero(coarsest: StoredArray, channel_names: Sequence[str]) -> Omero:
    """How viewers display the image: colours by channel name, contrast by the pixels of the coarsest level."""
    pixels = coarsest[:]
    limit = int(np.iinfo(coarsest.dtype).max)
    colours = channel_colours(channel_names, coarsest.dtype)
    return omero(channel_names, colours, windows(pixels, channel_names), limit)


def omero(names: Sequence[str], colours: Sequence[Rgb], displayed: Sequence[tuple[float, float]], limit: int) -> Omero:
    """How viewers display channels: label, colour, contrast window.

    Args:
        names: Name of each channel.
        colours: Colour of each channel.
        displayed: (start, end) of the contrast window of each channel.
        limit: Largest value of a pixel.
    """
    channels = [
        Channel.model_validate(
            {
                "label": name,
                "active": True,
                "color": "{:02X}{:02X}{:02X}".format(*colour),
                "window": Window(min=0, max=limit, start=start, end=end),
            }
        )
        for name, colour, (start, end) in zip(names, colours, displayed, strict=True)
    ]
    return Omero(channels=channels)


def _plain(attributes: BaseOMEAttrs) -> dict[str, Any]:
    return attributes.model_dump(mode="json", by_alias=True, exclude_none=True)
