"""What has arrived in a folder: looked for now and then, which works on every file system, network shares too.

The one decision made here: a slide has arrived when its files have rested and are not those of the night that was last
asked for. What is complete is not looked up: a night finds that out itself, in seconds.
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
"""How often it is looked, and at most for what part of the time: a large folder far away is looked at less often."""


@dataclass(slots=True)
class FolderWatch:
    """The slides in the folders of a request, and what they looked like when a night was last asked for."""

    request: BatchRequest
    taken: dict[Path, tuple[FileState, ...]] = field(default_factory=dict)
    pause_s: float = LOOK_S

    def look(self) -> dict[Path, tuple[FileState, ...]]:
        """What has rested and was not taken as it is now."""
        began, settle_s = time.monotonic(), self.request.config.input.settle_s
        rested = [path for path in self._slides() if not settle_s or recently_modified(path, settle_s) is None]
        found = {path: file_states(path) for path in rested}
        self.pause_s = max(LOOK_S, SPARING * (time.monotonic() - began))
        return {path: states for path, states in found.items() if self.taken.get(path) != states}

    def _slides(self) -> list[Path]:
        """Those there are, and the table that chooses among them, which may change too."""
        asked = self.request.config.input
        try:
            slides = [one.path for one in find_slides(self.request.inputs, asked.pattern, self.request.out)]
        except ConfigError:  # nothing is there yet
            return []
        return slides if asked.cases is None else [*slides, Path(asked.cases)]
