"""Loss of training: a weighted sum of several losses.

Cross-entropy and focal loss act on pixels; each pixel is weighted by equation 2 of the paper,
w = w_c + w0 * exp(..) with w_c that of its class, and a batch is the weighted mean. Dice, Jaccard and Tversky act on
the overlap of each foreground class over the whole batch, as metrics add counts over images before division. So tiles
without objects need no special case; for a class that is absent from the whole batch, loss is 0 if nothing is
predicted and 1 if anything is (`SMOOTH` in numerator and denominator). Pixels with weight 0 are in no mean and no
overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator
from torch import Tensor
from torch.nn import functional

from unet_core.data.map_targets import MapSettings
from unet_core.optional import TRAIN, optional_import
from unet_core.spec import UNetSpec

CENTRE_WEIGHT = 6.0
"""Weight of the centre of an object beyond that of other pixels; centres take few of them."""

SMOOTH = 1e-5
"""Pixels added to numerator and denominator of an overlap, so 0 / 0 is 1 and 0 / 1 is 0."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of logits (n, c, y, x), class indices (n, y, x) and separation weights (n, y, x)."""


class LossSettings(BaseModel):
    """Factor of each loss, and their parameters.

    Attributes:
        class_weights: Weight of a pixel in cross-entropy and focal loss: 1, or the inverse frequency of its class in
            the training images (1 on average).
        focal_gamma: Exponent of the focal loss.
        tversky_alpha: Weight of false positive pixels; alpha and beta of 0.5 are Dice, of 1 Jaccard.
        tversky_beta: Weight of false negative pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    cross_entropy: NonNegativeFloat = 1.0
    focal: NonNegativeFloat = 0.0
    dice: NonNegativeFloat = 0.5
    jaccard: NonNegativeFloat = 0.0
    tversky: NonNegativeFloat = 0.0
    class_weights: Literal["none", "inverse_frequency"] = "none"
    focal_gamma: Annotated[float, Field(ge=1)] = 2.0
    tversky_alpha: Annotated[float, Field(gt=0)] = 0.3
    tversky_beta: Annotated[float, Field(gt=0)] = 0.7

    @model_validator(mode="after")
    def _something_is_minimised(self) -> Self:
        """Reject a sum without terms."""
        if not any((self.cross_entropy, self.focal, self.dice, self.jaccard, self.tversky)):
            raise ValueError("every loss has the factor 0: expected one above it, as cross_entropy: 1")
        return self


def loss_for(settings: LossSettings, spec: UNetSpec, frequencies: Sequence[float] | None = None) -> Loss:
    """Return the loss function of (logits_NCHW, target_NHW, weight_NHW), computed in fp32.

    Args:
        settings: Factors of the losses.
        spec: The network.
        frequencies: Share of each class among the pixels, background first; needed for inverse frequencies only.

    Raises:
        ValueError: Frequencies are needed and missing, or one is 0.
        MissingLibraryError: The losses need MONAI, which is not installed.
    """
    class_weight_C = class_weights(settings, spec, frequencies)
    by_pixel = [(factor, loss) for factor, loss in _of_pixels(settings, spec) if factor]
    by_overlap = [(factor, loss) for factor, loss in _of_overlaps(settings) if factor]

    def total(logits_NCHW: Tensor, target_NHW: Tensor, weight_NHW: Tensor) -> Tensor:
        logits = logits_NCHW.float()
        parts = []
        counted = weight_NHW > 0
        if by_pixel:
            weight = (weight_NHW - 1 + class_weight_C.to(weight_NHW.device)[target_NHW]) * counted
            total = weight.sum().clamp_min(SMOOTH)
            parts += [factor * (loss(logits, target_NHW) * weight).sum() / total for factor, loss in by_pixel]
        if by_overlap:
            inside = counted[:, None]
            found = foreground_probability(spec, logits) * inside
            wanted = one_hot(spec, target_NHW)[:, -spec.foreground :] * inside
            parts += [factor * loss(found, wanted) for factor, loss in by_overlap]
        return torch.stack(parts).sum()

    return total


def map_loss_for(settings: MapSettings) -> Loss:
    """Return the loss of the maps: a function of logits, targets and known pixels, (n, m, y, x) each, in fp32.

    The distance has the squared error, centre and boundary have the binary cross-entropy. Each is a mean over the known
    pixels of the batch; there is no loss where none is known.
    """

    def total(logits_NMYX: Tensor, wanted_NMYX: Tensor, known_NMYX: Tensor) -> Tensor:
        parts = []
        for index, name in enumerate(settings.names):
            logits, wanted = logits_NMYX[:, index].float(), wanted_NMYX[:, index]
            known = known_NMYX[:, index].float()
            if name == "distance":
                pixels = (torch.sigmoid(logits) - wanted) ** 2
            else:
                pixels = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            if name == "centre":
                pixels = pixels * (1 + CENTRE_WEIGHT * wanted)
            parts.append(getattr(settings, name) * (pixels * known).sum() / known.sum().clamp_min(1))
        return torch.stack(parts).sum()

    return total


def class_weights(settings: LossSettings, spec: UNetSpec, frequencies: Sequence[float] | None) -> Tensor:
    """Return the weight of each class (c,): 1, or 1 / (classes * frequency), which is 1 on average.

    Raises:
        ValueError: A class has no pixel.
    """
    if settings.class_weights == "none":
        return torch.ones(spec.classes)
    if frequencies is None or len(frequencies) != spec.classes or min(frequencies) <= 0:
        names = ("background", *spec.class_names)
        raise ValueError(
            f"loss.class_weights: inverse_frequency needs pixels of every class ({', '.join(names)}), found the shares "
            f"{list(frequencies or [])}: annotate some, leave the class out of the network, or set class_weights: none"
        )
    return 1 / (spec.classes * torch.tensor(frequencies, dtype=torch.float32))


def foreground_probability(spec: UNetSpec, logits_NCHW: Tensor) -> Tensor:
    """Return the foreground probabilities (n, k, h, w) in fp32, whatever the precision of the logits."""
    logits = logits_NCHW.float()
    if spec.head == "sigmoid":
        return functional.sigmoid(logits)
    return functional.softmax(logits, dim=1)[:, 1:]


def one_hot(spec: UNetSpec, target_NHW: Tensor) -> Tensor:
    """Return the one-hot target (n, c, y, x) in fp32; a sigmoid head has no channel for background."""
    return functional.one_hot(target_NHW, spec.classes).movedim(-1, 1)[:, -spec.class_channels :].float()


def _of_pixels(settings: LossSettings, spec: UNetSpec) -> list[tuple[float, Callable[[Tensor, Tensor], Tensor]]]:
    """Return factors and losses of (logits, target) with a value per pixel (n, y, x).

    With a sigmoid head, the binary losses of the foreground classes are added.
    """
    softmax = spec.head == "softmax"

    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        if softmax:
            return functional.cross_entropy(logits, target, reduction="none")
        wanted = one_hot(spec, target)
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)

    if not settings.focal:
        return [(settings.cross_entropy, cross_entropy)]
    with optional_import(TRAIN, "loss.focal"):
        from monai.losses.focal_loss import FocalLoss
    focal_loss = FocalLoss(gamma=settings.focal_gamma, use_softmax=softmax, reduction="none")

    def focal(logits: Tensor, target: Tensor) -> Tensor:
        pixels: Tensor = focal_loss(logits, one_hot(spec, target)).sum(dim=1)
        return pixels

    return [(settings.cross_entropy, cross_entropy), (settings.focal, focal)]


def _of_overlaps(settings: LossSettings) -> list[tuple[float, Callable[[Tensor, Tensor], Tensor]]]:
    """Return factors and losses of (probabilities, one-hot target), foreground only (n, k, y, x), averaged over k."""
    if not (settings.dice or settings.jaccard or settings.tversky):
        return []
    with optional_import(TRAIN, "loss.dice, loss.jaccard, loss.tversky"):
        from monai.losses.dice import DiceLoss  # takes seconds, which cross-entropy alone does not need
        from monai.losses.tversky import TverskyLoss

    rule: dict[str, Any] = {"batch": True, "smooth_nr": SMOOTH, "smooth_dr": SMOOTH}
    return [
        (settings.dice, DiceLoss(**rule)),
        (settings.jaccard, DiceLoss(jaccard=True, **rule)),
        (settings.tversky, TverskyLoss(alpha=settings.tversky_alpha, beta=settings.tversky_beta, **rule)),
    ]
