"""Learning rates equal their formulas; validation history and gradient norms."""

from __future__ import annotations

import math

import pytest
import torch

from unet_core.networks.unet import UNet
from unet_core.spec import UNetSpec
from unet_core.training.config import OptimiserSection, TrainConfig
from unet_core.training.optimiser import ValidationHistory, gradient_norms, levels_of, optimiser_for, rate_at


def recipe(**sections: dict[str, object]) -> TrainConfig:
    return TrainConfig.model_validate(sections)


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.999, 1.0])
def test_rates_equal_their_formulas(progress: float) -> None:
    for kind, factor in (
        ("constant", 1.0),
        ("poly", (1 - progress) ** 0.9),
        ("cosine", (1 + math.cos(math.pi * progress)) / 2),
    ):
        given = recipe(schedule={"kind": kind, "warmup": 0}, optimiser={"rate": 0.5})
        assert rate_at(given, 7, progress, ValidationHistory()) == pytest.approx(0.5 * factor, abs=1e-15)


def test_the_warm_up_is_linear_and_ends() -> None:
    given = recipe(schedule={"kind": "constant", "warmup": 4}, optimiser={"rate": 1.0})
    assert [rate_at(given, step, 0, ValidationHistory()) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_a_plateau_lowers_the_rate_and_an_improvement_resets_the_wait() -> None:
    given = recipe(schedule={"kind": "plateau", "patience": 2, "factor": 0.1, "warmup": 0}, optimiser={"rate": 1.0})
    watch, rates = ValidationHistory(), []
    for step, dice in enumerate([0.5, 0.4, 0.4, 0.6, 0.6, 0.6, 0.5, 0.5]):
        watch = watch.after(dice, step, given)
        rates.append(rate_at(given, step, 0, watch))
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert (watch.best, watch.best_step, watch.waited) == (0.6, 3, 4)


@pytest.mark.parametrize(("monitor", "best_step"), [("dice", 1), ("loss", 2)])
def test_higher_dice_and_lower_loss_are_improvements(monitor: str, best_step: int) -> None:
    given = recipe(stopping={"monitor": monitor})
    watch = ValidationHistory()
    for step, value in enumerate([0.5, 0.9, 0.1]):
        watch = watch.after(value, step, given)
    assert watch.best_step == best_step


def test_patience_counts_validations_since_the_best() -> None:
    watch = ValidationHistory()
    over = []
    for step, value in enumerate([0.5, 0.4, 0.6, 0.6, 0.1]):
        watch = watch.after(value, step, TrainConfig())
        over.append(watch.is_over(2))
    assert over == [False, False, False, False, True]
    assert not watch.is_over(None)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_the_configured_optimiser_is_built(kind: str) -> None:
    section = OptimiserSection(kind=kind, rate=0.25, decay=0.5, momentum=0.75)  # type: ignore[arg-type]  # one of the three
    found = optimiser_for([torch.nn.Parameter(torch.ones(1))], section)
    assert type(found).__name__.lower() == kind
    assert (found.defaults["lr"], found.defaults["weight_decay"]) == (0.25, 0.5)
    assert kind != "sgd" or found.defaults["momentum"] == 0.75


def test_gradient_norms_are_those_of_each_level() -> None:
    model = UNet(UNetSpec(depth=2, width=2, in_channels=1))
    model(torch.randn(1, 1, 44, 44)).square().mean().backward()
    norms = gradient_norms(model)
    assert list(norms) == ["down.0", "down.1", "bottom", "up.0", "up.1", "join.0", "join.1", "head"]
    for level, norm in norms.items():
        own = [
            p.grad.flatten() for name, p in model.named_parameters() if name.startswith(level) and p.grad is not None
        ]
        assert norm == pytest.approx(float(torch.cat(own).norm()), rel=1e-5)


def test_levels_of_a_nested_network_are_those_of_its_inner_network() -> None:
    inner = torch.nn.ModuleDict(
        {"first": torch.nn.Linear(1, 1), "pool": torch.nn.ReLU(), "last": torch.nn.Linear(1, 1)}
    )
    assert list(levels_of(torch.nn.Sequential(torch.nn.ReLU(), inner))) == ["first", "last"]
    assert list(levels_of(torch.nn.Sequential(torch.nn.Linear(1, 1)))) == ["0"]
