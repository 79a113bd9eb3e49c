"""State of a slide's run on disk, and what a later run may repeat.

No code of the pipeline is used. A finished block is a file whose inode stays the same.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

STAGES = ("ingest", "predict", "label", "measure", "pyramid", "export")
ALL_STAGES = ("ingest", "tissue", *STAGES[1:], "overlay")
UNEQUAL = {"manifest.json", ".work/lock", ".work/history.jsonl"}
"""Files with times and hosts, which differ between two runs."""


def block_files(folder: Path) -> set[Path]:
    """Return finished files below a folder; names of unfinished files start with a dot."""
    found = set()
    for current, _, names in os.walk(folder):
        found.update(Path(current, name) for name in names if not name.startswith("."))
    return found


@dataclass(frozen=True)
class Slide:
    """Output folder of one slide, read without code of the pipeline."""

    root: Path

    def passes(self, stage: str) -> dict[str, set[Path]]:
        """Return the files of finished blocks for each pass of a stage."""
        zarr, work = self.root / "slide.ome.zarr", self.root / ".work"
        if stage == "label":
            small = {name: block_files(work / "label" / name) for name in ("pieces", "lookup")}
            return {**small, "shards": block_files(zarr / "labels" / "objects" / "0" / "c")}
        if stage == "pyramid":
            groups = (zarr, zarr / "probability", zarr / "labels" / "objects")
            levels = [level for group in groups if group.is_dir() for level in group.iterdir() if level.name.isdigit()]
            return {"shards": set().union(*(block_files(level / "c") for level in levels if level.name != "0"))}
        if stage in ("ingest", "predict"):
            return {"shards": block_files((zarr if stage == "ingest" else zarr / "probability") / "0" / "c")}
        return {"results": block_files(work / stage)}

    def count(self, stage: str) -> int:
        """Return the number of files of a stage's finished blocks over all its passes."""
        return sum(map(len, self.passes(stage).values()))

    def stamped(self, stage: str) -> bool:
        return (self.root / ".work" / f"{stage}.stamp").exists()

    def identities(self) -> dict[Path, tuple[int, int]]:
        """Return inode and time of every finished block's file: another inode means that the block was repeated."""
        files = set().union(*(files for stage in ALL_STAGES for files in self.passes(stage).values()))
        found = {}
        for path in files:
            status = path.stat()
            found[path] = (status.st_ino, status.st_mtime_ns)
            assert status.st_size > 0, f"{path} is empty"
        return found

    def partials(self) -> set[Path]:
        """Return files that were being written."""
        return set(self.root.rglob(".*.partial"))

    def history(self) -> list[dict[str, Any]]:
        """Return the history entries of finished stages."""
        path = self.root / ".work" / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def tree(self) -> dict[str, str]:
        """Return the digest of every file that must be the same after any number of kills."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        names = {path.relative_to(self.root).as_posix(): path for path in files}
        return {name: sha256(path.read_bytes()).hexdigest() for name, path in names.items() if name not in UNEQUAL}

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.root / "manifest.json").read_text())["files"])


@dataclass(frozen=True)
class DiskState:
    """Files on disk when a run was killed."""

    done: dict[str, dict[str, int]]
    stamped: frozenset[str]
    identities: dict[Path, tuple[int, int]]
    lines: int

    @classmethod
    def of(cls, slide: Slide) -> DiskState:
        done = {stage: {name: len(files) for name, files in slide.passes(stage).items()} for stage in ALL_STAGES}
        stamped = frozenset(stage for stage in ALL_STAGES if slide.stamped(stage))
        return cls(done, stamped, slide.identities(), len(slide.history()))


def assert_no_block_twice(before: DiskState, slide: Slide, totals: dict[str, int]) -> None:
    """Assert that the run repeated no finished block, by inodes and by its own counts."""
    after = slide.identities()
    for path, identity in before.identities.items():
        assert after.get(path, identity) == identity, f"{path} was written again"
    for line in slide.history()[before.lines :]:
        stage, done = line["stage"], before.done[line["stage"]]
        if stage in before.stamped:
            assert line["computed"] == 0, stage
            continue
        assert line["computed"] == totals[stage] - sum(done.values() if stage != "label" else [done["shards"]]), stage
        if stage == "label":
            assert line["counts"].get("pieces_blocks", 0) == totals[stage] - done["pieces"]


def unfinished(slide: Slide) -> str:
    """Return the running stage: the first one without a stamp."""
    return next((stage for stage in ALL_STAGES if not slide.stamped(stage)), "manifest")
