"""Train and score networks on images and masks in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import label

from unet_core.class_map import IGNORED
from unet_core.data.mask_encoding import MOST_LABEL
from unet_core.data.recoloured import recoloured
from unet_core.data.sampler import AnnotatedImage
from unet_core.errors import AnnotationError
from unet_core.metrics.overlap import Overlaps, confusion, object_scores, object_sums, pixel_scores, pixel_sums
from unet_core.model_file.checkpoint import load
from unet_core.networks.unet import SegmentationNetwork
from unet_core.networks.whole_pass import whole_outputs
from unet_core.object_labels import label_objects
from unet_core.training.config import TrainConfig
from unet_core.training.resume_checkpoint import Position, continued
from unet_core.training.train_state import use_threads
from unet_core.training.trainer import BEST, TrainData, TrainJob
from unet_core.training.trainer import train as run_training

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class SegmentationScores:
    """Scores of all images together, 1 at best; the mean over the classes where there are several.

    Attributes:
        dice: Dice of pixels: 2 * intersection / (predicted + true pixels).
        f1_50: F1 of objects; a predicted object is correct if its IoU with a true one is at least 0.5.
        pq: Panoptic quality (Kirillov et al. 2019, arXiv:1801.00868).
        aji: Aggregated Jaccard index (Kumar et al. 2017, 10.1109/TMI.2017.2677499).
    """

    dice: float
    f1_50: float
    pq: float
    aji: float


class NoListener:
    """A listener that does nothing."""

    def begun(self, job: TrainJob, position: Position) -> None:
        """Ignore the start."""

    def stepped(self, record: Mapping[str, Any], progress: float) -> None:
        """Ignore a step."""

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Ignore a validation."""


def train(
    images: Sequence[Array],
    masks: Sequence[Array],
    *,
    out: str | Path,
    config: TrainConfig | None = None,
    held_back: Collection[int] = (),
) -> SegmentationNetwork:
    """Train a network on images in memory.

    The same call on the same ``out`` resumes a training that was stopped, and loads the network of one that is
    finished. Threshold and smallest object area are chosen on the training images at the end.

    Args:
        images: Unsigned integers (H, W) or (H, W, C), all with the same number type and channels.
        masks: One (H, W) integer array per image. Each number is one object and 0 is background. Where
            ``config.data.classes`` names several classes, the numbers are classes instead (1 is the first), objects
            are 8-connected components of one class, and 255 marks pixels without an annotation.
        out: Folder of the run, created if missing; ``best.safetensors`` in it is the model file.
        config: Settings of the training; None: the defaults (30 minutes, a small U-Net). Its ``folds`` are not used.
        held_back: Indices of images to validate on; the network of the best validation is kept. None: the latest is.

    Returns:
        The trained network in eval mode, on the CPU.

    Raises:
        AnnotationError: An array has another shape, number type or range, or no image is left to train on.
        RecipeError: ``out`` holds another run, or the settings do not fit the images.
        DivergedError: Loss or gradient is not finite.
        MissingLibraryError: A library of the extra ``train`` is not installed.
    """
    config, folder = config or TrainConfig(), Path(out)
    names = config.data.class_names
    cases = _annotated(images, masks, len(names))
    if unknown := sorted(set(held_back) - set(range(len(cases)))):
        raise AnnotationError(f"held_back: expected indices 0 to {len(cases) - 1}, found {unknown}. Correct them")
    learnt = [case for index, case in enumerate(cases) if index not in held_back]
    if not learnt:
        raise AnnotationError(f"train: expected at least one image to train on, found none of {len(cases)}. Add images")
    folder.mkdir(parents=True, exist_ok=True)
    data = TrainData(learnt, [cases[index] for index in sorted(set(held_back))], names)
    with _threads(config):
        run_training(TrainJob(folder, data, continued(folder, config)), NoListener())
    return load(folder / BEST)


