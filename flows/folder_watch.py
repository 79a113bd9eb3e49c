"""Detect new slides in a folder by polling, which works on every file system, network shares included.

A slide is new when its files are no longer being written and differ from those of the run that was last requested.
Whether its result is complete is not checked here: a run finds that out within seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from flows.batch.batch import BatchRequest
from pipeline.errors import ConfigError
from pipeline.inputs.discovery import find_slides
from pipeline.slides.modification_time import FileState, file_states, recently_modified

LOOK_S, SPARING = 10, 20
"""Seconds between scans, and the least ratio of pause to scan time: slow folders are scanned less often."""


@dataclass(slots=True)
class FolderWatch:
    """The slides in the folders of a request, and the state of their files when a run was last requested."""

    request: BatchRequest
    taken: dict[Path, tuple[FileState, ...]] = field(default_factory=dict)
    pause_s: float = LOOK_S

    def look(self) -> dict[Path, tuple[FileState, ...]]:
        """Slides that are no longer being written and are not in ``taken`` in their present state."""
        began, settle_s = time.monotonic(), self.request.config.input.settle_s
        rested = [path for path in self._slides() if not settle_s or recently_modified(path, settle_s) is None]
        found = {path: file_states(path) for path in rested}
        self.pause_s = max(LOOK_S, SPARING * (time.monotonic() - began))
        return {path: states for path, states in found.items() if self.taken.get(path) != states}

    def _slides(self) -> list[Path]:
        """All slides, and the cases table, which may change too."""
        section = self.request.config.input
        try:
            slides = [
                candidate.path for candidate in find_slides(self.request.inputs, section.pattern, self.request.out)
            ]
        except ConfigError:  # no slide yet
            return []
        return slides if section.cases is None else [*slides, Path(section.cases)]
