"""Which slides a batch is asked for, in which order, each with its own configuration; and the models they need.

The one decision made here: a cases table and whoever asks are merged once, so that all that follows sees a slide and
its configuration. Where names may not be told, nothing that leaves this room tells one, refusals included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flows.batch.pseudonyms import names_of
from pipeline.config import ModelSection, RunConfig
from pipeline.errors import ConfigError, ModelError, TableError
from pipeline.inference.ensemble import Ensemble, load_model
from pipeline.inputs.cases_table import Case, choose_slides, read_cases
from pipeline.inputs.discovery import Candidate, find_slides
from pipeline.slides.modification_time import last_change


@dataclass(frozen=True, slots=True)
class SelectedSlide:
    """A slide and the configuration of its run; ``case`` is the line of the table that named it."""

    candidate: Candidate
    config: RunConfig
    case: Case | None = None


def select_slides(inputs: Sequence[Path], out: Path, config: RunConfig, *, writing: bool = True) -> list[SelectedSlide]:
    """The slides asked for, in order: all that were found, or those that the cases table names.

    With ``outputs.redact`` they go by ids, and new ones are noted in its file if ``writing``. Raises ConfigError.
    """
    with _untold(config):
        found = _found(inputs, out, config)
    if config.outputs.redact is None:
        return found
    with names_of(Path(config.outputs.redact), out, writing=writing) as names:
        redacted = names.redacted([one.candidate for one in found])
    return [replace(one, candidate=candidate) for one, candidate in zip(found, redacted, strict=True)]


def _found(inputs: Sequence[Path], out: Path, config: RunConfig) -> list[SelectedSlide]:
    cases = _cases(config)
    candidates = find_slides(inputs, config.input.pattern, out)
    if config.input.order == "priority" and not any("priority" in case.columns for case in cases or ()):
        raise ConfigError("input.order=priority: expected a cases table with a column 'priority', found none")
    if cases is None:
        chosen = [SelectedSlide(candidate, config) for candidate in candidates]
    else:
        named = choose_slides(cases, candidates, telling=config.outputs.redact is None)
        chosen = [SelectedSlide(candidate, case.config(config), case) for candidate, case in named]
    return _ordered(chosen, config.input.order)


def _cases(config: RunConfig) -> tuple[Case, ...] | None:
    return None if config.input.cases is None else read_cases(Path(config.input.cases))


@contextmanager
def _untold(config: RunConfig) -> Iterator[None]:
    """Let nothing of the cases table be quoted where names may not be told."""
    try:
        yield
    except TableError as error:
        if config.outputs.redact is None:
            raise
        raise ConfigError(
            f"{error.where}: this cannot be meant as it is written. Why is not said, because outputs.redact is set and "
            "it would tell what stands there: run the same with --dry-run and without redaction to read it"
        ) from None


def _ordered(chosen: list[SelectedSlide], order: str | None) -> list[SelectedSlide]:
    """The slides as they are to be taken. A table's are in order of its priorities already."""
    if order == "newest":
        return sorted(chosen, key=lambda one: -last_change(one.candidate.path))
    return sorted(chosen, key=lambda one: one.candidate.key) if order == "name" else chosen


# ---- models ----------------------------------------------------------------------------------------------------------


def models_of(chosen: Sequence[SelectedSlide], pinned: Mapping[str, str]) -> dict[ModelSection, Ensemble]:
    """Every model that a slide is to be segmented with, once, by what the configuration says of it.

    Raises ModelError for one that cannot be used, or whose weights are others than those ``pinned`` by SHA-256.
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
    """SHA-256 of all weights that the cases table names now, by name or path."""
    with _untold(config):
        sections = {case.config(config).model for case in _cases(config) or ()} - {config.model}
    return {str(section.weights): load_model(section).sha256 for section in sections}


def require_sha256(model: Ensemble, expected: str | None) -> None:
    """Raise ModelError when the weights are not those that were scheduled; return when any may be used."""
    if expected is not None and model.sha256 != expected:
        raise ModelError(
            f"{model.name}: expected the weights that were scheduled, sha256 {expected[:12]}, found "
            f"{model.sha256[:12]}. Bring them back, or schedule again to use these"
        )
