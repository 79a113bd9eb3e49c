"""Write slides with recognisable private content.

The content is names, dates, machines and labels. Private text is a word with CANARY in it or a date; the picture of a
label has one colour that no tissue has. Either in the output of a run is a leak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.support.make_dicom import write_dicom
from tests.support.make_photos import edit_json, write_jpeg, write_zarr
from tests.support.make_slides import CANARIES, Recipe, tile_span, write_tiff

WORD, DATE = "CANARY", "20010203"
LABEL = (1, 254, 3)
"""Colour of labels and of photographs of the whole glass."""

EXIF = {"ImageDescription": 0x010E, "Artist": 0x013B, "DateTime": 0x0132, "HostComputer": 0x013C, "UserComment": 0x9286}
TEXT_TAGS = {"DocumentName": 269, "PageName": 285, "DateTime": 306, "Artist": 315, "HostComputer": 316, "XMP": 700}
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
    'Creator="{0}-CREATOR"><Experimenter ID="Experimenter:0" FirstName="{0}-FIRST" LastName="{0}-LAST" '
    'UserName="{0}-USER"/><Image ID="Image:0" Name="{0}-IMAGE"><AcquisitionDate>2001-02-03T04:05:06</AcquisitionDate>'
    '<Description>{0}-TOLD</Description><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{1}" '
    'SizeY="{2}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel ID="Channel:0:0" '
    'SamplesPerPixel="3"/><TiffData IFD="0"/></Pixels></Image></OME>'
)


def write_private_slides(folder: Path, image_YXC: NDArray[np.uint8]) -> dict[str, Path]:
    """Write one slide for each kind of metadata; ``damaged`` is an SVS with a tile that cannot be decoded."""
    folder.mkdir(parents=True)
    height, width = image_YXC.shape[:2]
    xml = OME.format(WORD, width, height)
    slides = {
        "aperio": _write_aperio(folder / "aperio.svs", image_YXC),
        "damaged": _write_aperio(folder / "damaged.svs", image_YXC),
        "ome": write_tiff(folder / "ome.ome.tif", image_YXC, Recipe(description=xml)),
        "tags": _write_tags(folder / "tags.tif", image_YXC),
        "photo": _write_photo(folder / "photo.jpg", image_YXC),
        "dicom": _write_dicom(folder / "dicom", image_YXC),
        "ngff": _write_zarr(folder / "ngff.zarr", image_YXC),
    }
    offset, count = tile_span(slides["damaged"], 0)
    with slides["damaged"].open("r+b") as file:
        file.seek(offset + count // 2)
        file.write(b"\xff\xd9" * (count // 4))
    return slides


def _labels(shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
    return np.full((*shape_yx, 3), LABEL, np.uint8)


def _write_aperio(path: Path, image_YXC: NDArray[np.uint8]) -> Path:
    """Write an SVS with tiled levels, and with a label and a macro in strips."""
    about = f"|AppMag = 20|User = {CANARIES[0]}|Filename = {CANARIES[1]}|Date = {CANARIES[2]}|ScanScope ID = {WORD}-SS|"
    text = f"Aperio Image Library v11.2.1\r\n{image_YXC.shape[1]}x{image_YXC.shape[0]} JPEG/RGB Q=90{about}MPP = 0.5"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    jpeg: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 90, "outcolorspace": "rgb"}}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image_YXC, tile=(64, 64), description=text, **jpeg, **options)
        for name, shape_yx, kind in (("label", (120, 90), 1), ("macro", (120, 300), 9)):
            about = f"Aperio Image Library v11.2.1\r\n{name} {CANARIES[3]}"
            writer.write(_labels(shape_yx), rowsperstrip=8, description=about, subfiletype=kind, **options)
    return path


def _write_tags(path: Path, image_YXC: NDArray[np.uint8]) -> Path:
    """Write a plain TIFF with personal tags, one of them in undecodable bytes, then a photograph of the glass."""
    values = {name: f"{WORD}-{name} {DATE}".encode() for name in TEXT_TAGS} | {
        "Artist": f"{WORD}-\xe4".encode("latin-1")
    }
    extra = [(code, 7 if name == "XMP" else 2, 0, values[name], True) for name, code in TEXT_TAGS.items()]
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
        about = f"scanned by {CANARIES[0]} on {DATE}"
        software = f"{WORD}-SOFTWARE"
        writer.write(
            image_YXC, tile=(64, 64), description=about, software=software, extratags=extra, **scale, **options
        )
        writer.write(_labels((70, 211)), description=f"{WORD}-GLASS", **options)
    return path


def _write_photo(path: Path, image_YXC: NDArray[np.uint8]) -> Path:
    exif = Image.Exif()
    for name, code in EXIF.items():
        exif[code] = f"{WORD}-{name} {DATE}"
    return write_jpeg(path, image_YXC, exif=exif, comment=CANARIES[1].encode())


def _write_dicom(folder: Path, image_YXC: NDArray[np.uint8]) -> Path:
    """Write a series with patient, operator and dates, and an instance of its label."""
    write_dicom(folder, image_YXC)
    label = pydicom.dcmread(folder / "level0.dcm")
    label.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    label.SOPInstanceUID = label.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    label.TotalPixelMatrixRows = label.TotalPixelMatrixColumns = label.Rows = label.Columns = 64
    label.NumberOfFrames, label.LabelText, label.SpecimenLabelInImage = 1, CANARIES[3], "YES"
    label.PixelData = _labels((64, 64)).tobytes()
    label.save_as(folder / "label.dcm")
    return folder


def _write_zarr(path: Path, image_YXC: NDArray[np.uint8]) -> Path:
    write_zarr(path, np.moveaxis(image_YXC, -1, 0).copy())

    def name(attributes: dict[str, Any]) -> None:
        attributes["multiscales"][0] |= {"name": f"{WORD}-NAME", "metadata": {"operator": CANARIES[0]}}
        attributes["omero"] = {"name": CANARIES[1], "rdefs": {"model": WORD}}
        attributes["_creator"] = {"name": f"{WORD}-CREATOR", "date": DATE}

    edit_json(path / ".zattrs", name)
    return path
