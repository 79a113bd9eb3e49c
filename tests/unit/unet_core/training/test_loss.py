"""Every loss equals its definition in numpy, also for empty and full masks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from unet_core.data.map_targets import MapSettings
from unet_core.spec import UNetSpec
from unet_core.training.loss import SMOOTH, LossSettings, foreground_probability, loss_for, map_loss_for

pytestmark = pytest.mark.usefixtures("one_thread")

Numbers = NDArray[np.float64]

SOFTMAX2, SOFTMAX4 = UNetSpec(), UNetSpec(classes=4)
SIGMOID1, SIGMOID3 = UNetSpec(head="sigmoid"), UNetSpec(classes=4, head="sigmoid")
HEADS = {"softmax 2": SOFTMAX2, "softmax 4": SOFTMAX4, "sigmoid 1": SIGMOID1, "sigmoid 3": SIGMOID3}
every_head = pytest.mark.parametrize("spec", HEADS.values(), ids=list(HEADS))


def only(name: str, **more: float | str) -> LossSettings:
    return LossSettings.model_validate({"cross_entropy": 0.0, "dice": 0.0, name: 1.0, **more})


def drawn(spec: UNetSpec, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, spec.out_channels, 5, 6, generator=generator)
    target = torch.randint(0, spec.classes, (2, 5, 6), generator=generator)
    return logits, target, 1 + 9 * torch.rand(2, 5, 6, generator=generator)


# ---- the definitions -------------------------------------------------------------------------------------------------


def probabilities(spec: UNetSpec, logits: torch.Tensor) -> Numbers:
    """Probabilities of every channel (n, c, y, x)."""
    z = logits.double().numpy()
    if spec.head == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-z)))
    return np.asarray(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))


def by_pixel(spec: UNetSpec, logits: torch.Tensor, target: torch.Tensor, gamma: float) -> Numbers:
    """-(1 - p_t)^gamma ln p_t of each pixel, summed over the channels of a sigmoid head; gamma 0 is cross-entropy."""
    p = probabilities(spec, logits)
    losses = np.zeros(target.shape)
    for n, y, x in np.ndindex(*target.shape):
        wanted = int(target[n, y, x])
        if spec.head == "softmax":
            right = [p[n, wanted, y, x]]
        else:
            right = [q if wanted == i else 1 - q for i, q in enumerate(p[n, :, y, x], start=1)]
        losses[n, y, x] = sum(-((1 - q) ** gamma) * math.log(q) for q in right)
    return losses


def weighted_mean(losses: Numbers, target: torch.Tensor, weight: torch.Tensor, of_class: list[float]) -> float:
    """Mean with weights of equation 2: the class weight plus the map's excess over 1."""
    w = np.array(of_class)[target.numpy()] + weight.double().numpy() - 1
    return float((losses * w).sum() / w.sum())


def overlaps(spec: UNetSpec, logits: torch.Tensor, target: torch.Tensor) -> list[tuple[float, float, float]]:
    """For each foreground class: predicted and true, only predicted, only true, summed over the batch."""
    p = probabilities(spec, logits)
    counts = []
    for index in range(1, spec.classes):
        found = p[:, index if spec.head == "softmax" else index - 1]
        true = target.numpy() == index
        counts.append((float(found[true].sum()), float(found[~true].sum()), float((1 - found)[true].sum())))
    return counts


OVERLAPS: dict[str, Callable[[float, float, float], float]] = {
    "dice": lambda both, found, true: 1 - (2 * both + SMOOTH) / (2 * both + found + true + SMOOTH),
    "jaccard": lambda both, found, true: 1 - (both + SMOOTH / 2) / (both + found + true + SMOOTH / 2),
    "tversky": lambda both, found, true: 1 - (both + SMOOTH) / (both + 0.3 * found + 0.7 * true + SMOOTH),
}


# ---- against them ----------------------------------------------------------------------------------------------------


@every_head
def test_cross_entropy_is_the_weighted_mean_over_the_pixels(spec: UNetSpec) -> None:
    logits, target, weight = drawn(spec)
    expected = weighted_mean(by_pixel(spec, logits, target, 0), target, weight, [1] * spec.classes)
    assert float(loss_for(only("cross_entropy"), spec)(logits, target, weight)) == pytest.approx(expected, rel=1e-5)


