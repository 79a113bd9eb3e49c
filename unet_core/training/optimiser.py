"""Optimiser, learning rate of each step, and gradient norms of each level.

The rate is a function of step and progress and is set before every step, so there is no scheduler with state;
validations are remembered as a few numbers (`Watch`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from unet_core.training.config import OptimiserSection, TrainConfig


def optimiser_for(parameters: Iterable[nn.Parameter], section: OptimiserSection) -> torch.optim.Optimizer:
    """Return the configured optimiser."""
    if section.kind == "sgd":
        return torch.optim.SGD(parameters, section.rate, momentum=section.momentum, weight_decay=section.decay)
    kind = torch.optim.Adam if section.kind == "adam" else torch.optim.AdamW
    return kind(parameters, section.rate, weight_decay=section.decay)


@dataclass(frozen=True, slots=True)
class ValidationHistory:
    """State of the validations so far.

    Attributes:
        best: Best value of the monitored score.
        best_step: Its step.
        waited: Validations since the best.
        rested: Validations since the best or since the rate was last lowered.
        lowered: Number of times that the rate was lowered.
    """

    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    rested: int = 0
    lowered: int = 0

    def after(self, value: float, step: int, recipe: TrainConfig) -> ValidationHistory:
        """Return the state after one more validation."""
        lower_is_better = recipe.stopping.monitor == "loss"
        if self.best is None or (value < self.best if lower_is_better else value > self.best):
            return ValidationHistory(value, step, lowered=self.lowered)
        rested = self.rested + 1
        if recipe.schedule.kind == "plateau" and rested >= recipe.schedule.patience:
            return replace(self, waited=self.waited + 1, rested=0, lowered=self.lowered + 1)
        return replace(self, waited=self.waited + 1, rested=rested)

    def is_over(self, patience: int | None) -> bool:
        """Return whether `patience` validations passed without improvement."""
        return patience is not None and self.waited >= patience


def rate_at(recipe: TrainConfig, step: int, progress: float, watch: ValidationHistory) -> float:
    """Return the learning rate of a step, counted from 0; the linear warm-up factor reaches 1 at step `warmup`."""
    schedule = recipe.schedule
    rate = recipe.optimiser.rate * min(1.0, (step + 1) / (schedule.warmup + 1))
    if schedule.kind == "cosine":
        return rate * (1 + math.cos(math.pi * progress)) / 2
    if schedule.kind == "poly":
        return float(rate * (1 - progress) ** schedule.power)
    return float(rate * schedule.factor**watch.lowered)  # constant: it is never lowered


def levels_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the children of a network that have parameters, by name and in order; lists are expanded.

    If there is only one child, its children are returned instead.
    """
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        many = [(f"{name}.{i}", one) for i, one in enumerate(child)] if isinstance(child, nn.ModuleList) else []
        parts |= {level: part for level, part in many or [(name, child)] if any(True for _ in part.parameters())}
    (only, *others) = parts.values()
    return parts if others or not [*only.named_children()] else levels_of(only)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Return the Euclidean norm of the gradient of each level that has one.

    U-Net++ has heads on inner columns, which are not used and have no gradient.
    """
    gradients = {
        level: [one.grad.square().sum() for one in part.parameters() if one.grad is not None]
        for level, part in levels_of(model).items()
    }
    squares = {level: torch.stack(own).sum() for level, own in gradients.items() if own}
    norms = torch.stack([*squares.values()]).sqrt().tolist()
    return dict(zip(squares, norms, strict=True))
