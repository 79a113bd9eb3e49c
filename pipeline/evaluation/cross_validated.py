"""Models that ``evaluate --model`` accepts: a file, an ensemble, or the networks of a cross-validation run.

The network of a run that evaluates an image is chosen by the networks' own files, which list the images that were held
back. A separate table of folds could have changed since training.
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
"""Test-time augmentation, as in ``segment``: ``d4`` averages over the eight flips and quarter turns of a tile."""


@dataclass(frozen=True, slots=True)
class FoldModels:
    """Networks of a cross-validation run.

    Attributes:
        name: Name of the run.
        models: One model for each fold.
        held_back: Names of the images on which each model was not trained.
    """

    name: str
    models: tuple[Ensemble, ...]
    held_back: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, run: Path, tta: Turns) -> Self:
        """Load the networks that ``overtile train --fold all`` wrote.

        Raises:
            ConfigError: The folder has none.
            ModelError: A file is not a valid model.
        """
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
        """All networks."""
        return tuple(member for model in self.models for member in model.members)

    @property
    def spec(self) -> UNetSpec:
        """Specification that all networks share in channels, classes and resolution."""
        return self.models[0].spec

    def demand(self, names: Iterable[str]) -> None:
        """Require images that were held back by at least one network.

        Raises:
            ConfigError: All networks may have been trained on an image.
        """
        fair = {name for held in self.held_back for name in held}
        if strange := sorted(set(names) - fair):
            raise ConfigError(
                f"{strange[0]}: expected images that one of the networks of {self.name} held back, found one that none "
                "did. Evaluate images of its dataset, or name one of its files"
            )


NamedModel = Ensemble | FoldModels
"""Models that ``--model`` may name."""


def load_named(word: str, tta: Turns) -> NamedModel:
    """Load a model, an ensemble or the networks of a cross-validation run.

    Raises:
        ConfigError: The folder is not a run.
        ModelError: A file is not a valid model.
    """
    if Path(word).is_dir():
        return FoldModels.of(Path(word), tta)
    return load_model(ModelSection(weights=names_of(word), tta=tta))