def evaluate(model: SegmentationNetwork, images: Sequence[Array], masks: Sequence[Array]) -> SegmentationScores:
    """Score a network on images in memory, each small enough for one forward pass.

    Predictions are what segmentation stores: bytes, the model's own threshold (0.5 if it has none; several classes: the
    most probable one), and the objects that the model's settings give.

    Args:
        model: Network in eval mode, as `load_model` and `train` return it.
        images: Unsigned integers (H, W) or (H, W, C), at the model's resolution.
        masks: One (H, W) integer array per image, as for `train`: objects for a model with one class, else classes.

    Returns:
        Scores of each class pooled over the images, then averaged over the classes. A class that is neither annotated
        nor predicted scores 1.

    Raises:
        AnnotationError: An array has another shape, number type or range, or other channels than the model.
    """
    spec = model.spec
    cases = _annotated(images, masks, spec.foreground)
    for case in cases:
        if case.image_CYX.shape[0] not in (1, spec.in_channels):
            raise AnnotationError(
                f"images[{case.name}]: expected {spec.in_channels} channels, as the model takes (or 1, which is "
                f"repeated), found {case.image_CYX.shape[0]}. Convert it"
            )
    pixels, objects = (np.zeros((spec.foreground, length)) for length in (5, 14))
    for case, shown in zip(cases, recoloured(cases, spec.normalisation), strict=True):
        true_YX, labels_YX = case.class_map[:, :], np.asarray(case.labels_YX[:, :])
        predicted_YX, classes_YX = label_objects(whole_outputs(model, shown.image_CYX), spec)
        for index in range(spec.foreground):
            kept_YX = np.where((classes_YX == index + 1) & (true_YX != IGNORED), predicted_YX, 0)
            true_objects_YX = np.where(true_YX == index + 1, labels_YX, 0)
            pixels[index] += pixel_sums(confusion(kept_YX > 0, true_objects_YX > 0, 2), 1)
            objects[index] += object_sums(Overlaps.of(kept_YX, true_objects_YX))
    scores = pixel_scores(pixels) | object_scores(objects)
    dice, f1_50, pq, aji = (float(scores[name].mean()) for name in ("dice", "f1_50", "pq", "aji"))
    return SegmentationScores(dice, f1_50, pq, aji)


def _annotated(images: Sequence[Array], masks: Sequence[Array], classes: int) -> list[AnnotatedImage]:
    """Check arrays and turn them into annotated images."""
    if len(images) != len(masks):
        raise AnnotationError(f"expected one mask per image, found {len(images)} images and {len(masks)} masks")
    cases = []
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if image.dtype.kind != "u" or image.ndim not in (2, 3):
            raise AnnotationError(
                f"images[{index}]: expected unsigned integers (H, W) or (H, W, C), found {image.dtype} {image.shape}. "
                "Convert it, for example with skimage.util.img_as_ubyte"
            )
        if mask.dtype.kind not in "ui" or mask.shape != image.shape[:2]:
            raise AnnotationError(
                f"masks[{index}]: expected integers {image.shape[:2]} as its image, found {mask.dtype} {mask.shape}"
            )
        largest = MOST_LABEL if classes == 1 else classes
        known = mask if classes == 1 else mask[mask != IGNORED]
        if known.size and not 0 <= int(known.min()) <= int(known.max()) <= largest:
            raise AnnotationError(
                f"masks[{index}]: expected numbers from 0 to {largest}, found {known.min()} to {known.max()}. Fix it"
            )
        image_CYX = np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))
        cases.append(_case(str(index), image_CYX, mask, classes))
    return cases


def _case(name: str, image_CYX: Array, mask_YX: Array, classes: int) -> AnnotatedImage:
    if classes == 1:
        return AnnotatedImage(name, image_CYX, mask_YX.astype(np.int32))
    labels_YX = np.where(mask_YX == IGNORED, 0, label(mask_YX, connectivity=2)).astype(np.int32)
    return AnnotatedImage(name, image_CYX, labels_YX, mask_YX.astype(np.uint8))


@contextmanager
def _threads(config: TrainConfig) -> Iterator[None]:
    """Compute on the configured number of threads."""
    before = torch.get_num_threads()
    use_threads(config.compute.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
