"""``kill -9`` of the process group at any moment.

A kill costs at most the running blocks and changes no byte. Each kill point is a count of files on disk (block results
and shards as they appear) or a stamp. A run is killed several times, each time at a later point, and then completed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import skimage.data
import tifffile

from flows.batch.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.execution.blocks import serial
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.slide_store import SlideStore
from tests.support.faults.disk_state import ALL_STAGES, STAGES, DiskState, Slide, assert_no_block_twice, unfinished
from tests.support.make_photos import write_zarr

MODEL = Path(__file__).parents[1] / "exactness" / "golden" / "context.safetensors"
SETTINGS = ("tiles.block=512", "tiles.tile=512", "objects.threshold=0.4")
WORKERS = 2
MARK = "OVERTILE_KILL_TEST"
POLL_S = 0.004
PATIENCE_S = 600


@dataclass(frozen=True)
class Point:
    """When to kill: ``stage`` has written so many files, or (None) is stamped."""

    stage: str
    files: int | None

    def reached(self, slide: Slide) -> bool:
        if self.files is None:
            return slide.stamped(self.stage)
        return slide.stamped(self.stage) or slide.count(self.stage) >= self.files

    def __str__(self) -> str:
        return f"{self.stage} {'stamped' if self.files is None else f'{self.files} files'}"


# ---- running and killing ---------------------------------------------------------------------------------------------


@dataclass
class Runner:
    """Starts the command in its own process group, with a mark by which every child can be found again."""

    command: list[str]
    environment: dict[str, str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    group: int = 0

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command,
                env={**self.environment, MARK: self.mark},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.group = process.pid
        return process

    def marked(self) -> list[psutil.Process]:
        """Return every process with the mark or in the started group, whatever its parent."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return os.getpgid(process.pid) == self.group or process.environ().get(MARK) == self.mark
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            return False

    def ports(self) -> set[int]:
        """Return TCP ports on which marked processes listen."""
        return set().union(set(), *(self._listening(process) for process in self.marked()))

    def _listening(self, process: psutil.Process) -> set[int]:
        try:
            connections = process.net_connections(kind="tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return set()
        return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}

    def until(self, point: Point, slide: Slide, log: Path) -> set[int]:
        """Run until the point is reached, then kill the group; return the ports it listened on."""
        process = self.start(log)
        ports: set[int] = set()
        before = {stage: slide.count(stage) for stage in ALL_STAGES}
        try:
            for _ in range(int(PATIENCE_S / POLL_S)):
                if point.reached(slide):
                    break
                if not ports and slide.count(point.stage) > before[point.stage]:
                    ports = self.ports()
                try:
                    code = process.wait(timeout=POLL_S)
                except subprocess.TimeoutExpired:
                    continue
                pytest.fail(f"ended with {code} before {point}:\n{log.read_text()}")
            else:
                pytest.fail(f"never came to {point}:\n{log.read_text()}")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return ports

    def finish(self, log: Path) -> None:
        """Run the same command to its end."""
        process = self.start(log)
        try:
            assert process.wait(timeout=PATIENCE_S) == 0, log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def assert_nothing_survives(self, ports: set[int]) -> None:
        """Assert that no child, server or listening port is left; a dead process may take time to release memory."""
        _, alive = psutil.wait_procs(self.marked(), timeout=60)
        assert not alive, alive
        assert not self.marked()
        listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert not ports & listening


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Prefect database for this module alone, so that a kill does not affect other tests."""
    home = tmp_path_factory.mktemp("prefect")
    without = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**without, "PREFECT_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}


def tissue_slide(path: Path, shape_yx: tuple[int, int], tissue_yx: tuple[int, int]) -> Path:
    """Write glass with a rectangle of real tissue, repeated with odd periods, as TIFF or OME-Zarr."""
    height, width = tissue_yx
    piece = skimage.data.immunohistochemistry()[:509, :503]
    image = np.full((*shape_yx, 3), 243, np.uint8)
    tissue = np.tile(piece, (height // 509 + 1, width // 503 + 1, 1))
    image[300 : 300 + height, 200 : 200 + width] = tissue[:height, :width]
    if path.suffix == ".zarr":
        return write_zarr(path, image.transpose(2, 0, 1), mpp=None, levels=1, chunk=512)
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="deflate")
    return path


def command(slide: Path, out: Path, *settings: str) -> list[str]:
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    start = [sys.executable, "-c", "from flows.cli.main import main; main()", "segment"]
    return [*start, str(slide), "--out", str(out), "--mpp", "0.25", "--model", str(MODEL), *options]


# ---- limits on repeated work -------------------------------------------------------------------------------------


def draw_points(seed: int, totals: dict[str, int]) -> list[Point]:
    """Draw one point inside each stage and two just after a stamp, in the order of a run."""
    generator = random.Random(seed)
    files = {stage: totals[stage] * (3 if stage == "label" else 1) for stage in STAGES}
    inside = [Point(stage, generator.randint(1, int(0.85 * files[stage]))) for stage in STAGES]
    stamps = [Point(stage, None) for stage in generator.sample(STAGES, 2)]
    return sorted([*inside, *stamps], key=lambda point: (STAGES.index(point.stage), point.files is None))


def killed_and_resumed(runner: Runner, slide: Slide, points: list[Point], log: Path) -> Iterator[str]:
    """Kill at each point in turn and check what the next run repeated; yield the position of each kill."""
    totals = {line["stage"]: line["blocks"] for line in Slide(log.parent / "undisturbed" / slide.root.name).history()}
    before = None
    for point in points:
        if point.reached(slide):  # the kill before came a little late
            continue
        partials = slide.partials()
        ports = runner.until(point, slide, log)
        runner.assert_nothing_survives(ports)
        assert not (slide.root / "manifest.json").exists()
        assert len(slide.partials() - partials) <= 2 * WORKERS, "more partial files than running blocks"
        if before is not None:
            assert_no_block_twice(before, slide, totals)
        before = DiskState.of(slide)
        yield unfinished(slide)
    runner.finish(log)
    runner.assert_nothing_survives(set())
    assert before is not None
    assert_no_block_twice(before, slide, totals)


# ---- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("shape_yx", "seeds", "kills"),
    [((6500, 6100), (6, 10, 13, 22), 20), ((3300, 3100), (1, 2, 3, 4, 5), 30)],
    ids=["twenty", "thirty on a smaller slide"],
)
def test_fault_1_2_3_5_kills_change_no_byte_and_repeat_no_block(
    tmp_path: Path, environment: dict[str, str], shape_yx: tuple[int, int], seeds: Sequence[int], kills: int
) -> None:
    source = tissue_slide(tmp_path / "tissue.tif", shape_yx, (1600, 2400))
    local = f"cluster.workers={WORKERS}"
    Runner(command(source, tmp_path / "undisturbed", local), environment).finish(tmp_path / "undisturbed.log")
    undisturbed = Slide(tmp_path / "undisturbed" / "tissue")
    totals = {line["stage"]: line["blocks"] for line in undisturbed.history()}
    assert min(totals[stage] for stage in STAGES) >= shape_yx[0] * shape_yx[1] / 512**2
    assert len(undisturbed.manifest()) > 4 * min(totals.values())
    struck: Counter[str] = Counter()
    for seed in seeds:
        points = draw_points(seed, totals)
        print(f"seed {seed}: {', '.join(map(str, points))}", flush=True)
        out = tmp_path / f"seed-{seed}"
        runner = Runner(command(source, out, local), environment)
        slide = Slide(out / "tissue")
        struck.update(killed_and_resumed(runner, slide, points, tmp_path / f"seed-{seed}.log"))
        assert slide.manifest() == undisturbed.manifest()
        assert slide.tree() == undisturbed.tree()
    print(f"{struck.total()} kills struck in {dict(struck)}")
    assert struck.total() >= kills
    assert all(struck[stage] >= 3 for stage in STAGES), struck


def segmented_here(source: Path, out: Path, *settings: str) -> None:
    """Run the same slide and settings stage by stage in this process, as an undisturbed reference."""
    everything = [*SETTINGS, *settings, "input.mpp=0.25", f"model.weights={MODEL}"]
    (plan,) = plan_batch(BatchRequest(inputs=(source,), out=out, config=load_config(None, everything))).plans.values()
    run = SlideRun(plan, SlideStore(out / plan.key))
    run.prepare()
    for stage in plan.hashes:
        run.step(stage, serial)
    run.finish()


def drawn_regions(path: Path) -> Path:
    """Write a triangle over part of the tissue and a square on glass, in the form QuPath exports them."""
    triangle, square = [[210, 310], [900, 320], [500, 950], [210, 310]], [[9, 1500], [99, 1500], [99, 1599], [9, 1500]]
    geometry = {"type": "MultiPolygon", "coordinates": [[triangle], [square]]}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {"name": "tumour"}}))
    return path


@pytest.mark.parametrize(
    ("name", "stage", "drawn"),
    [
        pytest.param("tissue.tif", "predict", False, marks=pytest.mark.long),
        pytest.param("tissue.zarr", "predict", True, marks=pytest.mark.long),
        pytest.param("tissue.tif", "label", True, marks=pytest.mark.long),
    ],
    ids=["whole slide", "regions on OME-Zarr", "splitting"],
)
def test_fault_2_3_a_kill_in_a_stage_changes_no_byte_and_repeats_no_block(
    tmp_path: Path, environment: dict[str, str], prefect_server: str, *, name: str, stage: str, drawn: bool
) -> None:
    source = tissue_slide(tmp_path / name, (2000, 1900), (700, 800))
    settings = ["cluster.kind=serial"]
    settings += [f"input.regions={drawn_regions(tmp_path / 'tissue.geojson')}"] if drawn else []
    settings += ["objects.split=watershed", "objects.open_um=0.25"] if stage == "label" else []
    segmented_here(source, tmp_path / "undisturbed", *settings)
    out, undisturbed = tmp_path / "out", Slide(tmp_path / "undisturbed" / "tissue")
    slide, seed = Slide(out / "tissue"), 5
    # All 16 blocks have their components: splitting is in progress.
    point = Point("label", 16) if stage == "label" else Point("predict", random.Random(seed).randint(2, 7))
    print(f"seed {seed}: killed at {point}")
    words = command(source, out, *settings)
    runner = Runner(words, {**environment, "PREFECT_API_URL": prefect_server})
    assert list(killed_and_resumed(runner, slide, [point], tmp_path / "killed.log")) == [stage]
    assert slide.manifest() == undisturbed.manifest()
    assert slide.tree() == undisturbed.tree()
