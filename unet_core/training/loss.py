"""What training minimises: a sum of losses, each with its own factor.

Decision: two kinds. Cross-entropy and focal loss judge pixels one by one; each counts by equation 2 of the paper,
w = w_c + w0 * exp(..) with w_c that of its class, and a batch by its weighted mean. Dice, Jaccard and Tversky judge the
overlap of each foreground class, over the whole batch at once, as the metrics add counts over images before dividing.
So a tile without an object needs no rule, and for a class that the whole batch is without there is this one: nothing
there and nothing found is loss 0, anything found is loss 1 (`SMOOTH` in both halves of the fraction). A pixel of weight
0 is nowhere: neither in a mean nor in an overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator
from torch import Tensor
from torch.nn import functional

from unet_core.optional import TRAIN, optional_import
from unet_core.spec import UNetSpec

SMOOTH = 1e-5
"""Pixels added above and below the line of an overlap: what makes 0 / 0 a whole and 0 / 1 none."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits (n, c, y, x), class indices (n, y, x) and separation weights (n, y, x)."""


class LossSettings(BaseModel):
    """The factor of each loss, and what else they ask for.

    `class_weights`: what a pixel of each class counts in cross-entropy and focal loss, 1 or the inverse of the class's
    frequency in the training images (1 on their average). Tversky's `alpha` is the price of a pixel found in vain,
    `beta` of one missed; 0.5 and 0.5 is Dice, 1 and 1 Jaccard.
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
        """Refuse a sum of nothing."""
        if not any((self.cross_entropy, self.focal, self.dice, self.jaccard, self.tversky)):
            raise ValueError("every loss has the factor 0: expected one above it, as cross_entropy: 1")
        return self


def loss_for(settings: LossSettings, spec: UNetSpec, frequencies: Sequence[float] | None = None) -> Loss:
    """Return the loss of (logits_NCHW, target_NHW, weight_NHW), a mean in fp32.

    `frequencies`: the share of each class among the pixels, background first; only asked for where classes are weighted
    by it. Raises ValueError where it does not say what is needed.
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


def class_weights(settings: LossSettings, spec: UNetSpec, frequencies: Sequence[float] | None) -> Tensor:
    """Return what a pixel of each class counts (c,): 1, or 1 / (classes * frequency), which is 1 on average.

    Raises ValueError for a class that has no pixel to count.
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
    """Return the target as the network's channels (n, c, y, x) in fp32: a sigmoid head has none for background."""
    return functional.one_hot(target_NHW, spec.classes).movedim(-1, 1)[:, -spec.out_channels :].float()


def _of_pixels(settings: LossSettings, spec: UNetSpec) -> list[tuple[float, Callable[[Tensor, Tensor], Tensor]]]:
    """Losses of (logits, target) with a value for each pixel (n, y, x).

    A sigmoid head is asked one yes-or-no question for each foreground class; what these cost is summed.
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
    """Losses of (probabilities, one-hot target), both foreground only (n, k, y, x): the mean over the classes."""
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
