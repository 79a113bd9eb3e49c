"""Kills before every change of the disk, with and without a power loss.

A run is observed below Python, so that writes by zarr, Arrow and gzip count too. Its folder is copied before each
change, which is the state that ``kill -9`` would leave. The copies become slides of their own, completed by one
command. (Runs that are really killed are in test_kill.py and test_faults_storage.py.)
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import Command, is_complete, result_digests
from tests.support.faults.disk_state import DiskState, Slide, assert_no_block_twice, unfinished
from tests.support.faults.power import lose_power
from tests.support.faults.preload import Change, Preload, Rule, read_journal, times
from tests.support.faults.trees import SHARDS, Finished

Record = Callable[[str, object], None]
Make = Callable[["KilledState", Path], Path]

NAMED = "overview.png"
"""Contains the slide's name, and so differs between copies."""
STRUCK = ("ingest", "predict", "label", "manifest")
"""Stages tested as separate cases."""
SHAPES = ("mkdir", "rename", "unlink", "rmdir")
"""Changes that each leave another tree; writes in between go to files that are never read."""
BATCH = 40
SEED = 20


@dataclass(frozen=True)
class KilledState:
    """The state that a kill before one change would leave: the slide's folder, and all changes before it."""

    number: int
    folder: Path
    before: tuple[Change, ...]

    @property
    def stage(self) -> str:
        """The stage that was running."""
        return unfinished(Slide(self.folder))


@dataclass(frozen=True)
class Watched:
    """An undisturbed run, and the state that a kill before each of its changes would have left."""

    lefts: tuple[KilledState, ...]


@pytest.fixture(scope="module")
def watched(
    overtile: Command, preload: Preload, finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    root = folder / "out" / "slide"
    noting, journal = preload.watched(overtile, root)
    copying, counters = preload.under(noting, *(Rule(shape, "/out/slide/", "copy") for shape in SHAPES))
    ran = copying.segment(finished.slide, folder / "out")
    assert ran.code == 0, ran.transcript
    lefts = {left.number: left for counter in counters for left in _lefts(counter)}
    assert len(lefts) > 120
    whole = read_journal(journal)
    assert all(left.before == tuple(whole[: left.number]) for left in lefts.values())
    return Watched(tuple(lefts[number] for number in sorted(lefts)))


def _lefts(counter: Path) -> Iterator[KilledState]:
    for number in range(1, times(counter) + 1):
        folder = counter.with_name(f"{counter.name}.{number}")
        if folder.is_dir():  # not before the slide's own folder exists
            before = tuple(read_journal(folder.with_name(f"{folder.name}.journal")))
            yield KilledState(len(before), folder, before)


def assert_no_stamp_lies(root: Path) -> None:
    """Assert that what a stamp claims (three shards, or a file) exists and is not empty."""
    slide = Slide(root)
    for stage, name in SHARDS.items():
        if not slide.stamped(stage):
            continue
        of_blocks = stage in ("ingest", "predict", "label")
        files = list((root / name).parent.iterdir()) if of_blocks else [root / name]
        assert len(files) == (3 if of_blocks else 1), f"{stage} is stamped with only {files}"
        assert all(path.exists() and path.stat().st_size for path in files), f"{stage} is stamped without {files}"


def killed(left: KilledState, folder: Path) -> Path:
    """Return a copy of the state after a kill."""
    return shutil.copytree(left.folder, folder / f"killed-{left.number}")


def powerless(left: KilledState, folder: Path) -> Path:
    """Return the same state after a power loss."""
    tree = shutil.copytree(left.folder, folder / f"powerless-{left.number}")
    root = left.before[0].path

    def moved(path: Path) -> Path:
        return tree / path.relative_to(root) if path.is_relative_to(root) else path

    lose_power([Change(change.call, moved(change.path), moved(change.to)) for change in left.before], tree)
    return tree


def assert_survived(command: Command, finished: Finished, trees: Sequence[Path]) -> dict[str, int]:
    """Complete all trees with one command; results are byte-identical and no finished block is repeated.

    The trees are in the output folder. Returns the number of computed blocks, by the stage in which a tree was left.
    """
    slides = trees[0].parents[1] / "slides"
    slides.mkdir(exist_ok=True)
    for tree in trees:
        assert_no_stamp_lies(tree)
        assert not is_complete(tree), "the manifest comes last"
        os.link(finished.slide, slides / f"{tree.name}.tif")
    states = {tree: DiskState.of(Slide(tree)) for tree in trees}
    stages = {tree: unfinished(Slide(tree)) for tree in trees}
    ran = command.segment([slides / f"{tree.name}.tif" for tree in trees], trees[0].parent)
    assert ran.code == 0, ran.transcript
    totals = {line["stage"]: line["blocks"] for line in Slide(finished.result).history()}
    computed = dict.fromkeys(stages.values(), 0)
    for tree in trees:
        assert_no_block_twice(states[tree], Slide(tree), totals)
        assert result_digests(tree) | {NAMED: ""} == result_digests(finished.result) | {NAMED: ""}, tree.name
        assert is_complete(tree)
        assert not list(tree.rglob("*.partial"))
        computed[stages[tree]] += sum(ran.computed(tree.name).values())
    return computed


def test_fault_1_2_3_4_26_run_resumes_after_kill_or_power_loss(
    watched: Watched, overtile: Command, finished: Finished, tmp_path: Path, record_property: Record
) -> None:
    """One seeded position in each stage, each a case of its own."""
    generator = random.Random(SEED)
    print(f"seed {SEED}")
    chosen = [generator.choice([left for left in watched.lefts if left.stage == stage]) for stage in STRUCK]
    trees = [make(left, tmp_path / "out") for left in chosen for make in (killed, powerless)]
    computed = assert_survived(overtile, finished, trees)
    counts = ", ".join(f"{stage} {blocks}" for stage, blocks in computed.items())
    record_property("recomputed", f"blocks left to do, of {len(trees)} slides: {counts}; none twice")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("make", [killed, powerless])
def test_fault_1_2_3_4_26_at_every_change_of_the_disk(
    watched: Watched, overtile: Command, finished: Finished, tmp_path: Path, record_property: Record, make: Make
) -> None:
    for first in range(0, len(watched.lefts), BATCH):
        trees = [make(left, tmp_path / f"from-{first}" / "out") for left in watched.lefts[first : first + BATCH]]
        assert_survived(overtile, finished, trees)
    record_property("recomputed", f"{make.__name__} at {len(watched.lefts)} places, no safe block twice")
