"""Panels of the best, median and worst case: image, truth, prediction and errors side by side.

Each case is scored again for its panel, so that the pictures of all cases need not be kept. Of a large image the centre
is shown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.method_evaluation import Evaluation
from pipeline.geometry import Box
from pipeline.rendering.contrast import class_colours, compose, windows
from pipeline.storage.atomic_files import write_bytes
from unet_core.class_map import IGNORED

SHOWN_PX, GAP_PX = 768, 6
CORRECT, FALSE_POSITIVE, MISSED = (200, 200, 200), (213, 94, 0), (0, 114, 178)
"""Colours of errors: correct pixels grey, false positives orange, missed pixels blue. They are distinguishable with any
colour vision."""
FOUND, DOT_PX = np.array((225, 225, 225), np.uint8), 2
"""Of an image with dots: colour of predicted objects, and half the side of a drawn dot."""


@dataclass(frozen=True, slots=True)
class CasePanel:
    """The panel (PNG) of a case: its rank (best, median, worst), number and name."""

    rank: str
    number: int
    name: str
    png: bytes

    @property
    def file(self) -> str:
        """File name of the panel."""
        return f"{self.rank}.png"


def write_panels(evaluation: Evaluation, folder: Path) -> tuple[CasePanel, ...]:
    """Draw the best, the median and the worst case and write each into ``folder``."""
    panels = draw_panels(evaluation)
    for case_panel in panels:
        write_bytes(folder / case_panel.file, case_panel.png)
    return panels


def draw_panels(evaluation: Evaluation) -> tuple[CasePanel, ...]:
    """Draw the best, median and worst case of the first method. With few cases one case may have several ranks."""
    ranked = evaluation.ranked()
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    pictures = {number: png(panel(evaluation, number)) for number in set(chosen.values())}
    names = [case.annotated.name for case in evaluation.cases]
    return tuple(CasePanel(rank, number, names[number], pictures[number]) for rank, number in chosen.items())


def png(pixels_YXC: NDArray[np.uint8]) -> bytes:
    """Encode grey (y, x) or colour (y, x, 3) pixels as PNG."""
    picture = io.BytesIO()
    Image.fromarray(pixels_YXC).save(picture, format="PNG")
    return picture.getvalue()


def panel(evaluation: Evaluation, number: int) -> NDArray[np.uint8]:
    """Return image, truth, prediction and errors of one case as one picture (y, x, 3)."""
    case, method = evaluation.cases[number].annotated, evaluation.results[0].method
    scorer = evaluation.scorer(number)
    scorer.run()
    box = middle(scorer.shape, SHOWN_PX)
    image = rgb(np.asarray(case.image_CYX[(slice(None), *box.slices)]))
    true_YX, found_YX = case.class_map[box.slices], np.asarray(scorer.found_YX[box.slices])
    true_YX = np.where(true_YX == IGNORED, 0, true_YX)  # drawn as background; no object is predicted there
    colours = np.array([(255, 255, 255), *class_colours(len(method.config.class_names))], np.uint8)
    truth, errors = colours[true_YX], error(true_YX, found_YX)
    if not scorer.outlined:
        truth, errors = np.full_like(truth, 255), np.where(found_YX[..., None] > 0, FOUND, np.uint8(255))
        for kind, match in scorer.matches.items():
            draw_dots(truth, match.true_M2, box, colours[kind])
            draw_dots(errors, match.false_positives, box, FALSE_POSITIVE)
            draw_dots(errors, match.missed, box, MISSED)
    parts = (image, truth, colours[found_YX], errors)
    gap = np.full((box.shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)


def error(true_YX: NDArray[np.uint8], found_YX: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour correct pixels, false positives and missed pixels. A pixel of a wrong class counts as missed."""
    picture = np.full((*true_YX.shape, 3), 255, np.uint8)
    picture[(true_YX == found_YX) & (true_YX > 0)] = CORRECT
    picture[(true_YX != found_YX) & (found_YX > 0)] = FALSE_POSITIVE
    picture[(true_YX != found_YX) & (true_YX > 0)] = MISSED
    return picture


def draw_dots(picture: NDArray[np.uint8], yx_N2: NDArray[Any], box: Box, colour: Sequence[int]) -> None:
    """Draw a square around each position (y, x) of the image in a picture of a box, in place."""
    for y, x in np.rint(yx_N2 - (box.y0, box.x0)).astype(int).tolist():
        if 0 <= y < picture.shape[0] and 0 <= x < picture.shape[1]:
            picture[max(0, y - DOT_PX) : y + DOT_PX + 1, max(0, x - DOT_PX) : x + DOT_PX + 1] = colour


def rgb(pixels_CYX: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert an image with any number of channels to RGB (y, x, 3)."""
    names = ("red", "green", "blue") if len(pixels_CYX) == 3 else tuple(map(str, range(len(pixels_CYX))))
    return compose(pixels_CYX, names, windows(pixels_CYX, names))


def middle(shape: tuple[int, ...], max_px: int) -> Box:
    """Return the centre of an image (y, x), at most ``max_px`` in each direction."""
    starts = [max(0, (length - max_px) // 2) for length in shape]
    stops = [min(length, start + max_px) for start, length in zip(starts, shape, strict=True)]
    return Box(starts[0], starts[1], stops[0], stops[1])
