"""Select the images of a TIFF file that are the levels of its slide, and its resolution.

Level 0 is the largest image of the slide itself. Another image is a level only when it has the same kind of pixels and
the same proportions. Labels, macro photographs and thumbnails are never opened, because they show names. A resolution
counts only in a unit of length: it is never derived from "20x", and a TIFF resolution without a unit is absent.
Layouts that would be read wrongly are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import SlideError
from pipeline.slide_reader import is_reduction
from pipeline.slides.tiff.ifd import NDPI_TAG
from pipeline.slides.tiff.ome_xml import OmeImage, is_ome, read_ome
from pipeline.slides.tiff.tags import DESCRIPTION, SOFTWARE, SUBFILE, UNIT, X_RESOLUTION, Y_RESOLUTION, ImageTags

_REDUCED, _MASK = 1, 4
_MICROMETRES_PER_UNIT = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}
_MAGNIFICATION, _FOCUS, _CAPTURE_MODE = 65421, 65424, 65441
_SVS_MPP = re.compile(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)")
_CONVERT = "Convert it to OME-TIFF, for example with bfconvert, or to a pyramidal TIFF with vips."

MppYX = tuple[float, float]
Stack = tuple[ImageTags, ...]


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of a slide, largest first. A level is one image, or one image for each channel."""

    format: str
    vendor: str
    levels: tuple[Stack, ...]
    mpp_yx: MppYX | None
    channel_names: tuple[str, ...] = ()


def find_pyramid(images: Sequence[ImageTags]) -> Pyramid:
    """Detect the format and select the levels.

    Args:
        images: Images of the main chain, in file order.

    Raises:
        SlideError: If the layout is not supported or no level is found.
    """
    first = images[0]
    _refuse_layouts(first, len(images))
    if first.entry(NDPI_TAG) is not None:
        return _hamamatsu(images)
    description = first.text(DESCRIPTION)
    if description.startswith("Aperio"):
        return _aperio(images)
    if is_ome(description):
        return _ome(images)
    return Pyramid("TIFF", "", _levels(images), _stated_mpp(_largest(images)))


def openslide_layout(first: ImageTags) -> str | None:
    """Name of a layout that OpenSlide reads; None for all others.

    Its tiles overlap, or its levels are padded or consist of several areas.
    """
    description, software = first.text(DESCRIPTION), first.text(SOFTWARE)
    layouts = {
        "Ventana BIF": first.entry(700) is not None and software.startswith(("ScanOutputManager", "Ventana")),
        "Leica SCN": description.rstrip().endswith("</scn>"),
        "Philips TIFF": software.startswith("Philips DP"),
        "Trestle TIFF": software.startswith("MedScan"),
    }
    return next((name for name, matches in layouts.items() if matches), None)


