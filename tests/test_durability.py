"""A stamp never claims what a power loss could take back: the order of system calls, seen from below Python.

The observer is a small library, loaded before the C library, that notes each write, fsync, rename and mkdir. So what is
proven is what reaches the kernel, whichever of our functions or of zarr's asked for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import skimage.data
import tifffile

from tests.conftest import skip_or_fail

MODEL = Path(__file__).parent / "golden" / "context.safetensors"
UNSYNCED = ("lock", "history.jsonl")
"""Files of which nothing complete is said: a lock dies with its process, the history is for people."""
PASSING = (".work/label/pieces", ".work/label/holes", ".work/label/fill", ".work/export")
"""Blocks' small results that nobody reads once their own stage is complete."""

OBSERVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int log_fd = -1;
static const char *root;

__attribute__((constructor)) static void begin(void) {
    root = getenv("OBSERVED_ROOT");
    const char *path = getenv("OBSERVED_LOG");
    if (root && path) log_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
}

static ssize_t real_write(int fd, const void *data, size_t size) {
    NEXT(write);
    return next(fd, data, size);
}

static void note(const char *what, const char *a, const char *b) {
    char line[3 * PATH_MAX];
    if (log_fd < 0 || (!strstr(a, root) && !strstr(b, root))) return;
    int size = snprintf(line, sizeof line, "%s\t%s\t%s\n", what, a, b);
    real_write(log_fd, line, size);
}

static void note_fd(const char *what, int fd) {
    char link[64], path[PATH_MAX];
    if (log_fd < 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return;
    path[size] = 0;
    note(what, path, "");
}


ssize_t write(int fd, const void *data, size_t size) {
    ssize_t done = real_write(fd, data, size);
    if (fd != log_fd) note_fd("write", fd);
    return done;
}
int fsync(int fd) {
    NEXT(fsync);
    int code = next(fd);
    if (code == 0) note_fd("fsync", fd);
    return code;
}
int rename(const char *from, const char *to) {
    NEXT(rename);
    int code = next(from, to);
    if (code == 0) note("rename", from, to);
    return code;
}
int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    int code = next(path, mode);
    if (code == 0) note("mkdir", path, "");
    return code;
}
"""

RUN = """
import sys
from pathlib import Path
from flows.batch import BatchRequest, plan_batch
from pipeline.config import load_config
from pipeline.slide_run import SlideRun
from pipeline.store import SlideStore
from pipeline.work import serial
slide, out, model = map(Path, sys.argv[1:])
settings = ["input.mpp=0.25", "tiles.block=512", "tiles.tile=512", f"model.weights={model}"]
(plan,) = plan_batch(BatchRequest(inputs=(slide,), out=out, config=load_config(None, settings))).plans.values()
run = SlideRun(plan, SlideStore(out / plan.key))
run.prepare()
for stage in plan.hashes:
    run.step(stage, serial)
run.finish()
"""


@dataclass(frozen=True)
class Call:
    """One system call that succeeded: what it did, to which path, and where a rename led."""

    what: str
    path: Path
    to: Path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the one slide that is segmented under observation."""
    return tmp_path_factory.mktemp("durable") / "out" / "tissue"


@pytest.fixture(scope="module")
def calls(root: Path) -> list[Call]:
    """What a whole run asked of the kernel, in order, in one process."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        skip_or_fail("system calls are observed with a library that gcc builds on Linux")
    folder = root.parent.parent
    tifffile.imwrite(
        folder / "tissue.tif", skimage.data.immunohistochemistry()[:, :, :].repeat(2, axis=0), tile=(64, 64)
    )
    source, library, log = folder / "observer.c", folder / "observer.so", folder / "calls.log"
    source.write_text(OBSERVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    observed = {"LD_PRELOAD": str(library), "OBSERVED_ROOT": str(root), "OBSERVED_LOG": str(log)}
    python_path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", RUN, folder / "tissue.tif", root.parent, MODEL]
    subprocess.run(command, env={**os.environ, **python_path, **observed}, check=True)
    lines = (line.split("\t") for line in log.read_text().splitlines())
    return [Call(what, Path(path), Path(to)) for what, path, to in lines]


def claims(calls: list[Call]) -> Iterator[tuple[Path, list[Call]]]:
    """Every stamp and the manifest, with all calls before it got its name."""
    for number, call in enumerate(calls):
        if call.what == "rename" and (call.to.suffix == ".stamp" or call.to.name == "manifest.json"):
            yield call.to, calls[:number]


def test_the_observer_sees_a_whole_run(calls: list[Call], root: Path) -> None:
    stages = ["ingest", "tissue", "predict", "label", "measure", "pyramid", "export", "overlay"]
    assert [claim.stem for claim, _ in claims(calls)] == [*stages, "manifest"]
    files = {path for path in root.rglob("*") if path.is_file() and path.name not in UNSYNCED}
    assert files <= {call.to for call in calls if call.what == "rename"}, (
        "every file comes by rename, whole or not at all"
    )


def test_fault_26_every_file_is_fsynced_before_it_gets_its_name(calls: list[Call]) -> None:
    last: dict[Path, str] = {}
    renamed = 0
    for call in calls:
        if call.what == "rename" and call.path.name.endswith(".partial"):
            assert last.get(call.path) == "fsync", f"{call.to} was named before its bytes were safe"
            renamed += 1
        elif call.what in ("write", "fsync"):
            last[call.path] = call.what
    assert renamed > 20


def test_fault_26_every_name_is_durable_before_a_stamp_relies_on_it(calls: list[Call], root: Path) -> None:
    for claim, before in claims(calls):
        unsafe: dict[Path, Path] = {}
        for call in before:
            if call.what in ("rename", "mkdir"):
                name = call.to if call.what == "rename" else call.path
                unsafe[name] = name.parent
            elif call.what == "fsync":
                unsafe = {name: folder for name, folder in unsafe.items() if folder != call.path}
        lost = [name.relative_to(root).as_posix() for name in unsafe if root in name.parents]
        lost = [name for name in lost if not name.startswith(PASSING) and not name.endswith(UNSYNCED)]
        assert not lost, f"{claim.name} was written before the names of {lost[:5]} were durable"


def stage_of(path: Path) -> str:
    """The stage that writes a file of the result; "" for what belongs to none."""
    name = path.as_posix()
    whole = {"objects.parquet": "measure", "objects.geojson.gz": "export", "overview.png": "overlay"}
    level_0 = {"/probability/0/": "predict", "/labels/objects/0/": "label", "/slide.ome.zarr/tissue/": "tissue"}
    inside = next((stage for part, stage in level_0.items() if part in name), "")
    return whole.get(path.name) or inside or ("ingest" if "/slide.ome.zarr/0/" in name else "")


def test_nothing_of_a_stage_is_written_after_its_stamp(calls: list[Call]) -> None:
    stamped: set[str] = set()
    seen: set[str] = set()
    for call in calls:
        if call.what == "rename" and call.to.suffix == ".stamp":
            stamped.add(call.to.stem)
        elif call.what == "rename" and (stage := stage_of(call.to)):
            seen.add(stage)
            assert stage not in stamped, f"{call.to} was written after {stage}.stamp"
    assert seen == {"ingest", "tissue", "predict", "label", "measure", "export", "overlay"}


def test_the_manifest_s_own_name_is_durable_at_the_end(calls: list[Call], root: Path) -> None:
    named = max(number for number, call in enumerate(calls) if call.to == root / "manifest.json")
    assert any(call.what == "fsync" and call.path == root for call in calls[named:])