@every_head
@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_loss_equals_its_definition(spec: UNetSpec, gamma: float) -> None:
    logits, target, weight = drawn(spec)
    expected = weighted_mean(by_pixel(spec, logits, target, gamma), target, weight, [1] * spec.classes)
    found = loss_for(only("focal", focal_gamma=gamma), spec)(logits, target, weight)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@every_head
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_rare_classes_weigh_by_their_inverse_frequency(spec: UNetSpec, name: str) -> None:
    logits, target, weight = drawn(spec)
    shares = [0.9, 0.1] if spec.classes == 2 else [0.8, 0.1, 0.06, 0.04]
    weights = [1 / (spec.classes * share) for share in shares]
    assert sum(w * share for w, share in zip(weights, shares, strict=True)) == pytest.approx(1)
    losses = by_pixel(spec, logits, target, 0 if name == "cross_entropy" else 2)
    loss = loss_for(only(name, class_weights="inverse_frequency"), spec, shares)
    expected = weighted_mean(losses, target, weight, weights)
    assert float(loss(logits, target, weight)) == pytest.approx(expected, rel=1e-5)


@every_head
@pytest.mark.parametrize("name", list(OVERLAPS))
def test_overlap_losses_are_means_over_the_foreground_classes(spec: UNetSpec, name: str) -> None:
    logits, target, weight = drawn(spec)
    expected = float(np.mean([OVERLAPS[name](*counts) for counts in overlaps(spec, logits, target)]))
    assert float(loss_for(only(name), spec)(logits, target, weight)) == pytest.approx(expected, rel=1e-5)


@every_head
def test_losses_add_up_each_with_its_factor(spec: UNetSpec) -> None:
    drawn_once = drawn(spec)
    factors = {"cross_entropy": 1.0, "focal": 0.25, "dice": 2.0, "jaccard": 0.5, "tversky": 3.0}
    parts = [factor * float(loss_for(only(name), spec)(*drawn_once)) for name, factor in factors.items()]
    assert float(loss_for(LossSettings(**factors), spec)(*drawn_once)) == pytest.approx(sum(parts), rel=1e-5)


@every_head
def test_every_loss_decreases_and_accepts_half_precision(spec: UNetSpec) -> None:
    for name in ("cross_entropy", "focal", *OVERLAPS):
        logits, target, weight = drawn(spec)
        logits = logits.bfloat16().requires_grad_()
        before = loss_for(only(name), spec)(logits, target, weight)
        assert before.dtype == torch.float32
        before.backward()
        assert logits.grad is not None
        with torch.no_grad():
            after = loss_for(only(name), spec)(logits.float() - logits.grad.float(), target, weight)
        assert float(after) < float(before.detach()), name


# ---- empty and full --------------------------------------------------------------------------------------------------


def masks(spec: UNetSpec, found: int, true: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An image predicted as class `found` with certainty, of true class `true`."""
    logits = torch.full((1, spec.out_channels, 20, 30), -60.0)
    channel = found if spec.head == "softmax" else found - 1
    if channel >= 0:
        logits[:, channel] = 60.0
    return logits, torch.full((1, 20, 30), true), torch.ones(1, 20, 30)


@pytest.mark.parametrize("spec", [SOFTMAX2, SIGMOID1], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("name", list(OVERLAPS))
@pytest.mark.parametrize(("found", "true", "cost"), [(0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1)])
def test_overlap_losses_of_empty_and_full_masks(spec: UNetSpec, name: str, found: int, true: int, cost: float) -> None:
    """Empty and full predictions cost 0 if correct, else 1."""
    assert float(loss_for(only(name), spec)(*masks(spec, found, true))) == pytest.approx(cost, abs=1e-6)


@pytest.mark.parametrize("spec", [SOFTMAX2, SIGMOID1], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(("found", "true"), [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_cross_entropy_and_focal_loss_of_empty_and_full_masks(spec: UNetSpec, found: int, true: int) -> None:
    """A certain correct prediction costs 0, a wrong one the logits' distance: softmax 120, sigmoid 60."""
    cost = 0 if found == true else 120 if spec.head == "softmax" else 60
    for name in ("cross_entropy", "focal"):
        assert float(loss_for(only(name), spec)(*masks(spec, found, true))) == pytest.approx(cost, abs=1e-6)


def test_a_tile_without_objects_needs_no_special_case() -> None:
    """Overlaps are summed over the batch, also over tiles without objects."""
    right, wrong = masks(SOFTMAX2, 0, 0), masks(SOFTMAX2, 1, 0)
    logits, target, weight = (torch.cat(pair) for pair in zip(masks(SOFTMAX2, 1, 1), right, strict=True))
    assert float(loss_for(only("dice"), SOFTMAX2)(logits, target, weight)) == pytest.approx(0, abs=1e-6)
    logits, target, weight = (torch.cat(pair) for pair in zip(masks(SOFTMAX2, 1, 1), wrong, strict=True))
    assert float(loss_for(only("dice"), SOFTMAX2)(logits, target, weight)) == pytest.approx(1 / 3, abs=1e-6)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [None, [1.0], [1.0, 0.0]])
