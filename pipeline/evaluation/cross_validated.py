"""What ``--model`` of evaluate may name: a model, the mean of several, or a run over all folds.

The one decision made here: which network of a run may judge an image is told by the networks' own files, which name the
images they held back. A table of folds beside them could be another one by now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pipeline.config import ModelSection
from pipeline.errors import ConfigError
from pipeline.inference.ensemble import Ensemble, EnsembleMember, load_model, names_of
from unet_core.model_file.header import describe
from unet_core.spec import UNetSpec

Turns = Literal["none", "d4"]
"""How networks are asked, as `segment` has it: ``d4`` averages over the eight flips and quarter turns of a tile."""


@dataclass(frozen=True, slots=True)
class FoldModels:
    """The networks of a run over all folds, and the names of the images that each was not trained on."""

    name: str
    models: tuple[Ensemble, ...]
    held_back: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, run: Path, tta: Turns) -> Self:
        """Those that ``overtile train --fold all`` wrote. Raises ConfigError where there are none, ModelError."""
        files = sorted(run.glob("fold-*/best.safetensors"), key=lambda file: int(file.parent.name.split("-")[1]))
        if not files:
            raise ConfigError(
                f"--model {run}: expected a file, a built-in model, or the folder of a run over all folds, found no "
                "fold-0/best.safetensors in it. Name the file, or train with --fold all"
            )
        models = tuple(load_model(ModelSection(weights=str(file), tta=tta)) for file in files)
        held_back = tuple(tuple(describe(file).provenance.get("held_back", ())) for file in files)
        return cls(run.resolve().name, models, held_back)

    @property
    def members(self) -> tuple[EnsembleMember, ...]:
        """All the networks."""
        return tuple(member for model in self.models for member in model.members)

    @property
    def spec(self) -> UNetSpec:
        """What holds for all: channels, classes and resolution."""
        return self.models[0].spec

    def demand(self, names: Iterable[str]) -> None:
        """Raise ConfigError for an image that each of the networks may have been trained on."""
        fair = {name for held in self.held_back for name in held}
        if strange := sorted(set(names) - fair):
            raise ConfigError(
                f"{strange[0]}: expected images that one of the networks of {self.name} held back, found one that none "
                "did. Judge the images it was trained with, or name one of its files"
            )


Named = Ensemble | FoldModels
"""What ``--model`` may name."""


def named(word: str, tta: Turns) -> Named:
    """A model, the mean of several, or a run over all folds. Raises ConfigError, ModelError."""
    if Path(word).is_dir():
        return FoldModels.of(Path(word), tta)
    return load_model(ModelSection(weights=names_of(word), tta=tta))
