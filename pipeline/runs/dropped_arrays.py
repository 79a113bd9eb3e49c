"""Dropping full-resolution arrays (outputs.image=drop) and recomputing them when they are needed.

Dropped arrays are a property of the disk, not of the plan, and enter no hash. When a stage has to run and its input was
dropped, the stage that writes the input runs again under the same plan and makes the same bytes. An array is dropped by
renaming it out of the result after the OME metadata no longer name the level, so that a kill leaves the array whole or
gone. Labels then lose their coarsest level: OME-Zarr requires as many levels of labels as of the image, and labels are
needed at full resolution.

    slide.ome.zarr/0              outputs.image: drop           ->  levels 1.. stay and are what the metadata lists
    slide.ome.zarr/probability/0  outputs.probability: drop     ->  the same
    slide.ome.zarr/maps/*/0       outputs.probability: drop     ->  the same
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import OutputsSection
from pipeline.errors import DamagedError
from pipeline.stage_table import INGEST, MAPS, PREDICT, STAGE, WRITER
from pipeline.stages.pyramid import lacks_levels
from pipeline.storage.atomic_files import fsync_dir, read_json, remove, write_json
from pipeline.storage.layout import ARRAYS, IMAGE, LEVELS
from pipeline.storage.slide_store import SlideStore

MAKERS = {ARRAYS[artifact]: WRITER[artifact] for artifact in ("image", "probability", *MAPS)}
"""The arrays that can be dropped, and the stage that writes each."""


@dataclass(frozen=True, slots=True)
class StagesToRerun:
    """Complete stages that have to run again, because an array that they write was dropped and is needed."""

    stages: tuple[str, ...] = ()

    @property
    def network(self) -> bool:
        """Whether the network has to run again."""
        return PREDICT in self.stages

    def cost(self, blocks: int) -> str:
        """The cost in words."""
        reading = [f"the slide is read again ({blocks} blocks)"] if INGEST in self.stages else []
        calling = [f"the network runs again ({blocks} blocks)"] if self.network else []
        return " and ".join(reading + calling)


def unwanted(outputs: OutputsSection) -> frozenset[str]:
    """The arrays that the configuration drops."""
    settings = {path: outputs.image if path == IMAGE else outputs.probability for path in MAKERS}
    return frozenset(path for path, setting in settings.items() if setting == "drop")


def unwanted_before(manifest: Mapping[str, Any]) -> frozenset[str]:
    """The arrays that the configuration of a complete result dropped."""
    outputs = manifest["plan"]["config"]["outputs"]
    return unwanted(OutputsSection(image=outputs.get("image", "keep"), probability=outputs.get("probability", "keep")))


def stages_to_rerun(
    store: SlideStore, hashes: Mapping[str, str], outputs: OutputsSection, left_out: Collection[str] = ()
) -> StagesToRerun:
    """The complete stages that have to run again, beside those that are not complete under these hashes. Read-only.

    Args:
        store: The slide's folder.
        hashes: Plan hash of each stage, in the order in which stages run.
        outputs: Arrays that the result must keep.
        left_out: Artifacts that this slide does not have.
    """
    made = set(MAKERS) - {ARRAYS[artifact] for artifact in left_out}
    dropped = {path for path in made if not (store.zarr / path / "zarr.json").exists()}
    needed = made - unwanted(outputs)
    stages = []
    for stage in reversed(list(hashes)):  # a stage comes after all stages whose arrays it reads
        writes = {path for path, maker in MAKERS.items() if maker == stage}
        complete = _is_complete(store, stage, hashes[stage])
        if complete and writes & dropped & needed:
            stages.append(stage)
            complete = False
        if not complete:
            needed |= _read_by(store, stage, hashes) & made
    return StagesToRerun(tuple(reversed(stages)))


def _is_complete(store: SlideStore, stage: str, plan: str) -> bool:
    try:
        return store.stamped(stage) == plan
    except DamagedError:  # the stage itself will raise it
        return False


def _read_by(store: SlideStore, stage: str, hashes: Mapping[str, str]) -> set[str]:
    """The droppable arrays that a stage reads. The pyramid reads those whose first coarser level is missing."""
    if stage == WRITER[LEVELS]:
        return {path for path in MAKERS if lacks_levels(store, path, hashes[MAKERS[path]])}
    return {ARRAYS[artifact] for artifact in STAGE[stage].reads if artifact in ARRAYS} & set(MAKERS)


def mark_for_rerun(store: SlideStore, again: StagesToRerun) -> None:
    """Unstamp the stages, and the pyramid, whose metadata have to name the arrays."""
    if again.stages:
        store.unstamp([*again.stages, WRITER[LEVELS]])


def drop(store: SlideStore, outputs: OutputsSection) -> None:
    """Drop arrays from a finished result as configured; an array that has no coarser level stays.

    The end is the same when the call is killed at any moment and repeated.
    """
    for path in sorted(unwanted(outputs)):
        group = (store.zarr / path).parent
        if not group.exists():  # the network has no such map
            continue
        _list_only(group, [level for level in _listed(group) if level != "0"])
        _take_unlisted(store, group)
    labels = store.zarr / "labels" / "objects"
    if IMAGE in unwanted(outputs) and labels.exists():  # OME-Zarr requires as many levels as of the image
        _list_only(labels, _listed(labels)[: len(_listed(store.zarr))])
        _take_unlisted(store, labels)


def _listed(group: Path) -> list[str]:
    """The levels that the metadata of the group name, finest first."""
    scales = read_json(group / "zarr.json")["attributes"]["ome"]["multiscales"][0]
    return [dataset["path"] for dataset in scales["datasets"]]


def _list_only(group: Path, levels: list[str]) -> None:
    """Let the metadata of the group name only these levels, if there are any."""
    content = read_json(group / "zarr.json")
    scales = content["attributes"]["ome"]["multiscales"][0]
    if levels and levels != _listed(group):
        scales["datasets"] = [dataset for dataset in scales["datasets"] if dataset["path"] in levels]
        write_json(group / "zarr.json", content)
        fsync_dir(group)


def _take_unlisted(store: SlideStore, group: Path) -> None:
    """Remove the levels that are not named, each atomically: by a rename to a folder outside the result."""
    listed = _listed(group)
    aside = store.work / "old" / group.relative_to(store.zarr)
    for level in sorted(entry for entry in group.iterdir() if entry.name.isdigit() and entry.name not in listed):
        remove(aside / level.name)
        aside.mkdir(parents=True, exist_ok=True)
        level.replace(aside / level.name)
        fsync_dir(group)
    remove(aside)  # also left there by a drop that was killed
