"""The pages are correct.

Commands and code run in order, configurations load, links and names exist. `tests/docs/pages.py` lists what is not run,
with the reason. ``overtile segment`` runs on a small slide with a configuration of ``cluster.kind=serial``,
``overtile train`` on drawn discs: two steps of a small network instead of the minutes stated.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from pydantic import BaseModel
from skimage.data import immunohistochemistry
from skimage.io import imread
from skimage.measure import regionprops
from typer.main import get_command

from flows.cli.main import app
from pipeline.config import RunConfig, load_as, load_config
from tests.docs.pages import (
    BLOCKS_NOT_RUN,
    CONTRIBUTING,
    DOCS,
    LINES_NOT_RUN,
    PAGES,
    README,
    ROOT,
    Block,
    anchors,
    blocks,
    code_of,
    prose_of,
)
from tests.support.commands import SERVER, Command
from tests.support.make_discs import write_discs
from unet_core.spec import UNetSpec
from unet_core.training.config import TrainConfig

KINDS: dict[str, type[BaseModel]] = {"training.md": TrainConfig, "models.md": UNetSpec}
"""Configuration model of a page's YAML, where it is not that of a run."""
TREES = ("results/", "run/", "report/")
"""First lines of drawings of folder trees."""
OTHERS = {"--help", "--gpus"}
"""Options of every command, and of sbatch."""
PAGE_LINES = 250
"""Maximum length of the README."""
FILE_NAME = re.compile(
    r"[\w.]+\.(?:md|html|csv|jsonl?|png|geojson\.gz|parquet|safetensors|ome\.zarr)(?![\w.])|\w+(?=/ )"
)


def of_page(page: Path) -> str:
    return page.name


def write_inputs(folder: Path) -> None:
    """Write the inputs of the pages' commands: slides, regions, a checkpoint, annotated images."""
    (folder / "slides").mkdir()
    (folder / "channels").mkdir()
    pixels = np.tile(immunohistochemistry()[:509, :505], (2, 2, 1))
    tiles: dict[str, Any] = {"tile": (256, 256), "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "slides" / "tissue.tif", pixels, photometric="rgb", **tiles)
    names = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["actin", "DAPI", "IgG"]}}
    planes = np.moveaxis(255 - pixels[:512, :512], -1, 0)
    tifffile.imwrite(folder / "channels" / "cells.ome.tif", planes, tile=(256, 256), metadata=names)
    square = [[[100, 100], [600, 100], [600, 600], [100, 600], [100, 100]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}, "properties": {}}
    (folder / "annotations").mkdir()
    collection = {"type": "FeatureCollection", "features": [feature]}
    (folder / "annotations" / "tissue.geojson").write_text(json.dumps(collection))
    (folder / "small.yaml").write_text("cluster: {kind: serial}\ntiles: {block: 512, tile: 512}\n")
    tiny = "network: {depth: 1, width: 2}\nsampling: {output_px: 32}\nschedule: {steps: 2}\n"
    (folder / "tiny.yaml").write_text(tiny)
    discs = write_discs(folder)
    (folder / "dots").mkdir()
    for mask in discs.masks.iterdir():
        centres = [region.centroid for region in regionprops(imread(mask))]
        lines = ["x,y,class", *(f"{x:.1f},{y:.1f},nucleus" for y, x in centres)]
        (folder / "dots" / f"{mask.stem}.csv").write_text("\n".join(lines) + "\n")
    shutil.copytree(ROOT / "configs", folder / "configs")


def write_checkpoint(folder: Path) -> None:
    """Write a PyTorch checkpoint of the network described on the page about models."""
    import torch

    from unet_core.networks.factory import build

    (spec,) = blocks(DOCS / "models.md", "yaml")
    (folder / "spec.yaml").write_text(spec.text)
    torch.save(build(UNetSpec.model_validate(yaml.safe_load(spec.text))).state_dict(), folder / "unet.pt")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all inputs and no results."""
    folder = tmp_path_factory.mktemp("fresh")
    write_inputs(folder)
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def segmented(fresh: Path, tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]) -> Path:
    """The same folder with results of the cases table, which the pages after the README assume."""
    folder = tmp_path_factory.mktemp("segmented") / "place"
    shutil.copytree(fresh, folder)
    for line, _ in blocks(DOCS / "cases.md", "bash")[0].lines():
        shell(line, folder, environment)
    return folder


@pytest.fixture(scope="module")
def environment(overtile: Command, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Environment with the command on PATH and the variables that a deployment reads."""
    folder = tmp_path_factory.mktemp("on-path")
    SERVER.write_script(folder, overtile.environment)
    path = f"{folder}:{Path(sys.executable).parent}:{overtile.environment['PATH']}"
    deployment = {"OVERTILE_SLIDES": "slides", "OVERTILE_OUT": "results", "OVERTILE_SHA256": "0" * 64}
    return {**overtile.environment, "PATH": path, **deployment}


