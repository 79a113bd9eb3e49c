"""Arrange the public data of the model `nuclei` as one folder that `overtile train` reads.

    python -m tests.models.nuclei_data DATA OUT

OUT/images and OUT/masks hold three sets: he (outlines, 2018 Data Science Bowl), m2c (dots, BRCA-M2C) and nucls
(outlines, NuCLS). OUT/cases.csv states patient, fold, resolution and weight of each image. The Bowl states no
resolution; 0.36 um per pixel brings its median nucleus to the size of the others.
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from skimage.io import imread, imsave

SHARES = {"he": 0.40, "m2c": 0.45, "nucls": 0.15}
"""How often a tile is drawn from each set."""
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the cases table."""

    image: str
    patient: str
    fold: int
    mpp: float
    weight: float
    set: str


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _copy(image: Path, mask: Path, out: Path, kind: str) -> None:
    for folder in ("images", "masks"):
        (out / folder / kind).mkdir(parents=True, exist_ok=True)
    imsave(out / "images" / kind / f"{image.stem}.png", imread(image)[..., :3], check_contrast=False)
    path = out / "masks" / kind / f"{image.stem}{mask.suffix}"
    if mask.suffix != ".csv":
        shutil.copyfile(mask, path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:  # without their classes: all are nuclei
        table = csv.writer(file)
        table.writerows([("x", "y"), *((row["x"], row["y"]) for row in _rows(mask))])


def _named(folder: Path, stem: str) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.stem == stem)


def _bowl(data: Path, out: Path) -> Iterator[Case]:
    rows = [row for row in _rows(data / "dsb2018" / "groups.csv") if row["kind"] == "he"]
    for row in rows:
        stem = Path(row["image"]).stem
        _copy(data / "dsb2018/he/images" / row["image"], _named(data / "dsb2018/he/labels", stem), out, "he")
        yield Case(f"he/{stem}.png", row["patient"], int(row["fold"]), 0.36, SHARES["he"] / len(rows), "he")


def _dots(data: Path, out: Path) -> Iterator[Case]:
    rows = _rows(data / "brca-m2c" / "images.csv")
    patients = sorted({row["patient"] for row in rows})
    for row in rows:
        stem = Path(row["image"]).stem
        _copy(data / "brca-m2c/images" / row["image"], data / "brca-m2c/points" / f"{stem}.csv", out, "m2c")
        fold = patients.index(row["patient"]) % FOLDS
        yield Case(f"m2c/{stem}.png", row["patient"], fold, 0.5, SHARES["m2c"] / len(rows), "m2c")


def _nucls(data: Path, out: Path) -> Iterator[Case]:
    rows = _rows(data / "nucls" / "images.csv")
    for number, row in enumerate(rows):
        stem = Path(row["image"]).stem
        _copy(data / "nucls/images" / row["image"], _named(data / "nucls/labels", stem), out, "nucls")
        yield Case(f"nucls/{stem}.png", f"nucls-{stem}", number % FOLDS, 0.25, SHARES["nucls"] / len(rows), "nucls")


def main(arguments: Sequence[str]) -> None:
    """Write the folder."""
    data, out = map(Path, arguments)
    cases = [*_bowl(data, out), *_dots(data, out), *_nucls(data, out)]
    with (out / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in fields(Case)])
        table.writerows(map(astuple, cases))


if __name__ == "__main__":
    main(sys.argv[1:])
