"""State that a training step changes: weights, optimiser and torch's random state, on one device.

The state converts to named tensors and back with an identical next step. The tiles of a step are not part of it: they
follow from seed and step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unet_core.data.sampler import SampleBatch
from unet_core.device import multiplies_bf16, resolve_device
from unet_core.errors import DivergedError
from unet_core.networks.unet import SegmentationNetwork
from unet_core.training.config import TrainConfig
from unet_core.training.loss import Loss, map_loss_for
from unet_core.training.optimiser import gradient_norms, optimiser_for


@dataclass(frozen=True, slots=True)
class TrainState:
    """Network, optimiser and losses of a run.

    Attributes:
        model: The network that is trained.
        optimiser: Its optimiser.
        loss: Loss of the classes.
        map_loss: Loss of the maps.
        clip: Largest norm of the gradient.
        autocast: Whether to compute in bf16.
        average: Exponential mean of the weights over the steps, if one is kept.
    """

    model: SegmentationNetwork
    optimiser: torch.optim.Optimizer
    loss: Loss
    map_loss: Loss
    clip: float | None
    autocast: bool
    average: AveragedModel | None = None

    @classmethod
    def of(cls, model: SegmentationNetwork, loss: Loss, recipe: TrainConfig) -> Self:
        """Move a network to its device and build its optimiser."""
        device = resolve_device(recipe.compute.device)
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
        optimiser = optimiser_for(model.parameters(), recipe.optimiser)
        map_loss, clip = map_loss_for(recipe.maps), recipe.optimiser.clip
        average = None
        if recipe.optimiser.average:
            mean = get_ema_multi_avg_fn(recipe.optimiser.average)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            average = AveragedModel(model, multi_avg_fn=mean, use_buffers=True)
        return cls(model, optimiser, loss, map_loss, clip, learns_in_bf16(recipe, device), average)

    @property
    def judged(self) -> SegmentationNetwork:
        """The network that is validated and saved: the mean over the steps where one is kept."""
        if self.average is None:
            return self.model
        return cast("SegmentationNetwork", self.average.module)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.model.parameters()).device

    def step(self, batch: SampleBatch, rate: float) -> tuple[float, dict[str, float]]:
        """Take one optimiser step.

        Args:
            batch: Tiles of the step.
            rate: Learning rate.

        Returns:
            The loss, and the gradient norm of each level before clipping.

        Raises:
            DivergedError: Loss or gradient is not finite; nothing has changed.
        """
        self.model.train()
        loss = self.loss_of(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        value, norms = float(loss.detach()), gradient_norms(self.model)
        total = sum(norm * norm for norm in norms.values()) ** 0.5
        if not torch.isfinite(torch.tensor([value, total])).all():
            raise DivergedError(f"loss {value}, norm of the gradient {total}")
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value, norms

    def loss_of(self, batch: SampleBatch) -> Tensor:
        """Return the loss of a batch."""
        spec = self.model.spec
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (spec.mean, spec.std))
        image, target, weight = (
            part.to(self.device) for part in (batch.image_NCHW, batch.target_NHW, batch.weight_NHW)
        )
        x_NCHW = ((image - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits_NCHW = self.model(x_NCHW)
        loss = self.loss(logits_NCHW[:, : spec.class_channels], target, weight)
        if batch.maps_NMHW is None or batch.known_NMHW is None:
            return loss
        wanted, known = batch.maps_NMHW.to(self.device), batch.known_NMHW.to(self.device)
        return loss + self.map_loss(logits_NCHW[:, spec.class_channels :], wanted, known)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors on the CPU."""
        named = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            named |= {f"average/{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            named |= {f"optimiser/{index}/{key}": tensor for key, tensor in state.items() if tensor is not None}
        named["chance/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            named["chance/cuda"] = torch.cuda.get_rng_state()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state from the result of `tensors`."""
        self.model.load_state_dict(_below("model/", tensors))
        if self.average is not None:
            self.average.load_state_dict(_below("average/", tensors))
        parameters = list(self.model.parameters())
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimiser/", tensors).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = _laid_out_as(parameters[int(index)], tensor)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["chance/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["chance/cuda"])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return the tensor with the parameter's strides; another order of summation could round differently."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def use_threads(threads: int | Literal["auto"]) -> None:
    """Set torch's number of threads; `auto` is one per core. Results repeat for equal numbers of threads."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if threads == "auto" else threads)


def learns_in_bf16(recipe: TrainConfig, device: str) -> bool:
    """Return whether to use bf16 autocast; ``auto``: where it is fast."""
    if recipe.compute.precision == "auto":
        return multiplies_bf16(device)
    return recipe.compute.precision == "bf16"
