"""Pictures of the best, the middle and the worst case: image, truth, prediction, error, side by side.

The one decision made here: a case is shown as it was judged, judged once more for its picture, so that no picture of
all cases is kept. Of a large image the middle is shown.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flows.evaluation import Evaluation
from pipeline.display import class_colours, compose, windows
from pipeline.files import write_bytes
from pipeline.geometry import Box
from pipeline.judge import Judge

SHOWN_PX, GAP_PX = 768, 6
RIGHT, ONLY_FOUND, ONLY_TRUE = (200, 200, 200), (220, 50, 47), (38, 110, 220)
"""Error: what is rightly called an object is grey, what should not be is red, what is missed is blue."""


def write_panels(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """Write ``best.png``, ``median.png`` and ``worst.png`` of the first method; the image's name by file."""
    ranked = evaluation.ranked()
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    for name, number in chosen.items():
        picture = io.BytesIO()
        Image.fromarray(panel(evaluation, number)).save(picture, format="PNG")
        write_bytes(folder / f"{name}.png", picture.getvalue())
    return {f"{name}.png": evaluation.cases[number].annotated.name for name, number in chosen.items()}


def panel(evaluation: Evaluation, number: int) -> NDArray[np.uint8]:
    """Image, truth, prediction and error of one case (y, x, 3)."""
    case, method = evaluation.cases[number].annotated, evaluation.results[0].method
    judge = Judge(method.answers(case.image_CYX), case, method.rules)
    judge.run()
    box = _middle(judge.shape)
    shown = rgb(np.asarray(case.image_CYX[(slice(None), *box.slices)]))
    true_YX, found_YX = case.class_map[box.slices], np.asarray(judge.found_YX[box.slices])
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


def _middle(shape: tuple[int, int]) -> Box:
    starts = [max(0, (length - SHOWN_PX) // 2) for length in shape]
    stops = [min(length, start + SHOWN_PX) for start, length in zip(starts, shape, strict=True)]
    return Box(starts[0], starts[1], stops[0], stops[1])
