"""Format and files of a slide; unreadable formats are refused with a conversion command."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipeline.errors import SlideError
from pipeline.slides.format_detection import detect_format
from pipeline.slides.opening import open_slide
from tests.support.make_dicom import write_dicom
from tests.support.make_slides import noise_image, write_tiff


@pytest.mark.parametrize(
    ("suffix", "format_name", "command"),
    [
        (".czi", "Zeiss CZI", "bioformats2raw"),
        (".VSI", "Olympus VSI", "bioformats2raw"),
        (".lif", "Leica LIF", "bioformats2raw"),
        (".nd2", "Nikon ND2", "bioformats2raw"),
        (".isyntax", "Philips iSyntax", "isyntax2raw write_tiles"),
        (".i2syntax", "Philips iSyntax", "isyntax2raw write_tiles"),
    ],
)
def test_unreadable_format_is_refused_with_conversion_command(
    tmp_path: Path, suffix: str, format_name: str, command: str
) -> None:
    path = tmp_path / f"my slide;rm{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(SlideError, match=f"{format_name} is not supported") as caught:
        open_slide(path)
    words = str(caught.value).rpartition("output: ")[2]
    assert shlex.split(words) == [*command.split(), path.name, f"{path.stem}.zarr"], "it can be pasted into a shell"


def test_every_file_of_a_slide_is_listed(tmp_path: Path) -> None:
    mrxs = tmp_path / "a.mrxs"
    for path in (mrxs, tmp_path / "a" / "Data0.dat", tmp_path / "a" / "Slidedat.ini", tmp_path / "b" / "Data0.dat"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert detect_format(mrxs).files == (mrxs, tmp_path / "a" / "Data0.dat", tmp_path / "a" / "Slidedat.ini")
    folder = write_dicom(tmp_path / "case", noise_image(70, 70, 3))
    write_dicom(tmp_path / "other", noise_image(70, 70, 3), levels=1)
    (tmp_path / "other" / "level0.dcm").rename(folder / "zz.dcm")
    assert detect_format(folder).files == (folder / "level0.dcm", folder / "level1.dcm")
    tiff = write_tiff(tmp_path / "a.tif", noise_image(70, 70))
    assert (detect_format(tiff).kind, detect_format(tiff).files) == ("tiff", (tiff,))


def test_content_decides_when_name_does_not(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.png", noise_image(70, 70))
    assert detect_format(tmp_path / "a.png").kind == "tiff"
    write_dicom(tmp_path, noise_image(70, 70, 3), levels=1)
    (tmp_path / "level0.dcm").rename(tmp_path / "noname")
    assert open_slide(tmp_path / "noname").format == "DICOM"
