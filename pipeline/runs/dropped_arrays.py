"""Full-resolution arrays that a complete result leaves out, and what it takes to have them back.

The one decision made here: what is dropped is a fact of the disk, not of a plan. Hashes do not know of it; a stage that
has to run and finds its input dropped has it made again under the same plan, to the same bytes, by the stage that makes
it. Dropping is a rename out of the result after the OME metadata has ceased to name the level, so that a kill leaves
the array either whole or gone. Labels then lose their coarsest level: OME-Zarr wants as many levels of them as of the
image, and full resolution is what labels are for.

    slide.ome.zarr/0              outputs.image: drop           ->  levels 1.. stay and are what the metadata lists
    slide.ome.zarr/probability/0  outputs.probability: drop     ->  the same
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import OutputsSection
from pipeline.errors import DamagedError
from pipeline.stage_table import INGEST, PREDICT, STAGE, WRITER
from pipeline.stages.pyramid import lacks_levels
from pipeline.storage.atomic_files import fsync_dir, read_json, remove, write_json
from pipeline.storage.layout import ARRAYS, IMAGE, LEVELS, PROBABILITY
from pipeline.storage.slide_store import SlideStore

MAKERS = {ARRAYS[artifact]: WRITER[artifact] for artifact in ("image", "probability")}
"""The arrays that can be dropped, and the stage that makes each."""


@dataclass(frozen=True, slots=True)
class StagesToRerun:
    """Stages that were complete and have to run again, because what they make was dropped and is wanted."""

    stages: tuple[str, ...] = ()

    @property
    def network(self) -> bool:
        """Whether the network would run again."""
        return PREDICT in self.stages

    def cost(self, blocks: int) -> str:
        """In words."""
        reading = [f"the slide is read again ({blocks} blocks)"] if INGEST in self.stages else []
        calling = [f"the network runs again ({blocks} blocks)"] if self.network else []
        return " and ".join(reading + calling)


def unwanted(outputs: OutputsSection) -> frozenset[str]:
    """The arrays that the configuration drops."""
    asked = {IMAGE: outputs.image, PROBABILITY: outputs.probability}
    return frozenset(path for path, kept in asked.items() if kept == "drop")


def unwanted_before(manifest: Mapping[str, Any]) -> frozenset[str]:
    """The arrays that the configuration of a complete result dropped."""
    asked = manifest["plan"]["config"]["outputs"]
    return unwanted(OutputsSection(image=asked.get("image", "keep"), probability=asked.get("probability", "keep")))


def stages_to_rerun(store: SlideStore, hashes: Mapping[str, str], outputs: OutputsSection) -> StagesToRerun:
    """What has to run beside the stages that are not complete under these hashes. Only looks."""
    gone = {path for path in MAKERS if not (store.zarr / path / "zarr.json").exists()}
    wanted = set(MAKERS) - unwanted(outputs)
    again = []
    for stage in reversed(list(hashes)):  # a stage comes after all that it reads
        makes = {path for path, maker in MAKERS.items() if maker == stage}
        complete = _is_complete(store, stage, hashes[stage])
        if complete and makes & gone & wanted:
            again.append(stage)
            complete = False
        if not complete:
            wanted |= _read_by(store, stage, hashes)
    return StagesToRerun(tuple(reversed(again)))


def _is_complete(store: SlideStore, stage: str, plan: str) -> bool:
    try:
        return store.stamped(stage) == plan
    except DamagedError:  # the stage itself will come upon it
        return False


def _read_by(store: SlideStore, stage: str, hashes: Mapping[str, str]) -> set[str]:
    """The droppable arrays that a stage reads. The pyramid reads those whose first coarser level is missing."""
    if stage == WRITER[LEVELS]:
        return {path for path in MAKERS if lacks_levels(store, path, hashes[MAKERS[path]])}
    return {ARRAYS[artifact] for artifact in STAGE[stage].reads if artifact in ARRAYS} & set(MAKERS)


def mark_for_rerun(store: SlideStore, again: StagesToRerun) -> None:
    """Let the stages run again, and the pyramid, whose metadata has to name the arrays."""
    if again.stages:
        store.unstamp([*again.stages, WRITER[LEVELS]])


def drop(store: SlideStore, outputs: OutputsSection) -> None:
    """Take out of a finished result what is not wanted; an array that has no coarser level stays.

    Killed at any moment and done again, it comes to the same end.
    """
    for path in sorted(unwanted(outputs)):
        group = (store.zarr / path).parent
        _list_only(group, [level for level in _listed(group) if level != "0"])
        _take_unlisted(store, group)
    labels = store.zarr / "labels" / "objects"
    if IMAGE in unwanted(outputs) and labels.exists():  # which OME-Zarr wants to have as many levels as the image
        _list_only(labels, _listed(labels)[: len(_listed(store.zarr))])
        _take_unlisted(store, labels)


def _listed(group: Path) -> list[str]:
    """The levels that the group's metadata names, the finest first."""
    scales = read_json(group / "zarr.json")["attributes"]["ome"]["multiscales"][0]
    return [dataset["path"] for dataset in scales["datasets"]]


def _list_only(group: Path, levels: list[str]) -> None:
    """Let the group's metadata name these levels alone, as long as there are any."""
    content = read_json(group / "zarr.json")
    scales = content["attributes"]["ome"]["multiscales"][0]
    if levels and levels != _listed(group):
        scales["datasets"] = [dataset for dataset in scales["datasets"] if dataset["path"] in levels]
        write_json(group / "zarr.json", content)
        fsync_dir(group)


def _take_unlisted(store: SlideStore, group: Path) -> None:
    """Remove the levels that are not named, each at once: by a rename to where no result is looked for."""
    listed = _listed(group)
    aside = store.work / "old" / group.relative_to(store.zarr)
    for level in sorted(entry for entry in group.iterdir() if entry.name.isdigit() and entry.name not in listed):
        remove(aside / level.name)
        aside.mkdir(parents=True, exist_ok=True)
        level.replace(aside / level.name)
        fsync_dir(group)
    remove(aside)  # also what a drop that was killed left there
