"""The viewer's pages in a browser, on a real result, compared with its arrays."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.segmentation import find_boundaries

from flows.batch.history import note
from flows.view import tile_renderer
from pipeline.storage.lock import slide_lock
from tests.conftest import skip_or_fail
from tests.support.browser import Page, browser, page_of
from tests.support.commands import Command
from tests.support.faults.trees import Finished
from tests.unit.flows.reports.test_batch_html import HOSTILE, add
from tests.unit.flows.viewing import Viewed, viewing

SEED, PLACES, SIDE_PX = 20261122, 5, 96
MOST_REQUESTS = 80
TITLES = "[...document.querySelectorAll('article h2')].map((one) => one.textContent)"
NEW = "[...document.querySelectorAll('article')].find((one) => one.querySelector('h2').textContent === 'new')"
STATE = f"{NEW}.querySelector('.state').textContent"
ITEMS = "Array.from({length: overtile.viewer.world.getItemCount()}, (_, at) => overtile.viewer.world.getItemAt(at))"
PAINTED = (
    f"({ITEMS}).every((item) => item.getOpacity() === 0 || item.getFullyLoaded()) && !overtile.viewer.isAnimating()"
)

NAPARI = """
import json, sys
import numpy as np
from napari_ome_zarr import napari_get_reader
layers = [(np.asarray(levels[0]), meta, kind) for levels, meta, kind in napari_get_reader(sys.argv[1])(sys.argv[1])]
print(json.dumps([[kind, list(meta["scale"]), pixels.shape, int(pixels.sum())] for pixels, meta, kind in layers]))
"""
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"


@dataclass(frozen=True)
class Opened:
    """A browser connected to a running viewer, and the results folder."""

    page: Page
    viewed: Viewed
    out: Path

    @property
    def store(self) -> Path:
        return self.out / "b" / "slide.ome.zarr"

    def array(self, path: str) -> NDArray[Any]:
        found = zarr.open_array(self.store / path, mode="r")
        return np.asarray(found[:])

    def until_painted(self) -> None:
        """Wait until the view has requested its tiles and all of them are drawn."""
        for script in (FRAMES, PAINTED, FRAMES):
            self.page.until(script)

    def show(self, *names: str, opacity: float = 1) -> None:
        """Show exactly these layers."""
        for name in self.page.value("Object.keys(overtile.about.layers)"):
            on = json.dumps(name in names)
            self.page.value(
                f"(() => {{ const row = document.getElementById('layer-{name}');"
                f"row.querySelector('[type=range]').value = {opacity};"
                f"const box = row.querySelector('[type=checkbox]');"
                f"if (box.checked !== {on}) box.click(); else row.dispatchEvent(new Event('input')); }})()"
            )
        self.page.until(f"{json.dumps(sorted(names))}.every((name) => overtile.layers.items.get(name))")
        self.until_painted()

    def centre(self, y: int, x: int) -> tuple[float, float]:
        """Centre the view on the upper left corner of a pixel at full zoom; return its window position."""
        self.page.value(
            "(() => { const { viewer, about } = overtile, size = viewer.viewport.getContainerSize();"
            f"viewer.viewport.zoomTo(about.width / size.x, null, true);"
            f"const [x, y] = [{x} + size.x % 2 / 2, {y} + size.y % 2 / 2];"
            "viewer.viewport.panTo(new OpenSeadragon.Point(x / about.width, y / about.width), true);"
            "viewer.forceRedraw(); })()"
        )
        self.until_painted()
        box = self.page.value(
            "(() => { const { x, y, width, height } = document.getElementById('view').getBoundingClientRect();"
            " return [x + Math.floor(width / 2), y + Math.floor(height / 2)]; })()"
        )
        return box[0], box[1]

    def seen(self, y: int, x: int) -> NDArray[np.uint8]:
        """Screenshot of the square around a pixel at full zoom."""
        left, top = self.centre(y, x)
        half = SIDE_PX // 2
        shot = Image.open(io.BytesIO(self.page.part(left - half, top - half, SIDE_PX, SIDE_PX)))
        return np.asarray(shot.convert("RGB"))


def square(pixels: NDArray[Any], y: int, x: int) -> NDArray[Any]:
    half = SIDE_PX // 2
    return pixels[..., y - half : y + half, x - half : x + half]


def soften(path: Path) -> None:
    """Blur the probability, which this small network outputs as 0 or 1 only, so that it takes every value."""
    array = zarr.open_array(path, mode="r+")
    pixels: Any = array[:]
    array[:] = np.stack([ndimage.gaussian_filter(plane, 6) for plane in pixels])


@pytest.fixture(scope="module")
def opened(finished: Finished, overtile_alone: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    if browser() is None:
        skip_or_fail("no chromium here")
    folder = tmp_path_factory.mktemp("viewed")
    out = folder / "results"
    for key in ("b", "a", HOSTILE):
        add(out, finished, key, 1)
    soften(out / "b" / "slide.ome.zarr" / "probability" / "0")
    run = {"run": "1", "who": "me", "host": "here", "pid": 1, "slides": 4, "batch": "", "models": [], "force": []}
    note(out, "began", {**run, "command": ["/bin/overtile", "segment", "slides", "--out", "results"]})
    torn = {
        "slide": "torn",
        "state": "failed",
        "stage": "ingest",
        "cause": f"{HOSTILE} cannot be decoded",
        "attempt": 1,
    }
    note(out, "ended", {"run": "1", "exit_code": 3, "states": {}, "not_complete": {"torn": torn}, "recovered": []})
    with viewing(overtile_alone, out) as viewed, page_of(viewed.address, folder / "profile", 1400) as page:
        page.until("document.querySelectorAll('article').length === 4")
        yield Opened(page, viewed, out)


@pytest.fixture(scope="module")
def slide(opened: Opened) -> Opened:
    """The page of slide b after loading."""
    opened.page.go(f"{opened.viewed.address}slide/{opened.viewed.names()['b']}/")
    opened.page.until("window.overtile && overtile.viewer.world.getItemCount() === 2")
    opened.page.until("document.querySelectorAll('#objects tbody tr').length")
    return opened


# ---- the batch -------------------------------------------------------------------------------------------------------


def test_cards_show_results_and_are_sorted_and_filtered(opened: Opened) -> None:
    page = opened.page
    assert page.value(TITLES) == [HOSTILE, "a", "b", "torn"]
    page.until("[...document.images].every((one) => one.hidden || one.naturalWidth > 0)")
    torn = page.value("[...document.querySelectorAll('article')].at(-1).innerText")
    for words in ("failed", f"at ingest: {HOSTILE} cannot be decoded", "overtile segment slides --out results"):
        assert words in torn
    rows = len(pq.read_table(opened.out / "b" / "objects.parquet"))
    assert page.value("document.querySelector('article [data-of=objects]').textContent") == str(rows)
    page.enter("[name=words]", "B")
    assert page.value(TITLES) == ["b"]
    page.enter("[name=words]", "")
    page.enter("[name=state]", "failed")
    assert page.value(TITLES) == ["torn"]
    page.enter("[name=state]", "")
    page.enter("[name=order]", "-objects")
    assert page.value(TITLES)[-1] == "torn", "missing values are last"
    page.enter("[name=order]", "key")


def test_card_follows_the_state_of_its_slide(opened: Opened, finished: Finished) -> None:
    """A slide appears, is in progress and becomes complete while the page is open."""
    page, root = opened.page, opened.out / "new"
    shutil.copytree(finished.result, root)
    manifest = (root / "manifest.json").read_bytes()
    (root / "manifest.json").unlink()
    with slide_lock(root / ".work"):
        page.until(f"({TITLES}).includes('new') && {STATE} === 'in progress'")
    page.until(f"{STATE} === 'resumable'")
    (root / "manifest.json").write_bytes(manifest)
    page.until(f"{STATE} === 'complete' && {NEW}.querySelector('img').naturalWidth > 0")
    shutil.rmtree(root)
    page.until(f"!({TITLES}).includes('new')")


def test_hostile_name_is_shown_as_text(opened: Opened) -> None:
    page = opened.page
    assert HOSTILE in page.value(TITLES)
    assert page.value("document.querySelectorAll('img[src=x]').length") == 0
    text = opened.viewed.get(f"slide/{opened.viewed.names()[HOSTILE]}/").decode()
    assert HOSTILE not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


# ---- a slide ---------------------------------------------------------------------------------------------------------


def test_full_zoom_shows_image_pixels_and_label_outlines(slide: Opened) -> None:
    image, labels = slide.array("0"), slide.array("labels/objects/0")
    probability = slide.array("probability/0")
    rng = np.random.default_rng(SEED)
    half = SIDE_PX // 2
    places = [[int(rng.integers(half, side - half)) for side in labels.shape] for _ in range(PLACES)]
    rims = find_boundaries(labels, connectivity=1, mode="inner")
    assert sum(square(rims, *place).sum() for place in places) > 100, "objects are visible"
    slide.show("image")
    for place in places:
        assert np.array_equal(slide.seen(*place), np.moveaxis(square(image, *place), 0, -1)), place
    slide.show("image", "outlines")
    painted = outlined(slide, rims)
    for place in places:
        assert np.array_equal(slide.seen(*place), square(painted, *place).transpose(1, 2, 0)), place
    slide.show("threshold")
    likeliest = probability.max(axis=0)
    between = np.argwhere((likeliest >= ceil(255 * 0.2)) & (likeliest < ceil(255 * 0.77)))
    y, x = (int(np.clip(at, half, side - half)) for at, side in zip(between[0], labels.shape, strict=True))
    for threshold in (0.2, 0.77):
        slide.page.enter("#threshold input", threshold)
        slide.page.until(f"performance.getEntriesByType('resource').some((one) => one.name.endsWith('&t={threshold}'))")
        seen = (slide.seen(y, x) == tile_renderer.THRESHOLD).all(axis=-1)
        assert np.array_equal(seen, square(likeliest >= ceil(255 * threshold), y, x)), threshold
    assert any("/tile/image/0/" in one for one in slide.page.requests)


def outlined(slide: Opened, rims: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (c, y, x) with these boundary pixels in the colours of their objects' classes."""
    painted, labels = slide.array("0").copy(), slide.array("labels/objects/0")
    table = pq.read_table(slide.out / "b" / "objects.parquet").to_pylist()
    colours = dict(slide.page.value("overtile.about.classes"))
    of_id = np.array([(0, 0, 0), *(colours[row["class"]] for row in table)], np.uint8)
    painted[:, rims] = of_id[labels[rims]].T
    return painted


