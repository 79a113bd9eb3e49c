"""Modules called like the packages of overtile, in the working directory or on PYTHONPATH, are never imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.cli.launcher import PACKAGES, is_foreign
from tests.support.commands import CLASSES, REPOSITORY, Command, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write

LAUNCHER = REPOSITORY / "flows" / "cli" / "launcher.py"


def installed_script() -> list[str]:
    """The script `overtile` beside this interpreter; its source where an older script is installed there."""
    script = Path(sys.executable).parent / "overtile"
    is_current = script.exists() and "leave_out_foreign_modules" in script.read_text()
    return [str(script)] if is_current else [sys.executable, str(LAUNCHER)]


def foreign_folder(folder: Path) -> Path:
    """A folder whose modules end the process that imports them."""
    folder.mkdir()
    for name in PACKAGES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('imported the foreign module {name}')\n")
    return folder


@dataclass(frozen=True, slots=True)
class Among:
    """A working directory and a search path that both have foreign modules."""

    command: Command
    search_path: str

    def run(self, words: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        environment = {**self.command.environment, "PYTHONPATH": self.search_path}
        return subprocess.run(
            [*map(str, words)], cwd=self.command.folder, env=environment, capture_output=True, text=True, check=False
        )

    def overtile(self, *words: str | Path) -> str:
        """The standard output of a command that succeeds."""
        done = self.run([*installed_script(), *words])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def among(tmp_path: Path) -> Among:
    command = Command.under(tmp_path, None)
    directory, elsewhere = foreign_folder(tmp_path / "directory"), foreign_folder(tmp_path / "elsewhere")
    development = [path for path in command.environment["PYTHONPATH"].split(os.pathsep) if path]
    search_path = os.pathsep.join([str(elsewhere), ".", *development, str(REPOSITORY)])
    return Among(Command(command.environment, directory), search_path)


def test_commands_start_among_foreign_modules(among: Among) -> None:
    assert among.overtile("--version").startswith("overtile ")
    assert "nuclei@1" in among.overtile("doctor")


@pytest.mark.parametrize("cluster", [pytest.param("cluster.kind=serial", marks=pytest.mark.long), "cluster.workers=1"])
def test_a_run_and_its_child_processes_start_among_foreign_modules(among: Among, tmp_path: Path, cluster: str) -> None:
    """The run starts a Prefect server of its own, and in the second case, which includes the first, a dask worker."""
    slide = write(tmp_path / "slide.tif", draw((200, 200), red_and_blue((200, 200))))
    settings = ["--set", cluster, "--set", "tiles.block=512"]
    among.overtile("segment", slide, "--out", tmp_path / "out", "--model", CLASSES, *settings)
    assert is_complete(tmp_path / "out" / "slide")


START = """
import runpy, subprocess, sys
sys.path.insert(0, "the folder of the script")
runpy.run_path(sys.argv[1])["leave_out_foreign_modules"]()
sys.exit(subprocess.run([sys.executable, "-m", *sys.argv[2:]]).returncode)
"""


def test_modules_run_by_name_start_among_foreign_modules(among: Among, tmp_path: Path) -> None:
    """As `overtile model convert` runs the reader of PyTorch files, and Prefect a scheduled run."""
    module = ["unet_core.model_file.torch_reader", "absent.pt", "out"]
    unprotected = among.run([sys.executable, "-m", *module])
    assert "imported the foreign module unet_core" in unprotected.stderr
    protected = among.run([sys.executable, "-c", START, LAUNCHER, *module])
    assert "imported the foreign module" not in protected.stderr
    assert "absent.pt" in protected.stdout + protected.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_one_module_makes_a_folder_foreign(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").touch()
    assert is_foreign(str(tmp_path))


def test_a_checkout_and_folders_without_such_modules_are_kept(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "numbers.py").touch()
    assert not is_foreign(str(tmp_path)), "a folder of data is no module"
    assert not is_foreign(str(REPOSITORY))
    assert not is_foreign(str(tmp_path / "absent"))


def test_a_package_of_the_same_name_is_foreign(tmp_path: Path) -> None:
    for name in ("flows", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert is_foreign(str(tmp_path))
