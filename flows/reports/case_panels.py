"""Pictures of the best, the middle and the worst case: image, truth, prediction, error, side by side.

The one decision made here: a case is shown as it was judged, judged once more for its picture, so that no picture of
all cases is kept. Of a large image the middle is shown.
"""

from __future__ import annotations

import io
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
RIGHT, ONLY_FOUND, ONLY_TRUE = (200, 200, 200), (213, 94, 0), (0, 114, 178)
"""Error: what is rightly called an object is grey, what should not be is orange, what is missed is blue; all eyes tell
these apart."""


@dataclass(frozen=True, slots=True)
class CasePanel:
    """The picture (PNG) of a case: which of the ranking it is (best, median, worst), its number and name."""

    rank: str
    number: int
    name: str
    png: bytes

    @property
    def file(self) -> str:
        """What it is written as."""
        return f"{self.rank}.png"


def write_panels(evaluation: Evaluation, folder: Path) -> tuple[CasePanel, ...]:
    """Draw the best, the median and the worst case, and write each into a folder."""
    panels = draw_panels(evaluation)
    for one in panels:
        write_bytes(folder / one.file, one.png)
    return panels


def draw_panels(evaluation: Evaluation) -> tuple[CasePanel, ...]:
    """Draw the best, the median and the worst case of the first method; of few cases one may be several of them."""
    ranked = evaluation.ranked()
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    drawn = {number: png(panel(evaluation, number)) for number in set(chosen.values())}
    names = [case.annotated.name for case in evaluation.cases]
    return tuple(CasePanel(rank, number, names[number], drawn[number]) for rank, number in chosen.items())


def png(pixels_YXC: NDArray[np.uint8]) -> bytes:
    """Pixels, grey (y, x) or coloured (y, x, 3), as a PNG."""
    picture = io.BytesIO()
    Image.fromarray(pixels_YXC).save(picture, format="PNG")
    return picture.getvalue()


def panel(evaluation: Evaluation, number: int) -> NDArray[np.uint8]:
    """Image, truth, prediction and error of one case (y, x, 3)."""
    case, method = evaluation.cases[number].annotated, evaluation.results[0].method
    judge = method.judge(case)
    judge.run()
    box = middle(judge.shape, SHOWN_PX)
    shown = rgb(np.asarray(case.image_CYX[(slice(None), *box.slices)]))
    true_YX, found_YX = case.class_map[box.slices], np.asarray(judge.found_YX[box.slices])
    true_YX = np.where(true_YX == IGNORED, 0, true_YX)  # as background, and nothing is found there
    colours = np.array([(255, 255, 255), *class_colours(len(method.rules.class_names))], np.uint8)
    parts = (shown, colours[true_YX], colours[found_YX], error(true_YX, found_YX))
    gap = np.full((box.shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)


def error(true_YX: NDArray[np.uint8], found_YX: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours of right, wrongly found and missed pixels; another class than the true one is both, and shown missed."""
    picture = np.full((*true_YX.shape, 3), 255, np.uint8)
    picture[(true_YX == found_YX) & (true_YX > 0)] = RIGHT
    picture[(true_YX != found_YX) & (found_YX > 0)] = ONLY_FOUND
    picture[(true_YX != found_YX) & (true_YX > 0)] = ONLY_TRUE
    return picture


def rgb(pixels_CYX: NDArray[Any]) -> NDArray[np.uint8]:
    """An image of any channels as colours."""
    names = ("red", "green", "blue") if len(pixels_CYX) == 3 else tuple(map(str, range(len(pixels_CYX))))
    return compose(pixels_CYX, names, windows(pixels_CYX, names))


def middle(shape: tuple[int, ...], most_px: int) -> Box:
    """The middle of an image (y, x), at most so many pixels each way."""
    starts = [max(0, (length - most_px) // 2) for length in shape]
    stops = [min(length, start + most_px) for start, length in zip(starts, shape, strict=True)]
    return Box(starts[0], starts[1], stops[0], stops[1])
