"""Select the slides of a batch in order, each with its own configuration, and load the models they need.

The cases table and the general configuration are merged here only. With `outputs.redact`, neither slides nor errors
that leave this module contain a slide name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flows.batch.pseudonyms import open_key_file
from pipeline.config import ModelSection, RunConfig
from pipeline.errors import ConfigError, ModelError, TableError
from pipeline.inference.ensemble import Ensemble, load_model
from pipeline.inputs.cases_table import Case, match_cases, read_cases
from pipeline.inputs.discovery import Candidate, find_slides
from pipeline.slides.modification_time import last_change


@dataclass(frozen=True, slots=True)
class SelectedSlide:
    """A slide and its configuration; ``case`` is its line of the cases table."""

    candidate: Candidate
    config: RunConfig
    case: Case | None = None


def select_slides(inputs: Sequence[Path], out: Path, config: RunConfig, *, writing: bool = True) -> list[SelectedSlide]:
    """The requested slides in order: all slides found, or those of the cases table.

    Args:
        inputs: Slides or folders of slides.
        out: Output folder; never searched for slides.
        config: General configuration. With ``outputs.redact``, slides get pseudonyms as keys.
        writing: Whether new pseudonyms are added to the key file.

    Raises:
        ConfigError: No slides are found, or the cases table or the key file is invalid.
    """
    with _without_quotes(config):
        found = _found(inputs, out, config)
    if config.outputs.redact is None:
        return found
    with open_key_file(Path(config.outputs.redact), out, writing=writing) as names:
        redacted = names.redacted([one.candidate for one in found])
    return [replace(one, candidate=candidate) for one, candidate in zip(found, redacted, strict=True)]


def _found(inputs: Sequence[Path], out: Path, config: RunConfig) -> list[SelectedSlide]:
    cases = _cases(config)
    candidates = find_slides(inputs, config.input.pattern, out)
    if config.input.order == "priority" and not any("priority" in case.columns for case in cases or ()):
        raise ConfigError("input.order=priority: expected a cases table with a column 'priority', found none")
    if cases is None:
        selected = [SelectedSlide(candidate, config) for candidate in candidates]
    else:
        named = match_cases(cases, candidates, telling=config.outputs.redact is None)
        selected = [SelectedSlide(candidate, case.config(config), case) for candidate, case in named]
    return _ordered(selected, config.input.order)


def _cases(config: RunConfig) -> tuple[Case, ...] | None:
    return None if config.input.cases is None else read_cases(Path(config.input.cases))


@contextmanager
def _without_quotes(config: RunConfig) -> Iterator[None]:
    """With ``outputs.redact``, replace errors that quote the cases table."""
    try:
        yield
    except TableError as error:
        if config.outputs.redact is None:
            raise
        raise ConfigError(
            f"{error.where}: invalid entry. The reason is withheld, because outputs.redact is set and it quotes the "
            "table: run the same command with --dry-run and without redaction to read it"
        ) from None


def _ordered(selected: list[SelectedSlide], order: str | None) -> list[SelectedSlide]:
    """The slides in processing order. Those of a cases table are in order of priority already."""
    if order == "newest":
        return sorted(selected, key=lambda slide: -last_change(slide.candidate.path))
    return sorted(selected, key=lambda slide: slide.candidate.key) if order == "name" else selected


# ---- models ----------------------------------------------------------------------------------------------------------


def models_of(chosen: Sequence[SelectedSlide], pinned: Mapping[str, str]) -> dict[ModelSection, Ensemble]:
    """Load every model of the slides once.

    Args:
        chosen: Selected slides.
        pinned: Required SHA-256 of weights, by name or path.

    Returns:
        Models by their configuration section.

    Raises:
        ModelError: A model cannot be used, or its weights differ from the pinned ones.
    """
    models: dict[ModelSection, Ensemble] = {}
    for one in chosen:
        section = one.config.model
        if section not in models and one.candidate.refused is None:
            try:
                models[section] = load_model(section)
                require_sha256(models[section], pinned.get(str(section.weights)))
            except ModelError as error:
                where = one.case.where if one.case and one.case.columns.get("model", "").strip() else None
                raise ModelError(f"{where}: {error}" if where else str(error)) from error
    return models


def pin_models(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the weights that the cases table names, by name or path."""
    with _without_quotes(config):
        sections = {case.config(config).model for case in _cases(config) or ()} - {config.model}
    return {str(section.weights): load_model(section).sha256 for section in sections}


def require_sha256(model: Ensemble, expected: str | None) -> None:
    """Check the weights of a scheduled run; None accepts any.

    Raises:
        ModelError: The weights differ from the scheduled ones.
    """
    if expected is not None and model.sha256 != expected:
        raise ModelError(
            f"{model.name}: expected the weights that were scheduled, sha256 {expected[:12]}, found "
            f"{model.sha256[:12]}. Restore them, or schedule again to use these"
        )
