"""A command in a fork of the tests' server ends as the installed command: exit code, streams and exit handlers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import SERVER, Command
from tests.support.faults.pictures import draw, red_and_blue, write

ENDS = {
    "normal": "print('done')",
    "code": "import sys; print('done'); sys.exit(3)",
    "text": "import sys; sys.exit('a reason')",
    "large": "import sys; sys.exit(256 + 7)",
    "thread": "import threading, time\nthreading.Timer(0.2, print, ['from a thread']).start()",
    "handler": "import atexit; atexit.register(print, 'from a handler')",
    "module": "print(__name__, __import__('sys').modules['__main__'].__dict__ is globals())",
}


@pytest.mark.parametrize("words", [["--version"], ["status", "absent"], ["segment"], ["inspect", "absent", "--json"]])
def test_fork_ends_as_the_installed_command(overtile_alone: Command, words: list[str]) -> None:
    assert SERVER.serves(overtile_alone.environment)
    fork, installed = overtile_alone.run(*words), overtile_alone.run_installed(*words)
    assert (fork.code, fork.stdout, fork.stderr) == (installed.code, installed.stdout, installed.stderr)


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_fork_ends_as_an_interpreter(overtile_alone: Command, text: str) -> None:
    assert SERVER.serves(overtile_alone.environment)
    fork = overtile_alone.run_code(text)
    own = subprocess.run(
        [sys.executable, "-c", text], env=dict(overtile_alone.environment), capture_output=True, text=True
    )
    assert (fork.code, fork.stdout, fork.stderr) == (own.returncode, own.stdout, own.stderr)


def test_fork_that_raises_prints_the_error_and_ends_with_one(overtile_alone: Command) -> None:
    assert SERVER.serves(overtile_alone.environment)
    fork = overtile_alone.run_code("raise ValueError('broken')")
    assert fork.code == 1
    assert fork.stderr.splitlines()[-1] == "ValueError: broken"


def test_code_in_a_fork_has_its_own_folder_and_search_path(overtile_alone: Command, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 5\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "further.py").write_text("VALUE = 7\n")
    assert SERVER.serves(overtile_alone.environment)
    environment = {**overtile_alone.environment, "PYTHONPATH": str(elsewhere)}
    ran = Command(environment, tmp_path).run_code("import beside, further; print(beside.VALUE, further.VALUE)")
    assert ran.stdout == "5 7\n", ran.transcript


def test_servers_with_prefect_belong_to_one_environment_each(tmp_path: Path) -> None:
    """Commands of two environments alternate; each reads the settings of its own."""
    commands = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        command = Command.under(tmp_path / name, f"http://127.0.0.1:9/{name}")
        assert SERVER.serves(command.environment)
        commands.append(command)
    for number in range(2):
        for command in commands:
            api = command.environment["PREFECT_API_URL"]
            slide = write(command.folder / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
            ran = command.segment(slide, tmp_path / f"out-{number}")
            assert ran.code == 4, ran.transcript
            assert f"no Prefect server responds at {api}/ (" in ran.only_error