def test_a_class_without_pixels_has_no_inverse_frequency(shares: list[float] | None) -> None:
    spec = UNetSpec(class_names=("gland",))
    with pytest.raises(ValueError, match=r"needs pixels of every class \(background, gland\), found the shares"):
        loss_for(only("cross_entropy", class_weights="inverse_frequency"), spec, shares)


def test_a_sum_without_terms_and_unknown_keys_are_rejected() -> None:
    with pytest.raises(ValidationError, match="every loss has the factor 0"):
        LossSettings(cross_entropy=0.0, dice=0.0)
    with pytest.raises(ValidationError, match="dise"):
        LossSettings.model_validate({"dise": 1})


# ---- what is not to be learnt from -----------------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize("settings", [*map(only, ("cross_entropy", "focal", "dice", "jaccard", "tversky"))])
@pytest.mark.parametrize("class_weights", ["none", "inverse_frequency"])
def test_pixels_of_weight_0_do_not_affect_loss_or_gradient(
    spec: UNetSpec, settings: LossSettings, class_weights: str
) -> None:
    """The loss equals that of the other pixels alone, and the gradient there is 0."""
    logits, target, weight = drawn(spec)
    gone = torch.rand(target.shape, generator=torch.Generator().manual_seed(7)) < 0.4
    shares = np.arange(1, spec.classes + 1) / np.arange(1, spec.classes + 1).sum()
    loss = loss_for(settings.model_copy(update={"class_weights": class_weights}), spec, shares.tolist())
    logits.requires_grad_()
    found = loss(logits, target, torch.where(gone, 0, weight))
    row = logits.detach().movedim(1, -1)[~gone].T[None, :, None]
    alone = loss(row, target[~gone][None, None], weight[~gone][None, None])
    assert float(found.detach()) == pytest.approx(float(alone), rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert (logits.grad.movedim(1, -1)[gone] == 0).all()
    assert logits.grad.any()
    nothing = loss(logits, target, torch.zeros_like(weight))
    assert float(nothing.detach()) == pytest.approx(0, abs=1e-6)


def test_probabilities_of_both_heads() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0]).reshape(1, 3, 1, 1)
    softmax = foreground_probability(UNetSpec(classes=3), logits.bfloat16())
    assert softmax.dtype == torch.float32
    torch.testing.assert_close(softmax.ravel(), torch.softmax(logits.ravel(), 0)[1:])
    sigmoid = foreground_probability(UNetSpec(classes=4, head="sigmoid"), logits)
    torch.testing.assert_close(sigmoid.ravel(), torch.sigmoid(logits.ravel()))


# ---- maps ------------------------------------------------------------------------------------------------------------


def test_the_loss_of_maps_equals_its_definition() -> None:
    settings = MapSettings(names=("distance", "centre", "boundary"), distance=2.0, centre=3.0, boundary=0.5)
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(2, 3, 4, 5, generator=generator)
    wanted = torch.rand(2, 3, 4, 5, generator=generator)
    known = torch.rand(2, 3, 4, 5, generator=generator) < 0.6
    p, t = 1 / (1 + np.exp(-logits.double().numpy())), wanted.double().numpy()
    squared, entropy = (p - t) ** 2, -(t * np.log(p) + (1 - t) * np.log(1 - p))
    pixels = [2.0 * squared[:, 0], 3.0 * entropy[:, 1] * (1 + 6 * t[:, 1]), 0.5 * entropy[:, 2]]
    expected = sum(one[known[:, i].numpy()].mean() for i, one in enumerate(pixels))
    assert float(map_loss_for(settings)(logits, wanted, known)) == pytest.approx(expected, rel=1e-5)


def test_unknown_pixels_of_a_map_have_no_gradient() -> None:
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    known = torch.zeros(1, 2, 4, 4)
    known[:, 1, :2] = 1
    map_loss_for(MapSettings())(logits, torch.ones(1, 2, 4, 4), known).backward()
    assert logits.grad is not None
    assert not logits.grad[known == 0].any()
    assert (logits.grad[known == 1] != 0).all()


def test_maps_that_are_known_nowhere_cost_nothing() -> None:
    nothing = torch.zeros(1, 2, 4, 4)
    assert float(map_loss_for(MapSettings())(torch.randn(1, 2, 4, 4), nothing, nothing)) == 0
