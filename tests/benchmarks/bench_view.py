"""Speed and memory of ``overtile view`` on a large slide.

The slide has 100,000 x 100,000 px and a million objects. A real Chromium is driven by mouse events. Times are measured
by its clock, from the last event of a gesture to the frame after the one with the last tile. The slide is a virtual one
(see virtual.py): every chunk can be read and every level shows tissue.

    python tests/benchmarks/bench_view.py
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from support.virtual import virtual_result

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.browser import Page, browser, page_of
from tests.support.commands import Command
from tests.unit.flows.viewing import Viewed, viewing

OBJECTS = 1_000_000
GESTURES, SEED = 50, 20261122
WINDOW_PX = 1400
PAINTED = (
    "Array.from({length: overtile.viewer.world.getItemCount()}, (_, at) => overtile.viewer.world.getItemAt(at))"
    ".every((item) => item.getFullyLoaded()) && !overtile.viewer.isAnimating()"
)
WATCH = """(() => {
    const times = window.gesture = { last: 0, drawn: 0 };
    const note = (event) => { times.last = event.timeStamp; };
    for (const kind of ["pointermove", "wheel"]) addEventListener(kind, note, true);
    overtile.viewer.addHandler("update-viewport", () => requestAnimationFrame((now) => { times.drawn = now; }));
})()"""
"""Records the time of the last mouse event, and of the frame after the last one drawn, by the browser's clock."""
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"


# ---- measuring ---------------------------------------------------------------------------------------------------


def measure(viewed: Viewed, page: Page, name: str) -> dict[str, Any]:
    """Measure seconds until the slide is shown, seconds of each gesture, and the requests of gestures."""
    began = time.perf_counter()
    page.go(f"{viewed.address}slide/{name}/")
    page.until("window.overtile && overtile.viewer.world.getItemCount() === 2")
    painted(page)
    opened_s = time.perf_counter() - began
    page.until("document.querySelectorAll('#objects tbody tr').length")
    table_s = time.perf_counter() - began
    rng = np.random.default_rng(SEED)
    page.value(WATCH)
    zoom_to(page, 1.0)
    seconds, jumps, requests = [], [], []
    for number in range(GESTURES):
        if number % 5 == 0:
            jumps.append(jump(page, rng))
        before = len(page.requests)
        seconds.append(gesture(page, rng))
        requests.append(len(page.requests) - before)
    return {
        "opened_s": round(opened_s, 3),
        "first_table_s": round(table_s, 3),
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * float(np.percentile(seconds, 95)), 1),
        "slowest_ms": round(1000 * max(seconds), 1),
        "jump_p50_ms": round(1000 * statistics.median(jumps), 1),
        "most_requests": max(requests),
    }


def painted(page: Page) -> None:
    for script in (FRAME, PAINTED, FRAME):
        page.until(script)


def zoom_to(page: Page, pixels: float) -> None:
    """Zoom so that one image pixel takes this many screen pixels."""
    zoom = f"viewer.viewport.zoomTo({pixels} * about.width / viewer.viewport.getContainerSize().x, null, true)"
    page.value(f"(() => {{ const {{ viewer, about }} = overtile; {zoom}; }})()")
    painted(page)


def gesture(page: Page, rng: np.random.Generator) -> float:
    """Drag by up to half of the window, or turn the wheel by two to six notches; return seconds until all is drawn."""
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
    """Return the seconds from the last event to the frame after the last that was drawn."""
    painted(page)
    return float(page.value("gesture.drawn - gesture.last")) / 1000


def jump(page: Page, rng: np.random.Generator) -> float:
    """Move to a random new position and zoom, as a click in the table does; return the seconds until drawn."""
    zoom_to(page, float(2.0 ** rng.integers(-5, 1)))
    x, y = rng.random(2) * 0.8 + 0.1
    pan = f"overtile.viewer.viewport.panTo(new OpenSeadragon.Point({x}, {y}), true)"
    page.value(f"(() => {{ gesture.last = performance.now(); {pan}; }})()")
    return taken(page)


def peak_mib(pid: int) -> float:
    """Return the peak memory of the process and its children in MiB."""
    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        lines = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total / 1024


def main() -> None:
    """Print figures as JSON; exit with 1 if there is no browser."""
    if browser() is None:
        sys.exit("no chromium found: run make browser")
    with tempfile.TemporaryDirectory() as folder:
        slide = virtual_result(Path(folder) / "slide", OBJECTS).root
        command = Command.under(Path(folder), None)
        began = time.perf_counter()
        with viewing(command, slide) as viewed:
            address_s = time.perf_counter() - began
            (name,) = viewed.names().values()
            with page_of("about:blank", Path(folder) / "profile", WINDOW_PX) as page:
                figures = measure(viewed, page, name)
                complaints = page.complaints
            for order in ("-area_um2", "mean_probability", "centroid_x_um", "-centroid_y_um"):
                viewed.get(f"slide/{name}/objects.json?order={order}&least_area=20")
            memory = peak_mib(viewed.process.pid)
        figures |= {"first_view_s": round(address_s + figures.pop("opened_s"), 3), "server_mib": round(memory, 1)}
        print(json.dumps({"address_s": round(address_s, 2), **figures}))
        assert complaints == [], complaints


if __name__ == "__main__":
    main()
