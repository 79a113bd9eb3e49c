"""Annotated test images: discs on noise, written as every kind of mask by Pillow and tifffile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import label

SHAPE = (96, 120)
COLOURS = {"tumour": (255, 0, 0), "stroma": (0, 128, 255)}


@dataclass(frozen=True)
class Drawing:
    """An image and its class map: ``classes`` 0 to 2, objects numbered as by ``skimage.measure.label``."""

    image_YXC: NDArray[np.uint8]
    classes: NDArray[np.uint8]

    @property
    def objects(self) -> NDArray[np.int32]:
        """8-connected components of each class."""
        return label(self.classes, connectivity=2, background=0).astype(np.int32)

    @property
    def one_class(self) -> NDArray[np.int32]:
        """8-connected components of all classes together."""
        return label(self.classes > 0, connectivity=2).astype(np.int32)


def draw(seed: int, shape_yx: tuple[int, int] = SHAPE, blobs: int = 40) -> Drawing:
    """Draw discs of two classes, some touching, on noise."""
    rng = np.random.default_rng(seed)
    classes = np.zeros(shape_yx, np.uint8)
    for number in range(blobs):
        y0, x0 = (max(0, int(rng.integers(0, side)) - 6) for side in shape_yx)
        around = classes[y0 : y0 + 13, x0 : x0 + 13]
        y, x = np.indices(around.shape) - 6
        around[y**2 + x**2 < rng.integers(4, 40)] = 1 + number % 2
    image = rng.integers(150, 255, (*shape_yx, 3)).astype(np.uint8)
    image[classes > 0] //= 2
    return Drawing(image, classes)


def folders(root: Path) -> tuple[Path, Path]:
    """Create and return ``images`` and ``masks``."""
    images, masks = root / "images", root / "masks"
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    return images, masks


def save_mask(folder: Path, name: str, kind: str, drawing: Drawing) -> Path:
    """Write a drawing as a mask of the given kind; return the file."""
    classes = drawing.classes
    if kind == "palette":
        picture = Image.fromarray(classes)
        picture.putpalette([value for colour in ((0, 0, 0), *COLOURS.values()) for value in colour])
        picture.save(folder / f"{name}.png")
    elif kind in ("rgb png", "rgb tif"):
        pixels = np.array([(0, 0, 0), *COLOURS.values()], np.uint8)[classes]
        path = folder / f"{name}.{kind[-3:]}"
        Image.fromarray(pixels).save(path) if kind == "rgb png" else tifffile.imwrite(path, pixels, photometric="rgb")
    elif kind in ("0/1", "0/255", "bool"):
        mask = classes > 0
        stored = mask if kind == "bool" else (mask * (1 if kind == "0/1" else 255)).astype(np.uint8)
        Image.fromarray(stored).save(folder / f"{name}.png")
    elif kind == "classes":
        tifffile.imwrite(folder / f"{name}.tif", classes, compression="zlib", tile=(32, 32))
    elif kind == "labels png":
        Image.fromarray(drawing.one_class.astype(np.uint16)).save(folder / f"{name}.png")
    elif kind == "labels tif":
        tifffile.imwrite(folder / f"{name}.tif", drawing.one_class.astype(np.int64), compression="zlib", tile=(16, 32))
    return next(path for path in folder.iterdir() if path.stem == name)


def save_image(folder: Path, name: str, drawing: Drawing, kind: str = "png") -> Path:
    """Write the image as PNG, or as a tiled TIFF with a pyramid."""
    path = folder / f"{name}.{kind}"
    if kind == "png":
        Image.fromarray(drawing.image_YXC).save(path)
        return path
    with tifffile.TiffWriter(path) as writer:
        for level in range(2):
            pixels = drawing.image_YXC[:: 2**level, :: 2**level]
            options = {"subfiletype": level, "resolution": (20000 / 2**level,) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(pixels, tile=(32, 32), compression="zlib", photometric="rgb", **options)
    return path


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[list[float]]]:
    """Rings of a rectangle, as in GeoJSON."""
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]


def save_geojson(path: Path, *areas: tuple[Any, str]) -> Path:
    """Write rings and class of each annotation as exported by QuPath."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"objectType": "annotation", **({"classification": {"name": kind}} if kind else {})},
        }
        for rings, kind in areas
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def save_table(path: Path, header: str, *lines: str) -> Path:
    """Write a CSV file."""
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def read_all(array: Any) -> NDArray[Any]:
    """Read a whole array-like."""
    return np.asarray(array[tuple(slice(None) for _ in array.shape)])


def dataset(root: Path, kind: str, seeds: Sequence[int] = (1, 2, 3)) -> tuple[Path, Path, dict[str, Drawing]]:
    """Write images and masks of one kind; return the folders and the drawings by name."""
    images, masks = folders(root)
    drawings = {f"case {seed}": draw(seed) for seed in seeds}
    for name, drawing in drawings.items():
        save_image(images, name, drawing)
        save_mask(masks, name, kind, drawing)
    return images, masks, drawings
