"""Configuration of a training run.

The defaults are the recommended values. The frozen configuration is stored in the provenance of the weights; what is
not in it (folders, images) does not change what is learnt from the same images.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from unet_core.data.augmentation import Augmentation
from unet_core.data.folds import FoldSettings
from unet_core.data.map_targets import NO_MAPS, MapSettings
from unet_core.data.mask_encoding import DataSettings
from unet_core.data.sampler import Sampling
from unet_core.model_file.header import describe, resolve
from unet_core.normalisation import Rows
from unet_core.spec import UNetSpec, preset
from unet_core.training.loss import LossSettings

CONFIGURABLE: tuple[str, ...] = (
    "architecture",
    "depth",
    "width",
    "growth",
    "padding",
    "norm",
    "up",
    "skip",
    "head",
    "dropout",
)
CONFIGURABLE += ("mpp", "stain_normalisation", "equalise", "rescale")
"""Fields of a network's spec that can be configured; the rest follows from the images."""

ANY_TARGET: Rows = ((0.6, 0.7, 0.4), (0.2, 0.8, 0.5))
"""Placeholder for the stain target until the training images are read."""

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class TrainSection(BaseModel):
    """Base of the sections: frozen, unknown keys are rejected, values are not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NetworkSection(TrainSection):
    """A preset of `unet_core.spec`, and changes to fields of the spec (null: the preset's value).

    ``start``: built-in model or file to continue from; its own spec then applies.
    """

    model_config = ConfigDict(extra="allow")

    preset: str = "compact"
    start: str | None = None

    @model_validator(mode="after")
    def _describes_a_network(self) -> Self:
        """Reject unknown keys, naming the nearest known one, and invalid networks."""
        for name in set(self.model_extra or {}) - set(CONFIGURABLE):
            similar = difflib.get_close_matches(name, CONFIGURABLE, n=1, cutoff=0.5)
            hint = f"did you mean {similar[0]!r}?" if similar else f"known: preset, start, {', '.join(CONFIGURABLE)}"
            raise ValueError(f"unknown key 'network.{name}': {hint}")
        try:
            self.spec(3, ("object",))
        except ValidationError as error:
            faults = (" ".join(map(str, (*fault["loc"], fault["msg"]))) for fault in error.errors())
            raise ValueError("; ".join(faults)) from error
        return self

    def spec(self, in_channels: int, class_names: Sequence[str], target: Rows = ANY_TARGET) -> UNetSpec:
        """Return the spec for images with these channels, classes and stain target."""
        fields = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        if fields.get("stain_normalisation", "none") != "none":
            fields["stain_target"] = target
        derived = {"in_channels": in_channels, "classes": 1 + len(class_names), "class_names": tuple(class_names)}
        return preset(self.preset, **fields, **derived)

    def resolution(self) -> float | None:
        """Return the configured micrometres per pixel, or those of the model to start from."""
        return describe(resolve(self.start)).spec.mpp if self.start else self.spec(3, ("object",)).mpp


class FoldsSection(FoldSettings):
    """How folds are drawn, and which one is held back for validation.

    ``hold_back``: number of a fold; ``all``: each in turn, one network per fold; null: none, without validation.
    """

    hold_back: Annotated[int, Field(ge=0)] | Literal["all"] | None = 0


class OptimiserSection(TrainSection):
    """Optimiser: ``rate`` is the highest learning rate, ``decay`` the weight decay, ``clip`` the largest norm.

    ``average``: decay of the exponential mean of the weights, which is validated and saved; 0: the latest weights are.
    """

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    rate: Positive = 2e-3
    decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: Positive | None = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99

    @model_serializer(mode="wrap")
    def _without_average_as_before(self, fields_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = fields_of(self)
        if not self.average:
            fields.pop("average", None)
        return fields


class ScheduleSection(TrainSection):
    """Duration and learning rate. ``steps`` takes precedence over ``minutes`` and is repeatable to the bit.

    ``plateau`` multiplies the rate by ``factor`` after ``patience`` validations without improvement.
    """

    kind: Literal["constant", "poly", "cosine", "plateau"] = "cosine"
    minutes: Positive | None = 30.0
    steps: Count | None = None
    warmup: Annotated[int, Field(ge=0)] = 50
    power: Positive = 0.9
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Count = 5

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.minutes is None and self.steps is None:
            raise ValueError("expected a number of minutes or of steps, found neither: training would never end")
        return self

    def progress(self, step: int, seconds: float, reserve_s: float = 0.0) -> float:
        """Return the finished share of the training, 0..1; `reserve_s` is the time reserved for model selection."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None, "one of the two is given"
        return min(1.0, seconds / max(1e-3, 60 * self.minutes - reserve_s))


class StoppingSection(TrainSection):
    """Validation every ``every`` steps on at most ``images`` images or windows of large ones.

    The best network by ``monitor`` is kept. Training ends after ``patience`` validations without improvement.
    """

    monitor: Literal["dice", "iou", "f1_50", "loss"] = "dice"
    every: Count = 200
    images: Count = 12
    patience: Count | None = None


class TrainComputeSection(TrainSection):
    """Device, precision and threads; ``seed`` is the source of all random numbers."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Count | Literal["auto"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class TrainConfig(TrainSection):
    """Configuration of a training run.

    Fields of later versions are left out of the stored configuration where they have no effect, so that a run that was
    started before them is the same run.
    """

    network: NetworkSection = NetworkSection()
    data: DataSettings = DataSettings()
    folds: FoldsSection = FoldsSection()
    sampling: Sampling = Sampling()
    augment: Augmentation = Augmentation()
    loss: LossSettings = LossSettings()
    maps: MapSettings = MapSettings()
    optimiser: OptimiserSection = OptimiserSection()
    schedule: ScheduleSection = ScheduleSection()
    stopping: StoppingSection = StoppingSection()
    compute: TrainComputeSection = TrainComputeSection()

    def with_maps_of(self, spec: UNetSpec) -> Self:
        """Return the configuration for the maps that a network has; a model to start from has its own."""
        return self.model_copy(update={"maps": self.maps.model_copy(update={"names": spec.maps})})

    @model_serializer(mode="wrap")
    def _without_maps_as_before(self, fields_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = fields_of(self)
        if self.maps == NO_MAPS:
            fields.pop("maps", None)
        return fields
