"""Selection of channels by number or name; a missing one is refused with the existing ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SlideError
from pipeline.geometry import Box
from pipeline.slide_reader import SlideReader, name_channels
from pipeline.slides.channels import channel_numbers, select_channels
from pipeline.slides.opening import open_slide
from tests.support.make_photos import write_zarr
from tests.support.make_slides import noise_image, write_ome

IMAGE = noise_image(90, 80, 4, np.uint16).transpose(2, 0, 1).copy()
NAMES = ("DAPI", "Cy3", "Cy5", "FITC")


@pytest.fixture
def slide(tmp_path: Path) -> SlideReader:
    return open_slide(write_zarr(tmp_path / "a.zarr", IMAGE, names=NAMES))


@pytest.mark.parametrize(
    ("requested", "numbers"), [(None, None), ([1], (1,)), ([4, 2], (4, 2)), (["Cy5", 1], (3, 1)), (["FITC"], (4,))]
)
def test_channels_are_selected_in_requested_order(
    slide: SlideReader, requested: list[int | str] | None, numbers: tuple[int, ...] | None
) -> None:
    assert channel_numbers(slide, requested) == numbers
    chosen, indices = select_channels(slide, numbers), [n - 1 for n in numbers or (1, 2, 3, 4)]
    box = Box(3, 5, 70, 60)
    np.testing.assert_array_equal(chosen.read(0, box), IMAGE[indices][:, *box.slices])
    np.testing.assert_array_equal(chosen.read(1, Box(1, 2, 9, 9)), IMAGE[indices][:, 2:18:2, 4:18:2])
    assert chosen.channels == len(indices)
    assert chosen.channel_names == tuple(NAMES[index] for index in indices)
    assert chosen.read(0, box).flags.owndata
    same = ("path", "format", "levels", "dtype", "mpp_yx", "warnings")
    assert [getattr(chosen, name) for name in same] == [getattr(slide, name) for name in same]
    assert (chosen.fingerprint(), chosen.describe()) == (slide.fingerprint(), slide.describe())


@pytest.mark.parametrize("requested", [[5], ["dapi"], ["Cy7", 1], ["1"]])
def test_missing_channel_is_refused_with_existing_ones(slide: SlideReader, requested: list[int | str]) -> None:
    with pytest.raises(SlideError, match=r"asks for .*The slide has 1 \(DAPI\), 2 \(Cy3\), 3 \(Cy5\), 4 \(FITC\)"):
        channel_numbers(slide, requested)


def test_channel_requested_twice_is_refused(slide: SlideReader) -> None:
    with pytest.raises(SlideError, match="twice"):
        channel_numbers(slide, [1, "DAPI"])


@pytest.mark.parametrize(
    ("stated", "channels", "names"),
    [
        ((), 3, ("red", "green", "blue")),
        ((), 1, ("grey",)),
        ((), 2, ("channel 1", "channel 2")),
        (("a",), 2, ("channel 1", "channel 2")),
        (("", ""), 2, ("channel 1", "channel 2")),
        (("a", "", "a", "b\nc"), 4, ("channel 1", "channel 2", "channel 3", "b c")),
        (("x" * 99,), 1, ("x" * 60,)),
    ],
)
def test_channel_names_are_one_line_and_distinct(
    stated: tuple[str, ...], channels: int, names: tuple[str, ...]
) -> None:
    assert name_channels(stated, channels) == names


def test_ome_tiff_names_its_channels(tmp_path: Path) -> None:
    slide = open_slide(write_ome(tmp_path / "a.ome.tif", IMAGE, names=NAMES))
    assert slide.channel_names == NAMES
    np.testing.assert_array_equal(select_channels(slide, (3,)).read(0, Box(0, 0, 90, 80)), IMAGE[2:3])
    assert open_slide(write_ome(tmp_path / "b.ome.tif", IMAGE)).channel_names[0] == "channel 1"
