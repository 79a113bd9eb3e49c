"""What the shares of a batch leave together: files that tell of all slides, whichever process ends last.

The one decision made here: a share believes the folders and the history of what is not its own, as ``overtile status``
does, and writes when its own end is in the history. If another has said something meanwhile it writes again, so the
last one to speak has heard all others.
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
"""A slide's state in the words of an outcome, by what OUT tells of it; what is not told of waits."""


def outcomes_of_all_jobs(out: Path, mine: Sequence[Outcome], slides: Mapping[str, Path]) -> list[Outcome]:
    """Outcomes of all slides, in their order: of those that are others' to do, what OUT says of them now."""
    try:
        standings = {one.key: one for one in Status.of(out).slides}
    except ConfigError:  # nobody has begun
        standings = {}
    found = {outcome.key: outcome for outcome in mine}
    return [found.get(key) or _outcome(key, slide, standings.get(key)) for key, slide in slides.items()]


def _outcome(key: str, slide: Path, standing: SlideStatus | None) -> Outcome:
    if standing is None or standing.state not in STATES:
        return Outcome(key, slide)
    cause = standing.cause
    if standing.state == "resumable" and not cause:
        cause = "its run ended before it was complete; the next run goes on"
    return Outcome(key, slide, STATES[standing.state], standing.stage or "plan", cause)


def write_until_stable(out: Path, write: Callable[[], None]) -> None:
    """Write what tells of all shares; again when one of them said something meanwhile, so that nothing is left out."""
    before = None
    while before != (now := (out / NAME).stat().st_size):
        before = now
        write()
