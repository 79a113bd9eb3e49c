"""The model of a run: one network or an averaged ensemble.

An ensemble has a name, a digest, a spec and a shape like a single network, so plans, estimates and reports need not
distinguish the two. Members must agree in resolution, channels, classes, maps and the way in which outputs become
objects. Each keeps its own normalisation, halo and step. Threshold, smallest area and depth of seeds are the means of
the members' values, and the largest area is the largest of theirs. A model of one network has the digest of that
network, so its plan hashes are those of a plain network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.config import ModelSection
from pipeline.errors import ModelError
from pipeline.storage.atomic_files import digest
from unet_core.class_map import THRESHOLD
from unet_core.errors import NetworkError
from unet_core.model_file.header import Weights, describe, resolve, sha256
from unet_core.normalisation import Normalisation
from unet_core.shapes import JointShape, ValidShape
from unet_core.spec import ObjectSettings, UNetSpec
from unet_core.tta import SYMMETRIES

COMMON = ("mpp", "in_channels", "class_names", "maps")
"""Fields of the spec in which members must agree."""


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """One network: its name, its weights file and its spec."""

    name: str
    weights: Weights
    spec: UNetSpec

    @property
    def threshold(self) -> float:
        """The network's own threshold, else one half."""
        return self.spec.threshold or THRESHOLD


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The networks of a run, averaged.

    Attributes:
        members: At least one network.
        tta: Test-time augmentation, ``none`` or ``d4``.
    """

    members: tuple[EnsembleMember, ...]
    tta: str = "none"

    @property
    def name(self) -> str:
        """Names of all members."""
        return " + ".join(member.name for member in self.members)

    @property
    def sha256(self) -> str:
        """Digest of the weights; for several networks, the digest of their digests."""
        digests = [member.weights.sha256 for member in self.members]
        return digests[0] if len(digests) == 1 else digest(digests)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The weights files."""
        return tuple(member.weights for member in self.members)

    @property
    def specs(self) -> tuple[UNetSpec, ...]:
        """The spec of each member."""
        return tuple(member.spec for member in self.members)

    @property
    def spec(self) -> UNetSpec:
        """The spec of the ensemble: the first member's, with the mean threshold and smallest area."""
        first = self.members[0].spec
        if len(self.members) == 1:
            return first
        means = {
            "threshold": fmean(member.threshold for member in self.members),
            "min_area_um2": fmean(member.spec.min_area_um2 for member in self.members),
            "objects": _mean_objects([spec.objects for spec in self.specs]),
        }
        return first.model_copy(update=means)

    @property
    def shape(self) -> JointShape:
        """Step and halo of all members together."""
        return JointShape(tuple(ValidShape.of(spec) for spec in self.specs))

    @property
    def normalisations(self) -> tuple[Normalisation | None, ...]:
        """Colour normalisation of each member; empty when no member has one."""
        requested = tuple(spec.normalisation for spec in self.specs)
        return requested if any(requested) else ()

    @property
    def passes(self) -> int:
        """Forward passes of each member for one tile."""
        return len(SYMMETRIES[self.tta])

    @property
    def pixels_depend_on(self) -> list[str]:
        """What the probabilities depend on: the weights, and the augmentation where there is one."""
        return [self.sha256] if self.tta == "none" else [self.sha256, self.tta]

    def summary(self) -> dict[str, Any]:
        """The model as JSON; keys that only some models have are left out elsewhere."""
        known: dict[str, Any] = {
            "name": self.name,
            "sha256": self.sha256,
            "spec": self.spec.model_dump(mode="json"),
            "halo_px": self.shape.halo,
            "step_px": self.shape.step,
        }
        if self.tta != "none":
            known["tta"] = self.tta
        if len(self.members) > 1:
            known["members"] = [
                {
                    "name": member.name,
                    "sha256": member.weights.sha256,
                    "threshold": member.threshold,
                    "min_area_um2": member.spec.min_area_um2,
                }
                for member in self.members
            ]
        return known


def load_model(section: ModelSection) -> Ensemble:
    """Find and describe the networks without loading their weights.

    Members are sorted by their digests, so the order in which they are listed does not matter.

    Raises:
        ModelError: A network is not found or cannot be used, or the members do not fit together.
    """
    members = sorted((_member(name) for name in section.names), key=lambda member: member.weights.sha256)
    _demand_agreement(members)
    return Ensemble(tuple(members), section.tta)


def names_of(word: str) -> tuple[str, ...]:
    """The networks that ``a+b`` names, unless a file has that name."""
    return (word,) if Path(word).is_file() else tuple(word.split("+"))


def _member(name: str) -> EnsembleMember:
    try:
        path = resolve(name)
        header = describe(path)
        return EnsembleMember(path.stem, Weights(path.resolve(), sha256(path)), header.spec)
    except (NetworkError, OSError) as error:
        raise ModelError(str(error)) from error


def _demand_agreement(members: Sequence[EnsembleMember]) -> None:
    first, *others = members
    for previous, member in zip(members, others, strict=False):
        if previous.weights.sha256 == member.weights.sha256:
            raise ModelError(
                f"{previous.weights.path} and {member.weights.path}: expected different weights to average, found the "
                "same. Name each once"
            )
    for member in others:
        for name, expected, found in _to_agree(first.spec, member.spec):
            if expected != found:
                raise ModelError(
                    f"{first.weights.path} and {member.weights.path}: expected the same {name} to average their "
                    f"probabilities, found {_plain(expected)} and {_plain(found)}. Run them apart, or train them alike"
                )


def _to_agree(one: UNetSpec, other: UNetSpec) -> Iterator[tuple[str, Any, Any]]:
    """What two members have in common: its name, and the value of each."""
    yield from ((name, getattr(one, name), getattr(other, name)) for name in COMMON)
    first, second = (spec.objects or ObjectSettings() for spec in (one, other))
    yield "objects.method", first.method, second.method
    yield "objects.source", first.map_name, second.map_name


def _mean_objects(several: Sequence[ObjectSettings | None]) -> ObjectSettings | None:
    """The settings of an ensemble; None when no member has any."""
    if not any(several):
        return None
    every = [one or ObjectSettings() for one in several]
    largest = [one.max_area_um2 for one in every]
    means = {
        "depth": fmean(one.depth for one in every),
        "max_area_um2": None if None in largest else max(area for area in largest if area is not None),
    }
    return every[0].model_copy(update=means)


def _plain(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, tuple) else str(value)