def _refuse_layouts(first: ImageTags, n_images: int) -> None:
    description, software = first.text(DESCRIPTION), first.text(SOFTWARE)
    stack = re.search(r"^images=(\d+)", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    layouts = {
        "PerkinElmer QPTIFF (one image a channel)": software.startswith("PerkinElmer-QPI"),
        "Zeiss LSM": first.entry(34412),
        "MetaMorph STK": first.entry(33628),
        "an ImageJ stack in one image": stack and int(stack[1]) > n_images,
    }
    for name, matches in layouts.items():
        if matches:
            raise SlideError(f"{first.file.name}: {name} is not supported. {_CONVERT}")


def _aperio(images: Sequence[ImageTags]) -> Pyramid:
    """Tiled images are levels; the thumbnail, label and macro are stored as strips."""
    tiled = [image for image in images if image.tiled and not image.number(SUBFILE, 0)]
    if not tiled:
        raise SlideError(f"{images[0].file.name}: an Aperio slide without tiles: no level found. {_CONVERT}")
    match = _SVS_MPP.search(_largest(tiled).text(DESCRIPTION))
    stated = _number(match[1]) if match else None
    mpp_yx = (stated, stated) if stated is not None else _stated_mpp(_largest(tiled))
    return Pyramid("Aperio SVS", "Aperio", _levels(tiled), mpp_yx)


def _hamamatsu(images: Sequence[ImageTags]) -> Pyramid:
    """Images with a magnification at the middle focus are levels; -1 is the macro photograph, -2 a map."""
    name = images[0].file.name
    if images[0].number(_CAPTURE_MODE, 0) >= 6:
        raise SlideError(f"{name}: a 16-bit NDPI is not supported; expected 8-bit JPEG tiles. {_CONVERT}")
    scans = [image for image in images if (image.ratio(_MAGNIFICATION) or 0) > 0]
    middle = [image for image in scans if not image.number(_FOCUS, 0)]
    if not middle:
        raise SlideError(f"{name}: {len(scans)} NDPI images, none at the middle focus: no level found. {_CONVERT}")
    return Pyramid("Hamamatsu NDPI", "Hamamatsu", _levels(middle), _stated_mpp(_largest(middle)))


def _ome(images: Sequence[ImageTags]) -> Pyramid:
    """Levels of the largest OME image: sub-images of its planes, or later reduced images."""
    first = images[0]
    ome = read_ome(first.text(DESCRIPTION), first.file.name, first.kind[0])
    if ome.directories and max(ome.directories) >= len(images):
        raise SlideError(
            f"{first.file.name}: its OME-XML names directory {max(ome.directories)}, but the file has {len(images)}. "
            "The file is cut short, or its pixels lie in other files."
        )
    planes = [images[i] for i in ome.directories]
    for plane in planes:
        _compare(plane, len(planes), ome)
    reduced = [image for image in images if image.number(SUBFILE, 0) & _REDUCED] if len(planes) == 1 else []
    stacks = list(zip(*(plane.children() for plane in planes), strict=False)) or [(image,) for image in reduced]
    levels = tuple(planes), *_fitting(planes[0], stacks)
    return Pyramid("OME-TIFF", "", levels, ome.mpp_yx or _stated_mpp(planes[0]), ome.channel_names)


def _compare(plane: ImageTags, n_planes: int, ome: OmeImage) -> None:
    """Refuse a plane that differs from its OME-XML."""
    samples = plane.kind[0]
    if plane.shape_yx != ome.shape_yx or samples * n_planes != ome.size_c:
        expected, found = (f"{shape[1]} x {shape[0]} px" for shape in (ome.shape_yx, plane.shape_yx))
        raise SlideError(
            f"{plane.file.name}: its OME-XML promises {ome.size_c} channels of {expected}, the TIFF holds {n_planes} "
            f"planes of {samples} samples, {found}. Export the image again."
        )


def _levels(images: Sequence[ImageTags]) -> tuple[Stack, ...]:
    """The largest image and its reductions, from the chain or its sub-images."""
    base = _largest(images)
    others = [image for image in images if image is not base and not image.number(SUBFILE, 0) & _MASK]
    twins = [image for image in others if image.shape_yx == base.shape_yx]
    if twins:
        size = f"{base.shape_yx[1]} x {base.shape_yx[0]} px"
        raise SlideError(
            f"{base.file.name}: {1 + len(twins)} images of {size}; expected one. Stacks and channels in images of "
            f"their own are read from OME-TIFF only. {_CONVERT}"
        )
    return (base,), *_fitting(base, ((image,) for image in (*base.children(), *others)))


def _largest(images: Sequence[ImageTags]) -> ImageTags:
    return max(images, key=lambda image: (image.area_px, not image.number(SUBFILE, 0) & _MASK))


def _fitting(base: ImageTags, stacks: Iterable[Stack]) -> list[Stack]:
    """Stacks whose images are reductions of ``base``, largest first; the first of two with one size."""
    fitting: dict[tuple[int, int], Stack] = {}
    for stack in stacks:
        shape_yx = stack[0].shape_yx
        alike = all(image.shape_yx == shape_yx and image.kind == base.kind for image in stack)
        if alike and min(shape_yx) > 0 and is_reduction(base.shape_yx, shape_yx):
            fitting.setdefault(shape_yx, stack)
    return sorted(fitting.values(), key=lambda stack: -stack[0].area_px)


def _stated_mpp(image: ImageTags) -> MppYX | None:
    """(y, x) micrometres per pixel from the resolution tags; None without a unit of length, or for 1/1."""
    unit = _MICROMETRES_PER_UNIT.get(image.number(UNIT, 1))
    per_unit = image.ratio(Y_RESOLUTION), image.ratio(X_RESOLUTION)
    if unit is None or per_unit[0] is None or per_unit[1] is None or per_unit == (1.0, 1.0):
        return None
    return (unit / per_unit[0], unit / per_unit[1]) if min(per_unit[0], per_unit[1]) > 0 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
