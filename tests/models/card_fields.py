"""Draw the first two held-back images of each set, with the objects of a model outlined, for the model's card.

    python -m tests.models.card_fields DATA MODEL OUT.png

DATA is the folder of the public data. The images are the first by name, so they are not selected.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.io import imsave
from skimage.segmentation import find_boundaries

from tests.models.nuclei_data import main as arrange
from tests.models.test_defaults import SETS, held_back
from unet_core.data.recoloured import recoloured
from unet_core.model_file.checkpoint import load
from unet_core.model_file.header import resolve
from unet_core.networks.whole_pass import whole_outputs
from unet_core.object_labels import label_objects

SIDE_PX, ZOOM, GAP_PX = 200, 2, 6
OUTLINE = (255, 230, 0)


def field(image_CYX: NDArray[np.uint8], labels_YX: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The middle of an image, enlarged, beside the same with outlines (y, x, 3)."""
    top, left = ((length - min(length, SIDE_PX)) // 2 for length in labels_YX.shape)
    part = np.s_[top : top + SIDE_PX, left : left + SIDE_PX]
    plain = np.kron(image_CYX.transpose(1, 2, 0)[part], np.ones((ZOOM, ZOOM, 1), np.uint8))
    outlined = plain.copy()
    outlined[find_boundaries(np.kron(labels_YX[part], np.ones((ZOOM, ZOOM), np.int64)), mode="inner")] = OUTLINE
    framed = np.full((ZOOM * SIDE_PX + GAP_PX, 2 * ZOOM * SIDE_PX + GAP_PX, 3), 255, np.uint8)
    framed[: plain.shape[0], : plain.shape[1]] = plain
    framed[: plain.shape[0], ZOOM * SIDE_PX : ZOOM * SIDE_PX + plain.shape[1]] = outlined
    return framed


def main(arguments: Sequence[str]) -> None:
    """Write the picture."""
    data, name, out = arguments
    model = load(resolve(name)).eval()
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        arrange([data, folder])
        for kind in SETS["nuclei"]:
            dataset, _ = held_back(Path(folder), kind, model.spec.mpp)
            first = sorted(dataset.cases, key=lambda case: case.name)[:2]
            fields = []
            for case, shown in zip(first, recoloured(first, model.spec.normalisation), strict=True):
                labels_YX, _ = label_objects(whole_outputs(model, shown.image_CYX), model.spec)
                fields.append(field(np.asarray(case.image_CYX[:, :, :]), labels_YX))
            rows.append(np.concatenate(fields, axis=1))
    imsave(out, np.concatenate(rows), check_contrast=False)


if __name__ == "__main__":
    main(sys.argv[1:])
