"""How fast ``overtile view`` is on a slide of 100,000 x 100,000 px with a million objects, and in how much memory.

The one decision made here: the slide is as large as it says, but few of its bytes are its own. Every shard of a level
is a hard link of one of two that hold real stained tissue, its objects and their probability; table and manifest are
whole. What a server reads and a browser draws is the same as of a real one, and such a slide is made in half a minute.
A real Chromium is driven by real events of a mouse; what is timed is from the last event of a gesture, as the browser
had it, to the frame after the one with the last tile.

    python tests/benchmarks/bench_view.py
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from skimage.data import immunohistochemistry
from skimage.measure import label

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from flows.demo import PERIOD_PX  # noqa: E402
from pipeline.files import digest, write_json  # noqa: E402
from pipeline.geometry import Box  # noqa: E402
from pipeline.object_rows import ROW_GROUP, MeasureSection, table_schema  # noqa: E402
from pipeline.pyramid import halve_mean, halve_nearest, level_shapes  # noqa: E402
from pipeline.store import ArraySpec, SlideStore, shard_path  # noqa: E402
from tests.browser import Page, browser, page_of  # noqa: E402
from tests.commands import Command  # noqa: E402
from tests.flows.viewing import Viewed, viewing  # noqa: E402

SIDE_PX, BLOCK_PX, OBJECTS, MPP = 100_000, 2048, 1_000_000, 0.25
GESTURES, SEED = 50, 20261122
WINDOW_PX = 1400
PLAN = "a" * 64
PAINTED = (
    "Array.from({length: overtile.viewer.world.getItemCount()}, (_, at) => overtile.viewer.world.getItemAt(at))"
    ".every((item) => item.getFullyLoaded()) && !overtile.viewer.isAnimating()"
)
WATCH = """(() => {
    const said = window.gesture = { last: 0, drawn: 0 };
    const note = (event) => { said.last = event.timeStamp; };
    for (const kind of ["pointermove", "wheel"]) addEventListener(kind, note, true);
    overtile.viewer.addHandler("update-viewport", () => requestAnimationFrame((now) => { said.drawn = now; }));
})()"""
"""Notes when the last event of the mouse was, as the browser had it, and the frame after the last one drawn."""
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"


# ---- the slide -------------------------------------------------------------------------------------------------------


def make_slide(store: SlideStore) -> None:
    """Arrays with all their levels, a table, metadata and a manifest."""
    tissue = immunohistochemistry()[: PERIOD_PX[0], : PERIOD_PX[1]]
    repeats = [-(-2 * BLOCK_PX // period) for period in PERIOD_PX]
    rgb = np.moveaxis(np.tile(tissue, (*repeats, 1))[: 2 * BLOCK_PX, : 2 * BLOCK_PX], -1, 0)
    blue = rgb[2].astype(np.int16) - rgb[0]
    probability = np.clip(128 + 2 * blue, 0, 255).astype(np.uint8)[None]
    labels = label(probability[0] > 150).astype(np.uint32)
    for path, pixels in {"0": rgb, "probability/0": probability, "labels/objects/0": labels}.items():
        make_pyramid(store, path, pixels)
    factor = 32
    low = np.ones((-(-SIDE_PX // factor),) * 2, bool)
    low[:400, 1000:] = False
    store.create(ArraySpec("tissue", low.shape, "bool", BLOCK_PX, PLAN))
    for y in range(0, low.shape[0], BLOCK_PX):
        for x in range(0, low.shape[1], BLOCK_PX):
            part = low[y : y + BLOCK_PX, x : x + BLOCK_PX]
            store.write_block("tissue", PLAN, Box(y, x, y + part.shape[0], x + part.shape[1]), part)
    write_table(store)
    write_facts(store)


def make_pyramid(store: SlideStore, path: str, pixels: NDArray[Any]) -> None:
    """Write two shards of each level, and link all others to them."""
    for level, shape in enumerate(level_shapes((SIDE_PX, SIDE_PX))):
        at = f"{path[:-1]}{level}"
        store.create(ArraySpec(at, (*pixels.shape[:-2], *shape), str(pixels.dtype), BLOCK_PX, PLAN, codec(path)))
        links: list[Path] = []
        rows, cols = (-(-side // BLOCK_PX) for side in shape)
        for row in range(rows):
            for col in range(cols):
                whole = row < rows - 1 and col < cols - 1
                shard = shard_path(store.zarr / at, (row, col), pixels.ndim)
                if whole and len(links) == 2:
                    shard.parent.mkdir(parents=True, exist_ok=True)
                    os.link(links[(row + col) % 2], shard)
                    continue
                size = min(BLOCK_PX, shape[0] - row * BLOCK_PX), min(BLOCK_PX, shape[1] - col * BLOCK_PX)
                first = BLOCK_PX * ((row + col) % 2)
                core = Box(0, 0, *size).shift(row * BLOCK_PX, col * BLOCK_PX)
                part = pixels[..., first : first + size[0], : size[1]]
                part = np.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, 0), (0, size[1] - part.shape[-1])], mode="wrap")
                store.write_block(at, PLAN, core, np.ascontiguousarray(part))
                links += [shard] * whole
        halve = halve_nearest if path.startswith("labels") else halve_mean
        half = halve(pixels)
        pixels = np.concatenate((half, half), axis=-1)
        pixels = np.concatenate((pixels, pixels), axis=-2)


def codec(path: str) -> Any:
    return "lz4" if path == "0" else "zstd"


def write_table(store: SlideStore) -> None:
    """A million rows of every column."""
    rng = np.random.default_rng(SEED)
    channels = ("red", "green", "blue")
    schema = table_schema(MeasureSection(MPP, (1.0, 1.0), ("nucleus",), channels))
    columns: dict[str, Any] = {}
    for field in schema:
        if field.name == "id":
            columns[field.name] = np.arange(1, OBJECTS + 1, dtype=np.uint32)
        elif pa.types.is_dictionary(field.type):
            columns[field.name] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(OBJECTS), pa.int16()), ["nucleus"])
        elif pa.types.is_boolean(field.type):
            columns[field.name] = np.zeros(OBJECTS, bool)
        elif pa.types.is_integer(field.type):
            columns[field.name] = rng.integers(20, 4000, OBJECTS)
        elif field.name.startswith("centroid"):
            columns[field.name] = rng.random(OBJECTS) * SIDE_PX * MPP
        else:
            columns[field.name] = rng.random(OBJECTS)
    columns["area_um2"] = rng.gamma(4, 10, OBJECTS)
    pq.write_table(pa.table(columns).cast(schema), store.root / "objects.parquet", row_group_size=ROW_GROUP)


def write_facts(store: SlideStore) -> None:
    """What a run would have said: the plan, stages, and every file."""
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    names = ("red", "green", "blue")
    shown = {"channels": [{"label": name, "active": True, "color": "FFFFFF", "window": window} for name in names]}
    write_json(store.zarr / "zarr.json", {"node_type": "group", "attributes": {"ome": {"omero": shown}}})
    spec = {"class_names": ["nucleus"], "colours": None}
    image = {"shape_yx": [SIDE_PX, SIDE_PX], "mpp": MPP, "channels": names, "warnings": []}
    plan = {
        **{"key": "slide", "hashes": {"predict": PLAN, "measure": PLAN}, "threshold": 0.6, "case": None},
        "image": {**image, "level0_from_image_yx": [1.0, 1.0]},
        "model": {"name": "nuclei@2", "sha256": "0" * 64, "spec": spec},
        "compute": {"precision": "bf16", "device": "cpu", "tile_px": 1024},
        "config": {"tiles": {"block": BLOCK_PX, "tile": "auto"}, "outputs": {"scratch": None}},
    }
    facts: dict[str, Any] = {
        "ingest": {},
        "tissue": {"factor": 32, "tissue_px": SIDE_PX**2, "flags": []},
        "predict": {"pixels": SIDE_PX**2, "skipped_pixels": 0},
        "label": {"objects": OBJECTS},
        "measure": {"rows": []},
        "pyramid": {"levels": len(level_shapes((SIDE_PX, SIDE_PX)))},
    }
    stages = {name: {"facts": told, "runs": [{"seconds": 100.0}]} for name, told in facts.items()}
    files = {
        path.relative_to(store.root).as_posix(): {"size": path.stat().st_size, "sha256": "0" * 64}
        for path in store.zarr.rglob("*")
        if path.is_file()
    }
    content = {"format": 1, "plan": plan, "stages": stages, "software": {}, "files": files, "finished": "2026-11-22"}
    plain = json.loads(json.dumps(content))
    write_json(store.manifest, plain | {"sha256": digest(plain)})


# ---- looking at it ---------------------------------------------------------------------------------------------------


def measure(viewed: Viewed, page: Page, name: str) -> dict[str, Any]:
    """Seconds to the first view, of each gesture, and what they asked for."""
    began = time.perf_counter()
    page.go(f"{viewed.address}slide/{name}/")
    page.until("window.overtile && overtile.viewer.world.getItemCount() === 2")
    painted(page)
    first_view_s = time.perf_counter() - began
    page.until("document.querySelectorAll('#objects tbody tr').length")
    table_s = time.perf_counter() - began
    rng = np.random.default_rng(SEED)
    page.value(WATCH)
    zoom_to(page, 1.0)
    seconds, jumps, asked = [], [], []
    for number in range(GESTURES):
        if number % 5 == 0:
            jumps.append(jump(page, rng))
        before = len(page.requests)
        seconds.append(gesture(page, rng))
        asked.append(len(page.requests) - before)
    return {
        "first_view_s": round(first_view_s, 3),
        "first_table_s": round(table_s, 3),
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * float(np.percentile(seconds, 95)), 1),
        "slowest_ms": round(1000 * max(seconds), 1),
        "jump_p50_ms": round(1000 * statistics.median(jumps), 1),
        "most_requests": max(asked),
    }


def painted(page: Page) -> None:
    for script in (FRAME, PAINTED, FRAME):
        page.until(script)


def zoom_to(page: Page, pixels: float) -> None:
    """To so many pixels of the screen for one of the image."""
    said = f"viewer.viewport.zoomTo({pixels} * about.width / viewer.viewport.getContainerSize().x, null, true)"
    page.value(f"(() => {{ const {{ viewer, about }} = overtile; {said}; }})()")
    painted(page)


def gesture(page: Page, rng: np.random.Generator) -> float:
    """Drag by up to half of the window, or turn the wheel by two to six notches; seconds until all of it is there."""
    x, y = 300 + rng.random() * 400, 200 + rng.random() * 300
    if rng.random() < 0.5:
        across, down = (int(one) for one in rng.integers(100, (560, 350)) * rng.choice((-1, 1), 2))
        page.mouse("pressed", x, y, button="left", clickCount=1)
        page.mouse("moved", x + across, y + down, button="left", buttons=1)
        page.mouse("released", x + across, y + down, button="left", clickCount=1)
    else:
        notches, way = int(rng.integers(2, 7)), int(rng.choice((-100, 100)))
        for _ in range(notches):
            page.mouse("wheel", x, y, deltaX=0, deltaY=way)
    return taken(page)


def taken(page: Page) -> float:
    """Seconds from the last event to the frame after the last that was drawn."""
    painted(page)
    return float(page.value("gesture.drawn - gesture.last")) / 1000


def jump(page: Page, rng: np.random.Generator) -> float:
    """Go somewhere else at once, at another zoom, where nothing has been seen: as a click in the table does."""
    zoom_to(page, float(2.0 ** rng.integers(-5, 1)))
    place = rng.random(2) * 0.8 + 0.1
    said = f"overtile.viewer.viewport.panTo(new OpenSeadragon.Point({place[0]}, {place[1]}), true)"
    page.value(f"(() => {{ gesture.last = performance.now(); {said}; }})()")
    return taken(page)


def peak_mib(pid: int) -> float:
    """The most memory that the process and its children have held, in MiB."""
    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        lines = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total / 1024


def main() -> None:
    """Print figures as JSON. Exit 1 where there is no browser."""
    if browser() is None:
        sys.exit("no chromium here: make browser")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        make_slide(SlideStore(out / "slide"))
        command = Command.under(Path(folder), None)
        began = time.perf_counter()
        with viewing(command, out) as viewed:
            address_s = time.perf_counter() - began
            name = viewed.names()["slide"]
            with page_of(viewed.address, Path(folder) / "profile", WINDOW_PX) as page:
                page.until("document.querySelectorAll('article img').length")
                figures = measure(viewed, page, name)
                complaints = page.complaints
            for order in ("-area_um2", "mean_probability", "centroid_x_um", "-centroid_y_um"):
                viewed.get(f"slide/{name}/objects.json?order={order}&least_area=20")
            memory = peak_mib(viewed.process.pid)
        print(json.dumps({"address_s": round(address_s, 2), **figures, "server_mib": round(memory, 1)}))
        assert complaints == [], complaints


if __name__ == "__main__":
    main()
