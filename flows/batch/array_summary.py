"""Batch-level files of array jobs; they cover all slides, whichever job finishes last.

A job takes the states of other jobs' slides from the folders and the history, as `overtile status` does. It writes the
files after its own end is in the history, and again if the history has grown meanwhile, so the last job to write has
read the ends of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flows.batch.history import NAME
from flows.batch.outcome import Outcome, State
from flows.batch.status import SlideStatus, Status
from pipeline.errors import ConfigError

STATES: Mapping[str, State] = {
    "complete": "complete before",
    "in progress": "locked",
    "damaged": "failed",
    "vanished": "failed",
    "kept": "kept",
    "failed": "failed",
    "quarantined": "quarantined",
    "deferred": "deferred",
    "resumable": "resumable",
}
"""States of outcomes by states of `overtile status`; all other slides are waiting."""


def outcomes_of_all_jobs(out: Path, mine: Sequence[Outcome], slides: Mapping[str, Path]) -> list[Outcome]:
    """Outcomes of all slides in their order; those of other jobs' slides are derived from ``out``."""
    try:
        statuses = {slide.key: slide for slide in Status.of(out).slides}
    except ConfigError:  # no job has started
        statuses = {}
    own = {outcome.key: outcome for outcome in mine}
    return [own.get(key) or _outcome(key, slide, statuses.get(key)) for key, slide in slides.items()]


def _outcome(key: str, slide: Path, status: SlideStatus | None) -> Outcome:
    if status is None or status.state not in STATES:
        return Outcome(key, slide)
    cause = status.cause
    if status.state == "resumable" and not cause:
        cause = "its run ended before it was complete; the next run resumes"
    return Outcome(key, slide, STATES[status.state], status.stage or "plan", cause)


def write_until_stable(out: Path, write: Callable[[], None]) -> None:
    """Write the batch-level files, and again while the history of ``out`` grows."""
    before = None
    while before != (now := (out / NAME).stat().st_size):
        before = now
        write()
