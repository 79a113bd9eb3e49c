"""The README is true: its commands run in order, its code runs, its configuration loads.

Not run here, with the reason: ``make demo`` and ``make test`` (this is make test; both are run by .ci/run), the pip
commands (what make does), napari (it needs a screen; test_real_slides.py proves its reader), ``overtile schedule``
and ``overtile view`` (they run until they are stopped; flows/test_schedule.py fires the one, flows/test_view_page.py
opens the other). ``overtile segment`` runs on a small slide through the
stated shorter flag ``cluster.kind=serial`` of a configuration file, ``overtile train`` on drawn discs, two steps of a
small network instead of the minutes stated.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from skimage.data import immunohistochemistry
from typer.main import get_command

from flows.cli.main import app
from pipeline.config import load_config
from tests.support.commands import Command
from tests.support.make_discs import write_discs

README = Path(__file__).resolve().parents[2] / "README.md"
EXEMPT = ("make ", "python3 -m venv", ".venv/bin/", "napari ", "overtile schedule ", "overtile view ")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for found, text in BLOCK.findall(README.read_text("utf-8")) if found == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user would stand: a folder with slides in it."""
    place = tmp_path_factory.mktemp("readme")
    (place / "slides").mkdir()
    pixels_per_cm = 1e4 / 0.25
    tifffile.imwrite(
        place / "slides" / "tissue.tif",
        np.tile(immunohistochemistry()[:509, :505], (2, 2, 1)),
        tile=(256, 256),
        photometric="rgb",
        resolution=(pixels_per_cm, pixels_per_cm),
        resolutionunit="CENTIMETER",
    )
    (place / "small.yaml").write_text("cluster: {kind: serial}\ntiles: {block: 512, tile: 512}\n")
    write_discs(place)
    (place / "tiny.yaml").write_text("network: {depth: 1, width: 2}\nsampling: {output_px: 32}\nschedule: {steps: 2}\n")
    return place


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    found = {language for language, _ in BLOCK.findall(README.read_text("utf-8"))}
    assert found == {"bash", "python", "yaml", "text"}


def test_commands_then_code(folder: Path, overtile: Command) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if not line.startswith(EXEMPT)]
    assert len(lines) >= 5
    path = f"{Path(sys.executable).parent}:{overtile.environment['PATH']}"
    for line in lines:
        shorter = f"{line} --config small.yaml" if " segment " in line else line
        if " train " in line:
            shorter = re.sub(r" --minutes \d+", "", line) + " --config tiny.yaml"
        done = subprocess.run(
            ["bash", "-ec", shorter],
            cwd=folder,
            env={**overtile.environment, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_configuration_loads(tmp_path: Path) -> None:
    for number, block in enumerate(blocks("yaml")):
        (tmp_path / f"{number}.yaml").write_text(block)
        load_config(tmp_path / f"{number}.yaml")


def test_every_command_and_option_named_exists() -> None:
    text = README.read_text("utf-8")
    commands: dict[str, Any] = dict(vars(get_command(app))["commands"])
    assert set(re.findall(r"overtile ([a-z]+)", text)) - {"writes"} <= set(commands)
    known = {word for command in commands.values() for option in command.params for word in option.opts}
    assert set(re.findall(r"`(--[a-z-]+)", text)) - {"--plugin"} <= known | {"--version", "--help"}


def test_every_file_linked_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (README.parent / link).exists()] == []
