"""How a step is taken: the optimiser, the learning rate of each step, the norm of the gradient at each level.

Decision: the rate is a function of step and progress and is set anew before every step, so there is no scheduler whose
state could be lost; all that a run remembers of its validations is `Watch`, a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from unet_core.training.config import OptimiserSection, TrainConfig


def optimiser_for(parameters: Iterable[nn.Parameter], section: OptimiserSection) -> torch.optim.Optimizer:
    """Return the optimiser a recipe asks for."""
    if section.kind == "sgd":
        return torch.optim.SGD(parameters, section.rate, momentum=section.momentum, weight_decay=section.decay)
    kind = torch.optim.Adam if section.kind == "adam" else torch.optim.AdamW
    return kind(parameters, section.rate, weight_decay=section.decay)


@dataclass(frozen=True, slots=True)
class Watch:
    """What a run remembers of the validations so far: the best, and for how many it has not been beaten."""

    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    rested: int = 0  # validations since the best or since the rate was last lowered
    lowered: int = 0  # how often the rate was

    def after(self, value: float, step: int, recipe: TrainConfig) -> Watch:
        """Return what is remembered after one more validation."""
        lower_is_better = recipe.stopping.monitor == "loss"
        if self.best is None or (value < self.best if lower_is_better else value > self.best):
            return Watch(value, step, lowered=self.lowered)
        rested = self.rested + 1
        if recipe.schedule.kind == "plateau" and rested >= recipe.schedule.patience:
            return replace(self, waited=self.waited + 1, rested=0, lowered=self.lowered + 1)
        return replace(self, waited=self.waited + 1, rested=rested)

    def is_over(self, patience: int | None) -> bool:
        """Whether the best has not been beaten for so many validations."""
        return patience is not None and self.waited >= patience


def rate_at(recipe: TrainConfig, step: int, progress: float, watch: Watch) -> float:
    """Return the learning rate of a step, counted from 0; the warm-up is linear and reaches 1 at step `warmup`."""
    schedule = recipe.schedule
    rate = recipe.optimiser.rate * min(1.0, (step + 1) / (schedule.warmup + 1))
    if schedule.kind == "cosine":
        return rate * (1 + math.cos(math.pi * progress)) / 2
    if schedule.kind == "poly":
        return float(rate * (1 - progress) ** schedule.power)
    return float(rate * schedule.factor**watch.lowered)  # constant: it is never lowered


def levels_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a network that learn, by name and in its own order: its children, those in lists one by one.

    A network inside another one that adds nothing is looked into.
    """
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        many = [(f"{name}.{i}", one) for i, one in enumerate(child)] if isinstance(child, nn.ModuleList) else []
        parts |= {level: part for level, part in many or [(name, child)] if any(True for _ in part.parameters())}
    (only, *others) = parts.values()
    return parts if others or not [*only.named_children()] else levels_of(only)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Return the Euclidean norm of the gradient of each level of the network that has one.

    U-Net++ has heads on columns that are not asked.
    """
    gradients = {
        level: [one.grad.square().sum() for one in part.parameters() if one.grad is not None]
        for level, part in levels_of(model).items()
    }
    squares = {level: torch.stack(own).sum() for level, own in gradients.items() if own}
    norms = torch.stack([*squares.values()]).sqrt().tolist()
    return dict(zip(squares, norms, strict=True))
