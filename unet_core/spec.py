"""Description of a network: architecture, input normalisation, resolution and classes.

The frozen model is stored in the header of the model file and holds everything besides the weights that a prediction
depends on, so no outside setting can contradict it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from unet_core.normalisation import Normalisation, Rows, StainMethod
from unet_core.optical_density import StainStatistics

Colour = tuple[
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
]


MapName = Literal["distance", "centre", "boundary"]
"""Output maps beside the foreground, each in 0..1.

distance: distance to the edge of the object over its maximum in the object.
centre: Gaussian around the centre of each object. boundary: outline of each object.
"""

SEED_MAPS: tuple[MapName, ...] = ("distance", "centre")
"""Maps that can hold seeds, in the order in which they are chosen where none is stated."""

UNSEEN = ("padding", "up", "skip", "head", "mpp", "mean", "std")
"""Fields that tensors do not determine: a conversion of foreign weights has to state them, defaults included."""

_NO_CHOICE: dict[str, dict[str, Any]] = {
    "unet++": {"depth": 4, "padding": "same", "norm": "batch", "up": "transposed", "skip": "concat"},
    "attention": {"padding": "same", "norm": "batch", "up": "transposed", "skip": "concat"},
}
"""Fields for which an architecture has only one value."""

_LATER = ("architecture", "stain_normalisation", "stain_target", "equalise", "rescale", "maps", "objects")
"""Fields that are stored only if they differ from their defaults."""


def _half_each(data: dict[str, Any]) -> tuple[float, ...]:
    channels: int = data["in_channels"]
    return (0.5,) * channels


def _quarter_each(data: dict[str, Any]) -> tuple[float, ...]:
    channels: int = data["in_channels"]
    return (0.25,) * channels


def _numbered(data: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(1, data["classes"]))


class ObjectSettings(BaseModel):
    """How the outputs of a network become objects, as chosen on training images.

    Attributes:
        method: `components`: connected components of the foreground. `seeds`: each component is split by a watershed
            of a map. `boundary`: the same with the inverted map of boundaries, so the insides of the outlines are
            grown back to the foreground.
        source: The map of `seeds`.
        depth: Depth of a dent between two maxima of the (inverted) map that splits an object, 0..1.
        max_area_um2: Largest object that is kept; None: no limit. In pixels for a network without `mpp`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["components", "boundary", "seeds"] = "components"
    source: Literal["distance", "centre"] = "distance"
    depth: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_area_um2: Annotated[float, Field(gt=0)] | None = None

    @property
    def map_name(self) -> MapName | None:
        """The map that the method reads."""
        return {"components": None, "boundary": "boundary", "seeds": self.source}[self.method]