def test_every_layer_can_be_shown_with_any_opacity(slide: Opened) -> None:
    assert slide.page.value("Object.keys(overtile.about.layers)") == list(
        ("image", "fills", "heat", "threshold", "tissue", "left-out", "grid", "outlines")
    )
    for layer in ("fills", "heat", "threshold", "tissue", "grid", "outlines"):
        place = (150, 512 if layer == "grid" else 560)
        slide.show("image", layer)
        full = slide.seen(*place).astype(float)
        slide.show("image", layer, opacity=0.5)
        half = slide.seen(*place)
        slide.show("image", opacity=0.5)
        bare = slide.seen(*place)
        assert (full != bare).any(), layer
        assert not np.array_equal(half, bare)
        assert not np.array_equal(half, full)
    slide.show("image", "outlines")


def test_object_at_the_pointer_is_displayed(slide: Opened) -> None:
    labels, page = slide.array("labels/objects/0"), slide.page
    table = pq.read_table(slide.out / "b" / "objects.parquet").to_pylist()
    row = table[len(table) // 2]
    y, x = (int(row[f"centroid_{axis}_px"]) for axis in "yx")
    ys, xs = np.nonzero(labels == row["id"])
    at = np.argmin(np.abs(ys - y) + np.abs(xs - x))
    y, x = int(np.clip(ys[at], 100, 200)), int(np.clip(xs[at], 100, 1000))
    expected = table[labels[y, x] - 1] if labels[y, x] else None
    left, top = slide.centre(y, x)
    page.mouse("moved", left - 3, top - 3)
    page.mouse("moved", left + 0.5, top + 0.5)
    under = "[...document.querySelectorAll('#under dd')].map((one) => one.textContent)"
    if expected is None:
        pytest.fail("choose another object")
    page.until(f"({under})[0] === '{expected['id']}'")
    displayed = page.value(under)
    assert displayed[1] == expected["class"]
    assert float(displayed[2].split()[0]) == pytest.approx(expected["area_um2"], abs=0.01)
    assert float(displayed[3]) == pytest.approx(expected["mean_probability"], abs=0.001)
    mpp = page.value("overtile.about.mpp")
    where = page.value("document.getElementById('where').textContent").split()
    assert [float(where[1]), float(where[3])] == pytest.approx([x * mpp, y * mpp], abs=mpp + 0.06)


def test_table_pages_sorts_filters_moves_and_downloads(slide: Opened) -> None:
    page = slide.page
    rows = pq.read_table(slide.out / "b" / "objects.parquet").to_pylist()
    ids = "[...document.querySelectorAll('#objects tbody tr')].map((one) => Number(one.cells[1].textContent))"
    largest = sorted(rows, key=lambda row: (-row["area_um2"], row["id"]))
    assert page.value(ids) == [row["id"] for row in largest[:50]]
    least = sorted(row["area_um2"] for row in rows)[len(rows) // 2]
    page.enter("[name=least_area]", least)
    kept = [row for row in largest if row["area_um2"] >= least]
    assert 0 < len(kept) < len(rows)
    page.until(f"document.getElementById('total').value.startsWith('{len(kept)} of {len(rows)} ')")
    page.value("document.querySelector('#objects th[data-of=mean_probability] button').click()")
    by_probability = [row["id"] for row in sorted(kept, key=lambda row: (-row["mean_probability"], row["id"]))[:50]]
    page.until(f"JSON.stringify({ids}) === JSON.stringify({json.dumps(by_probability)})")
    labels, wanted = slide.array("labels/objects/0"), [row["id"] for row in kept]
    rims = find_boundaries(labels, connectivity=1, mode="inner")
    chosen_rims = rims & np.isin(labels, wanted)
    y, x = (int(at[0]) for at in np.nonzero(rims & ~chosen_rims))
    place = [int(np.clip(at, SIDE_PX // 2, side - SIDE_PX // 2)) for at, side in zip((y, x), labels.shape, strict=True)]
    slide.show("image", "outlines")
    assert np.array_equal(slide.seen(*place), square(outlined(slide, chosen_rims), *place).transpose(1, 2, 0))
    drawn = page.value(
        "[...document.querySelectorAll('#by-area title')].map((one) => Number(one.textContent.split(': ')[1]))"
    )
    assert sum(drawn) == len(kept)
    assert _downloaded(page) == sorted(row["id"] for row in kept)
    page.value("document.querySelectorAll('#objects tbody input')[1].click()")
    assert _downloaded(page) == [by_probability[1]]
    chosen = next(row for row in rows if row["id"] == by_probability[0])
    page.value("document.querySelector('#objects tbody tr').click()")
    slide.until_painted()
    centre = page.value("(() => { const { x, y } = overtile.viewer.viewport.getCenter(); return [x, y]; })()")
    wide = page.value("overtile.about.width * overtile.about.mpp")
    assert centre[0] * wide == pytest.approx(chosen["centroid_x_um"], abs=0.5)
    assert page.value("document.querySelectorAll('#ring').length") == 1


def _downloaded(page: Page) -> list[int]:
    """Ids in the CSV that the button downloads."""
    with urlopen(page.value("document.getElementById('csv').href")) as answer:
        return list(pyarrow.csv.read_csv(io.BytesIO(answer.read()))["id"].to_pylist())


def test_pan_sends_few_requests(slide: Opened) -> None:
    page = slide.page
    slide.centre(150, 200)
    before = len(page.requests)
    left, top = slide.centre(150, 200)
    page.mouse("pressed", left, top, button="left", clickCount=1)
    for step in range(1, 11):
        page.mouse("moved", left - 30 * step, top, button="left", buttons=1)
    page.mouse("released", left - 300, top, button="left", clickCount=1)
    slide.until_painted()
    assert page.value("overtile.viewer.viewport.getCenter().x * overtile.about.width") > 300
    page.mouse("wheel", left, top, deltaX=0, deltaY=-200)
    slide.until_painted()
    assert len(page.requests) - before <= MOST_REQUESTS


def test_slide_page_shows_run_details(slide: Opened) -> None:
    manifest = json.loads((slide.out / "b" / "manifest.json").read_text())
    text = slide.page.value("document.querySelector('.run').textContent")
    for words in (manifest["plan"]["model"]["name"], manifest["software"]["zarr"], manifest["finished"], "predict"):
        assert words in text
    raw = f"{slide.viewed.address}raw/{slide.viewed.names()['b']}/slide.ome.zarr"
    assert f"napari --plugin napari-ome-zarr {raw}" in text


def test_napari_reads_the_arrays_over_http(slide: Opened) -> None:
    """The command on the page opens image and labels at the right scale."""
    if find_spec("napari_ome_zarr") is None or find_spec("aiohttp") is None:
        skip_or_fail("napari-ome-zarr or aiohttp is not installed")
    raw = f"{slide.viewed.address}raw/{slide.viewed.names()['b']}/slide.ome.zarr"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", NAPARI, raw], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arrays = {"image": slide.array("0"), "labels": slide.array("labels/objects/0")}
    expected = [[kind, [0.5, 0.5], list(array.shape), int(array.sum())] for kind, array in arrays.items()]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_no_other_host_is_contacted_and_no_browser_error_occurs(slide: Opened) -> None:
    hosts = {urlsplit(url).netloc for url in slide.page.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {slide.viewed.host}
    assert slide.page.complaints == [], slide.page.complaints
