"""OME-XML of an OME-TIFF: the directories and the scale of its largest image.

Pure. Only one plane per channel in the same file is supported. Stacks, time series and images with pixels in other
files are refused by name: their first plane alone would look like a complete image.

OME model 2016-06: openmicroscopy.org/Schemas/OME/2016-06.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from pipeline.errors import SlideError

MAX_XML_CHARS = 1 << 26
_MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6, "Å": 1e-4,
    "in": 25400.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OmeImage:
    """The largest image of the file: size, directories in channel order, micrometres per pixel, channel names."""

    shape_yx: tuple[int, int]
    size_c: int
    directories: tuple[int, ...]
    mpp_yx: tuple[float, float] | None
    channel_names: tuple[str, ...]


def is_ome(description: str) -> bool:
    """Whether a description is the OME-XML of an OME-TIFF."""
    return description.rstrip().endswith("OME>") and "<" in description[:5]


def read_ome(xml: str, slide: str, samples: int) -> OmeImage:
    """Parse OME-XML.

    Args:
        xml: The OME-XML.
        slide: Path of the slide, for messages.
        samples: Samples a pixel of its directories.

    Raises:
        SlideError: If the XML declares entities or is malformed, or the image is a stack or has pixels in other files.
    """
    if len(xml) > MAX_XML_CHARS or "<!ENTITY" in xml or "<!DOCTYPE" in xml:
        raise SlideError(
            f"{slide}: its OME-XML declares entities or is longer than {MAX_XML_CHARS} characters; expected plain "
            "OME-XML. Do not trust this file; export the image again from its source."
        )
    try:
        root = ElementTree.fromstring(xml.encode("utf-8"))  # noqa: S314  # no entities: refused above
    except ElementTree.ParseError as error:
        raise SlideError(f"{slide}: its OME-XML cannot be parsed ({error}). Export the image again.") from error
    pixels = max(_elements(root, "Pixels"), key=lambda p: _int(p, "SizeX") * _int(p, "SizeY"), default=None)
    if pixels is None:
        raise SlideError(f"{slide}: its OME-XML describes no pixels in this file. Open the file that holds them.")
    _refuse_stack(pixels, slide)
    _refuse_foreign(root, pixels, slide)
    size_c = max(1, _int(pixels, "SizeC"))
    return OmeImage(
        shape_yx=(_int(pixels, "SizeY"), _int(pixels, "SizeX")),
        size_c=size_c,
        directories=_directories(pixels, slide, max(1, size_c // max(1, samples))),
        mpp_yx=_mpp_yx(pixels),
        channel_names=tuple(channel.get("Name", "") for channel in _elements(pixels, "Channel")),
    )


def _elements(parent: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    """All descendants with a tag name, in any version of the namespace."""
    return (element for element in parent.iter() if element.tag.rpartition("}")[2] == tag)


def _int(element: ElementTree.Element, name: str, default: int = 0) -> int:
    text = element.get(name, "")
    return int(text) if text.isdecimal() else default


def _refuse_stack(pixels: ElementTree.Element, slide: str) -> None:
    for name, what in (("SizeZ", "focal planes"), ("SizeT", "time points")):
        if (found := _int(pixels, name, 1)) > 1:
            raise SlideError(f"{slide}: {found} {what}; expected 1. Export the one to segment, or a projection.")


def _refuse_foreign(root: ElementTree.Element, pixels: ElementTree.Element, slide: str) -> None:
    """Refuse a TiffData with the UUID of another file. A renamed file keeps its UUID."""
    own = root.get("UUID", "")
    uuids = {(element.text or "").strip() for element in _elements(pixels, "UUID")}
    if uuids - {own, ""}:
        raise SlideError(
            f"{slide}: its OME-XML says that pixels lie in other files. Join them into one OME-TIFF, for example with "
            "bfconvert."
        )


def _directories(pixels: ElementTree.Element, slide: str, planes: int) -> tuple[int, ...]:
    """Directory of each plane, in channel order; a TiffData without IFD means the first directories."""
    by_channel: dict[int, int] = {}
    for data in _elements(pixels, "TiffData"):
        first, directory = _int(data, "FirstC"), _int(data, "IFD")
        count = _int(data, "PlaneCount", 1 if data.get("IFD") is not None else planes)
        channel = first // max(1, _int(pixels, "SizeC", 1) // planes)
        by_channel |= {channel + k: directory + k for k in range(min(count, planes))}
    if not by_channel:
        return tuple(range(planes))
    if sorted(by_channel) != list(range(planes)):
        raise SlideError(
            f"{slide}: {planes} channel planes expected from its OME-XML, {len(by_channel)} listed. Export again."
        )
    return tuple(by_channel[channel] for channel in range(planes))


def _mpp_yx(pixels: ElementTree.Element) -> tuple[float, float] | None:
    """(y, x) micrometres per pixel; None when a size is missing, malformed, or in no unit of length."""
    sizes = [_length_um(pixels, f"PhysicalSize{axis}") for axis in "YX"]
    return (sizes[0], sizes[1]) if sizes[0] is not None and sizes[1] is not None else None


def _length_um(pixels: ElementTree.Element, name: str) -> float | None:
    unit = _MICROMETRES.get(pixels.get(f"{name}Unit", "µm"))
    try:
        return float(pixels.get(name, "")) * unit if unit is not None else None
    except ValueError:
        return None