def shell(line: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a line unchanged except for smaller settings."""
    shorter = f"{line} --config small.yaml" if " segment " in line else line
    if " train " in line:
        shorter = re.sub(r" --minutes \d+", "", line) + " --config tiny.yaml"
    command = ["bash", "-ec", shorter]
    done = subprocess.run(
        command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def run(block: Block, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a block, or check that the files it names exist."""
    if block.language == "bash" and block.reason is None:
        for line, reason in block.lines():
            if reason is None:
                shell(line, folder, environment)
    elif block.language == "python":
        everything = {
            **environment,
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }  # including pandas and similar packages
        done = Command(everything, folder).run_code(block.text)
        assert done.code == 0, f"{block.text}\n{done.transcript}"
    elif block.text.startswith(TREES):
        root = folder / block.text.partition("/")[0]
        there = {path.name for path in root.rglob("*")} | {root.name}
        assert set(FILE_NAME.findall(block.text)) - {"slide"} - there == set(), (
            "the folder tree names a file that does not exist"
        )
    else:
        assert block.reason is not None or block.language == "yaml", f"{block.page.name}: nothing runs\n{block.text}"
        named = re.findall(r"results/[\w./]+", block.text) if block.language in ("groovy", "text") else []
        assert [name for name in named if not (folder / name).exists()] == []


@pytest.mark.timeout(900)
def test_the_readme_runs_in_a_fresh_folder(fresh: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "place"
    shutil.copytree(fresh, folder)
    for block in blocks(README):
        run(block, folder, environment)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES[1:], ids=of_page)
def test_every_block_of_the_page_runs(
    page: Path, segmented: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "place"
    shutil.copytree(segmented, folder)
    for block in blocks(page):
        run(block, folder, environment)


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_every_configuration_loads(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.text)
        if page.name in KINDS and KINDS[page.name] is UNetSpec:
            UNetSpec.model_validate(yaml.safe_load(block.text))
        elif page.name in KINDS:
            load_as(KINDS[page.name], file)
        elif "DaskCluster" in block.text:
            assert yaml.safe_load(block.text)["spec"].keys() == {"worker", "scheduler"}
        else:
            load_config(file)


def test_the_defaults_shown_are_the_defaults(tmp_path: Path) -> None:
    (block,) = blocks(DOCS / "configuration.md", "yaml")
    (tmp_path / "shown.yaml").write_text(block.text)
    assert load_config(tmp_path / "shown.yaml") == RunConfig()


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    found = {block.language for page in PAGES for block in blocks(page)}
    assert found <= {"bash", "python", "yaml", "text", "groovy"}
    fences = {page.name: len(re.findall(r"^ *(?:```|~~~)", page.read_text("utf-8"), re.M)) for page in PAGES}
    assert fences == {page.name: 2 * len(blocks(page)) for page in PAGES}, "every fence opens or closes a block"
    run_lines = [line for page in PAGES for block in blocks(page, "bash") for line, why in block.lines() if not why]
    assert len(run_lines) >= 25


def test_every_exception_from_running_is_used() -> None:
    everything = [block for page in PAGES for block in blocks(page)]
    lines = [line for block in everything if block.language == "bash" for line in block.text.splitlines()]
    assert [start for start in LINES_NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    assert [start for start in BLOCKS_NOT_RUN if not any(one.text.startswith(start) for one in everything)] == []


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_every_command_option_target_and_test_named_exists(page: Path) -> None:
    text = code_of(page)
    commands: dict[str, Any] = dict(vars(get_command(app))["commands"])
    assert set(re.findall(r"\bovertile ([a-z]+)", text)) <= set(commands)
    known = {word for command in commands.values() for option in _options(command) for word in option}
    mine = [line for line in text.splitlines() if line.startswith(("overtile ", "--"))]
    assert {word for line in mine for word in re.findall(r"(?<!\S)(--[a-z-]+)", line)} <= known | OTHERS
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    assert [name for name in re.findall(r"\btests/[\w/]+\.py\b", text) if not (ROOT / name).exists()] == []


def _options(command: Any) -> list[list[str]]:
    own = [one.opts for one in command.params]
    return own + [words for sub in vars(command).get("commands", {}).values() for words in _options(sub)]


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_every_file_and_heading_linked_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", prose_of(page))
    for link in links:
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else page.parent / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_names_every_page() -> None:
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= PAGE_LINES
    assert [page.name for page in (*DOCS.glob("*.md"), CONTRIBUTING) if f"/{page.name})" not in text] == []
