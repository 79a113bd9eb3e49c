"""Texts that enter stored hashes: the exact characters, so that renaming a class makes no result out of date."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.slide_reader import Level, hashed_levels
from pipeline.slides.photo import PhotoHeader, load_photo
from pipeline.slides.resample import Resampling
from tests.support.make_photos import write_png


def test_resampling_text_of_the_plan_hash() -> None:
    resampling = Resampling("area", (Fraction(5, 4), Fraction(1)), (700, 1000), (560, 1000))
    assert resampling.hashed_text == (
        "Resampling(method='area', scale_yx=(Fraction(5, 4), Fraction(1, 1)), source_yx=(700, 1000), "
        "out_yx=(560, 1000))"
    )


def test_header_text_of_the_photo_fingerprint() -> None:
    stated = PhotoHeader("PNG", (200, 580), 3, 8, (0.25, 0.5), 1)
    assert stated.hashed_text == (
        "Header(format='PNG', shape_yx=(200, 580), samples=3, bits=8, mpp_yx=(0.25, 0.5), orientation=1)"
    )
    assert PhotoHeader("JPEG", (9, 8), 1, 8, None, 0).hashed_text == (
        "Header(format='JPEG', shape_yx=(9, 8), samples=1, bits=8, mpp_yx=None, orientation=0)"
    )


def test_level_text_of_the_openslide_fingerprint() -> None:
    levels = (Level((150, 330), (1.0, 1.0)), Level((75, 165), (2.0, 2.0)))
    first = "Level(shape_yx=(150, 330), downsample_yx=(1.0, 1.0))"
    assert hashed_levels(levels) == f"({first}, Level(shape_yx=(75, 165), downsample_yx=(2.0, 2.0)))"
    assert hashed_levels(levels[:1]) == f"({first},)"


def test_photo_fingerprint_is_the_digest_of_the_header_text_size_and_samples(tmp_path: Path) -> None:
    path = write_png(tmp_path / "photo.png", np.zeros((4, 6, 3), np.uint8), mpp=None)
    data = path.read_bytes()
    text = "photo 1 Header(format='PNG', shape_yx=(4, 6), samples=3, bits=8, mpp_yx=None, orientation=1)"
    expected = hashlib.sha256(text.encode() + np.array([len(data)], np.int64).tobytes() + data)
    assert load_photo(path).fingerprint() == expected.hexdigest()
