"""States of slides in ``overtile view``: in progress, pruned and damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.runs.prune import prune_slide
from pipeline.storage.slide_store import SlideStore
from tests.conftest import skip_or_fail
from tests.support.browser import browser, page_of
from tests.support.commands import CLASSES, Command, installed_command, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.faults.trees import Finished
from tests.unit.flows.serving import wait_for
from tests.unit.flows.viewing import viewing

LIVE_SHAPE = (2600, 2600)
STATE = "document.querySelector('article .state')?.textContent"


def test_pruned_result_is_shown_and_damaged_manifest_is_named(
    finished: Finished, overtile_alone: Command, tmp_path: Path
) -> None:
    """One slide is pruned to its table and overview; the manifest of another is truncated."""
    for key in ("cut", "pruned"):
        shutil.copytree(finished.result, tmp_path / "out" / key)
    root, manifest = tmp_path / "out" / "pruned", tmp_path / "out" / "cut" / "manifest.json"
    prune_slide(SlideStore(root), {"tables", "overview"})
    manifest.write_bytes(manifest.read_bytes()[:-10])
    with viewing(overtile_alone, tmp_path / "out") as viewed:
        cut, pruned = viewed.json("slides.json")["slides"]
        assert (cut["state"], cut["name"]) == ("damaged", None)
        assert "manifest.json" in cut["cause"]
        assert (pruned["state"], pruned["picture"]) == ("complete", False)
        page = viewed.get(f"slide/{pruned['name']}/").decode()
        assert "The image was pruned to free disk space." in page
        assert "<dt>pruned</dt><dd>geojson, labels, probability, tissue, image</dd>" in page
        about = viewed.json(f"slide/{pruned['name']}/about.json")
        assert list(about["layers"]) == ["grid"]
        assert about["objects"] == len(pq.read_table(root / "objects.parquet"))


def test_incomplete_slide_is_marked_as_incomplete(finished: Finished, overtile_alone: Command, tmp_path: Path) -> None:
    root = tmp_path / "slide"
    shutil.copytree(finished.result, root)
    manifest = json.loads((root / "manifest.json").read_text())
    (root / ".work").mkdir(exist_ok=True)
    (root / ".work" / "plan.json").write_text(json.dumps(manifest["plan"]))
    for name in ("manifest.json", "objects.parquet", "overview.png"):
        (root / name).unlink()
    shutil.rmtree(SlideStore(root).zarr / "labels")
    with viewing(overtile_alone, root) as viewed:
        assert viewed.ask(viewed.path).status == 307, "a single slide redirects to its page"
        (name,) = viewed.names().values()
        page = viewed.get(f"slide/{name}/").decode()
        assert '<span class="state">incomplete</span>' in page
        about = viewed.json(f"slide/{name}/about.json")
        assert (about["objects"], about["coarsest"]) == (None, 2)
        assert list(about["layers"]) == ["image", "heat", "threshold", "tissue", "left-out", "grid"]
        assert viewed.ask(f"{viewed.path}slide/{name}/objects.json").status == 404
        assert viewed.ask(f"{viewed.path}slide/{name}/overview.png").status == 404
        for bad in ("order=x", "page=-1", "page=nan", "least_area=inf", "ids=0", "ids=-1", "ids=x"):
            assert viewed.ask(f"{viewed.path}slide/{name}/objects.json?{bad}").status == 404


@pytest.mark.long
def test_pages_follow_a_run(overtile: Command, tmp_path: Path) -> None:
    """Available results are shown from the first blocks of a slide to its end, without browser errors."""
    if browser() is None:
        skip_or_fail("no chromium here")
    slide = write(tmp_path / "slides" / "slide.tif", draw(LIVE_SHAPE, red_and_blue(LIVE_SHAPE)))
    out, log = tmp_path / "out", tmp_path / "log"
    settings = ["cluster.kind=serial", "tiles.block=512", "tiles.tile=64", "compute.precision=fp32"]
    words = [word for one in settings for word in ("--set", one)]
    line = [*installed_command(), "segment", str(slide), "--out", str(out), "--model", str(CLASSES), *words]
    with log.open("wb") as output:
        run = subprocess.Popen(line, env=dict(overtile.environment), cwd=overtile.folder, stdout=output, stderr=output)
    try:
        wait_for(lambda: (out / "slide" / "slide.ome.zarr" / "0" / "zarr.json").exists(), log)
        with viewing(overtile, out) as viewed, page_of(viewed.address, tmp_path / "profile") as page:
            page.until(f"{STATE} === 'in progress'")
            (name,) = viewed.names().values()
            text = viewed.get(f"slide/{name}/").decode()
            assert '<span class="state">incomplete</span>' in text
            tile = viewed.ask(f"{viewed.path}slide/{name}/tile/image/0/0/0")
            assert (tile.status, tile.headers["cache-control"]) == (200, "no-store")
            assert run.wait(240) == 0, log.read_text()
            assert is_complete(out / "slide")
            page.until(f"{STATE} === 'complete' && document.querySelector('article img').naturalWidth > 0")
            assert viewed.json(f"slide/{name}/about.json")["complete"]
            assert page.complaints == []
    finally:
        run.kill()
        run.wait()