class UNetSpec(BaseModel):
    """Description of a network. Its input is x = (image / dtype max - mean) / std.

    Attributes:
        architecture: U-Net (Ronneberger et al. 2015), U-Net++ (Zhou et al. 2018) or Attention U-Net (Oktay et al.
            2018). The last two are MONAI's; their `dropout` follows each convolution, not once at the bottom.
        depth: Number of poolings.
        width: Channels at full resolution; level i has width * growth**i.
        classes: 1 + k, background included. Class 0 is background; a softmax head has a channel for it, a sigmoid head
            has none.
        mpp: Micrometres per pixel; None if unknown.
        mean: Mean of each channel, for a range of 0..1.
        std: Standard deviation of each channel, for a range of 0..1.
        threshold: Probability from which on a pixel is foreground, for one class.
        min_area_um2: Smallest object that is kept; in pixels for a network without `mpp`.
        stain_mean: Mean over the training cells of their mean optical density (`unet_core.optical_density`).
        stain_covariance: Covariance of the same.
        stain_normalisation: Method that brings a slide to the colours of the training images, by a map that is fitted
            once per slide (`unet_core.normalisation`, which defines `stain_target`).
        equalise: Whether histograms are equalised too.
        rescale: Whether the intensities of each channel are rescaled per slide, for fluorescence.
        maps: Output maps beside the foreground: a channel of logits each, after those of the classes.
        objects: How outputs become objects; None: connected components of the foreground.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: Literal["unet", "unet++", "attention"] = "unet"
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    width: Annotated[int, Field(ge=1, le=4096)] = 64
    growth: Annotated[int, Field(ge=1, le=8)] = 2
    in_channels: Annotated[int, Field(ge=1, le=4096)] = 3
    classes: Annotated[int, Field(ge=2, le=256)] = 2
    padding: Literal["valid", "same"] = "valid"
    norm: Literal["none", "batch"] = "none"
    up: Literal["transposed", "nearest", "bilinear"] = "transposed"
    skip: Literal["concat", "add", "none"] = "concat"
    head: Literal["softmax", "sigmoid"] = "softmax"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mpp: Annotated[float, Field(gt=0)] | None = None
    mean: tuple[float, ...] = Field(default_factory=_half_each)
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(default_factory=_quarter_each)
    class_names: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default_factory=_numbered)
    colours: tuple[Colour, ...] | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    min_area_um2: Annotated[float, Field(ge=0)] = 0.0
    stain_mean: tuple[float, ...] | None = None
    stain_covariance: tuple[tuple[float, ...], ...] | None = None
    stain_normalisation: StainMethod = "none"
    stain_target: Rows | None = None
    equalise: bool = False
    rescale: bool = False
    maps: tuple[MapName, ...] = ()
    objects: ObjectSettings | None = None

    @model_serializer(mode="wrap")
    def _plain_as_ever(self, fields_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out fields of later versions that have their default, so files of plain U-Nets keep their bytes."""
        fields: dict[str, Any] = fields_of(self)
        for name in _LATER:
            if getattr(self, name) == type(self).model_fields[name].default:
                fields.pop(name, None)
        return fields

    @model_validator(mode="after")
    def _the_architecture_has_it(self) -> Self:
        """Reject fields that the architecture does not support, all at once and by name."""
        only = _NO_CHOICE.get(self.architecture, {})
        wrong = [
            f"{name}={value!r}, found {getattr(self, name)!r}"
            for name, value in only.items()
            if getattr(self, name) != value
        ]
        if only and self.width < 2:
            wrong.append(f"width of 2 or more, found {self.width}")
        if wrong:
            raise ValueError(f"architecture {self.architecture!r} has no other: expected {'; '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        """Reject lists that do not have one entry per channel or per foreground class."""
        expected = {"mean": self.in_channels, "std": self.in_channels, "class_names": self.foreground}
        if self.colours is not None:
            expected["colours"] = self.foreground
        if self.stain_mean is not None:
            expected |= {"stain_mean": self.in_channels, "stain_covariance": self.in_channels}
        for name, length in expected.items():
            found = len(getattr(self, name) or ())
            if found != length:
                source = "classes - 1" if name in ("class_names", "colours") else "in_channels"
                raise ValueError(f"{name}: expected {length} entries ({source}), found {found}")
        if len(set(self.class_names)) != self.foreground:
            raise ValueError(f"class_names: expected distinct names, found {list(self.class_names)}")
        return self

    @model_validator(mode="after")
    def _colours_can_be_brought_to_the_target(self) -> Self:
        """Reject stain normalisation without RGB or without a target, and a target without normalisation."""
        if self.stain_normalisation == "none" and self.stain_target is not None:
            raise ValueError(
                "stain_target: expected stain_normalisation 'reinhard' or 'macenko' beside it, found 'none'"
            )
        if self.stain_normalisation == "none":
            return self
        method = f"stain_normalisation {self.stain_normalisation!r}"
        if self.in_channels != 3:
            raise ValueError(f"{method}: expected images of 3 channels (red, green, blue), found {self.in_channels}")
        if self.stain_target is None:
            raise ValueError(f"{method}: expected a stain_target of two rows of three numbers, found none")
        first, second = self.stain_target
        if self.stain_normalisation == "reinhard" and min(second) <= 0:
            raise ValueError(f"stain_target: expected deviations above 0 in its second row, found {list(second)}")
        if self.stain_normalisation == "macenko" and np.linalg.matrix_rank(np.array([first, second]), 1e-3) < 2:
            raise ValueError(f"stain_target: expected the densities of two stains, found {list(first)}, {list(second)}")
        return self

    @model_validator(mode="after")
    def _intensities_are_mapped_once(self) -> Self:
        if self.rescale and (self.equalise or self.stain_normalisation != "none"):
            raise ValueError("rescale: expected neither equalise nor stain_normalisation beside it, found one of them")
        return self

    @model_validator(mode="after")
    def _objects_have_their_map(self) -> Self:
        """Reject a map that is named twice, and a method whose map the network does not compute."""
        if len(set(self.maps)) < len(self.maps):
            raise ValueError(f"maps: expected distinct names, found {list(self.maps)}")
        needed = None if self.objects is None else self.objects.map_name
        if needed is not None and needed not in self.maps:
            raise ValueError(f"objects.method: expected the map {needed!r} among maps, found {list(self.maps)}")
        return self

    @model_validator(mode="after")
    def _covariance_can_be_one(self) -> Self:
        """Reject a matrix without inverse or with negative distances."""
        if self.stain_covariance is None:
            return self
        covariance = np.array(self.stain_covariance, float) if len({*map(len, self.stain_covariance)}) == 1 else None
        if covariance is None or covariance.shape[0] != covariance.shape[1] or self.stain_mean is None:
            raise ValueError("stain_covariance: expected as many rows as columns, and a stain_mean beside it")
        if not np.array_equal(covariance, covariance.T) or np.linalg.eigvalsh(covariance)[0] <= 0:
            raise ValueError("stain_covariance: expected a symmetric matrix whose eigenvalues are above 0")
        return self

    @property
    def stain(self) -> StainStatistics | None:
        """Stain of the training images; None if unknown."""
        if self.stain_mean is None or self.stain_covariance is None:
            return None
        return StainStatistics(self.stain_mean, self.stain_covariance)

    @property
    def normalisation(self) -> Normalisation | None:
        """Normalisation of a slide's colours; None if they stay unchanged."""
        if self.stain_normalisation == "none" and not self.equalise and not self.rescale:
            return None
        return Normalisation(self.stain_normalisation, self.stain_target, self.equalise, self.rescale)

    @property
    def foreground(self) -> int:
        """k, the number of classes that are not background."""
        return self.classes - 1

    @property
    def class_channels(self) -> int:
        """Channels of the logits of the classes: 1 + k under softmax, k under sigmoid."""
        return self.classes if self.head == "softmax" else self.foreground

    @property
    def out_channels(self) -> int:
        """Channels of the logits: those of the classes, then one for each map."""
        return self.class_channels + len(self.maps)

    @property
    def channels(self) -> tuple[int, ...]:
        """Feature channels of level 0 (full resolution) to level `depth` (the bottom)."""
        return tuple(self.width * self.growth**level for level in range(self.depth + 1))


_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"width": 64, "in_channels": 1, "dropout": 0.5},
    "padded": {"width": 64, "in_channels": 1, "dropout": 0.5, "padding": "same"},
    "small": {"width": 32},
    "tiny": {"width": 16},
    "compact": {"width": 16, "depth": 3, "norm": "batch"},
    "lesson": {"width": 16, "depth": 3, "padding": "same"},
    "unet++": {"architecture": "unet++", "width": 16, "padding": "same", "norm": "batch"},
    "attention": {"architecture": "attention", "width": 16, "padding": "same", "norm": "batch"},
}


def preset(name: str, **changes: Any) -> UNetSpec:
    """Return the spec of a named network; `changes` replace single fields.

    paper   572 -> 388, channels 64..1024, 31,030,658 parameters: figure 1 of the paper
    padded  the same with zero padding, 256 -> 256
    small   32..512      tiny  16..256      both valid, RGB
    compact 16..128, three levels, batch norm, valid, RGB: trains on few images in minutes
    lesson  16..128, three levels, padded: small, for teaching
    unet++, attention   16..256, padded, batch norm, RGB

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
        ValidationError: A field is invalid.
    """
    if name not in _PRESETS:
        raise ValueError(f"no preset {name!r}: expected one of {', '.join(_PRESETS)}")
    return UNetSpec(**{**_PRESETS[name], **changes})
