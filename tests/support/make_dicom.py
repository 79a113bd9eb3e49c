"""Write a whole-slide DICOM series with pydicom.

Instances are VL Whole Slide Microscopy, TILED_FULL, one file per level. All personal attributes of the header hold a
canary, so that a reader that passes any of them on is detected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from tests.support.make_slides import CANARIES

MICROSCOPY = "1.2.840.10008.5.1.4.1.1.77.1.6"
TILE_PX = 64
Coding = Literal["plain", "jpeg"]


def write_dicom(
    folder: Path, image: NDArray[np.uint8], mpp: float | None = 0.5, coding: Coding = "plain", levels: int = 2
) -> Path:
    """Write a series of ``levels`` instances of ``image`` (y, x, 3), each every second pixel of the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    for level in range(levels):
        smaller = image[:: 2**level, :: 2**level]
        _write_instance(
            folder / f"level{level}.dcm", smaller, None if mpp is None else mpp * 2**level, (series, coding)
        )
    return folder


def _write_instance(
    path: Path, image: NDArray[np.uint8], mpp: float | None, how: tuple[pydicom.uid.UID, Coding]
) -> None:
    series, coding = how
    frames = _frames(image)
    dataset = _described(image.shape[0], image.shape[1], len(frames))
    dataset.SeriesInstanceUID = series
    if mpp is not None:
        measures = Dataset()
        measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
        shared = Dataset()
        shared.PixelMeasuresSequence = [measures]
        dataset.SharedFunctionalGroupsSequence = [shared]
    if coding == "jpeg":
        streams = [imagecodecs.jpeg8_encode(frame, level=90) for frame in frames]
        dataset.PhotometricInterpretation = "YBR_FULL_422"
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
        dataset.PixelData = encapsulate(streams)
        dataset["PixelData"].VR = "OB"
    else:
        dataset.PixelData = b"".join(frame.tobytes() for frame in frames)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MICROSCOPY, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = JPEGBaseline8Bit if coding == "jpeg" else ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.save_as(path, enforce_file_format=True)


def _described(height: int, width: int, frames: int) -> Dataset:
    """Return a header without pixels."""
    optics = Dataset()
    optics.OpticalPathIdentifier = "1"
    described: dict[str, Any] = {
        "SOPClassUID": MICROSCOPY, "SOPInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(), "Modality": "SM", "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "PatientName": CANARIES[0], "PatientID": CANARIES[1], "StudyDate": "20010203", "OperatorsName": CANARIES[2],
        "ContainerIdentifier": CANARIES[3], "Rows": TILE_PX, "Columns": TILE_PX, "NumberOfFrames": frames,
        "TotalPixelMatrixRows": height, "TotalPixelMatrixColumns": width, "TotalPixelMatrixFocalPlanes": 1,
        "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8,
        "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "DimensionOrganizationType": "TILED_FULL",
        "OpticalPathSequence": [optics], "NumberOfOpticalPaths": 1, "VolumetricProperties": "VOLUME",
    }  # fmt: skip
    dataset = Dataset()
    for name, value in described.items():
        setattr(dataset, name, value)
    return dataset


def _frames(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return tiles in row order, the last ones padded with white."""
    height, width = (-(-side // TILE_PX) * TILE_PX for side in image.shape[:2])
    whole = np.full((height, width, 3), 255, np.uint8)
    whole[: image.shape[0], : image.shape[1]] = image
    starts = [(y, x) for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)]
    return [np.ascontiguousarray(whole[y : y + TILE_PX, x : x + TILE_PX]) for y, x in starts]
