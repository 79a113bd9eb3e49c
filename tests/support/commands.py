"""Run the installed command in a process of its own, as users do.

Tests of behaviour never import the command's code. They use its exit code, its two streams and the files in OUT.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import Any

from tests.support.prefect_home import with_database

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parents[1] / "exactness" / "golden"
CONTEXT, CLASSES = GOLDEN / "context.safetensors", GOLDEN / "classes.safetensors"
ABSENT = Path(__file__).parent / "absent"
"""Hides modules that are installed for tests only from commands."""
NO_SERVER = "http://127.0.0.1:9/api"
"""No server listens at this address: a command that starts a flow fails, one that ends before is unaffected."""
PATIENCE_S = 600
"""Time limit of one command; tests have limits of their own, this is for the longer ones."""


def installed_command() -> list[str]:
    """Return the console script next to this interpreter, or its equivalent."""
    script = Path(sys.executable).parent / "overtile"
    return [str(script)] if script.exists() else [sys.executable, "-c", "from flows.cli.main import main; main()"]


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def errors(self) -> list[str]:
        """The error lines of stderr, without their prefix."""
        return [line.removeprefix("error: ") for line in self.stderr.splitlines() if line.startswith("error: ")]

    @property
    def transcript(self) -> str:
        """Exit code and both streams, for messages of failed assertions."""
        return f"exit {self.code}\n{self.stdout}\n{self.stderr}"

    @property
    def only_error(self) -> str:
        """The only line of stderr, which must be an error line."""
        assert self.stderr.count("\n") == 1, self.transcript
        assert len(self.errors) == 1, self.transcript
        return self.errors[0]

    def error_of(self, key: str) -> str:
        """Return the one error line about a slide."""
        (line,) = (line for line in self.errors if line.startswith(f"{key}: "))
        return line

    def outcome(self, key: str) -> dict[str, Any]:
        """Return this run's entry for a slide in batch.json."""
        outcomes = json.loads((self.out / "batch.json").read_text())["run"]["outcomes"]
        (found,) = (outcome for outcome in outcomes if outcome["key"] == key)
        return dict(found)

    def states(self) -> dict[str, str]:
        """Return the state of every requested slide by key."""
        outcomes = json.loads((self.out / "batch.json").read_text())["run"]["outcomes"]
        return {outcome["key"]: outcome["state"] for outcome in outcomes}

    def computed(self, key: str) -> dict[str, int]:
        """Return the blocks computed for a slide in this run by stage, without stages that had nothing to do."""
        return {stage: blocks for stage, blocks in self.outcome(key)["computed"].items() if blocks}


OF_LIBRARIES = {
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_CACHE_DIR"),
    *("GDAL_CURL_CA_BUNDLE", "PROJ_CURL_CA_BUNDLE"),
}
"""Variables that scikit-learn, MONAI, torch and rasterio set in a test process that imports them."""
MAY_DIFFER = {"PREFECT_HOME", "PREFECT_API_URL", "COLUMNS", "PYTEST_CURRENT_TEST"}
"""Variables of which a fork reads its own value: they are read after the libraries have been imported."""
WITH_PREFECT = (["segment"], ["train"])
"""First words of commands that import Prefect."""
SCRIPT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection, connection.makefile() as answers:
    connection.connect(WITH_PREFECT if sys.argv[1:2] in (["segment"], ["train"]) else ADDRESS)
    request = {"arguments": sys.argv, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
    answers.readline()
    sys.exit(int(answers.readline()) % 256)
"""
"""The command as a client of the server, which starts in a fraction of the time."""


def _prefect_of(environment: Mapping[str, str]) -> tuple[str, str]:
    return environment["PREFECT_HOME"], environment.get("PREFECT_API_URL", "")


@dataclass(slots=True)
class CommandServer:
    """The server of `command_server.py` that belongs to this process; it is started when it is first needed."""

    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""
    process: subprocess.Popen[bytes] | None = None
    prefect_addresses: dict[tuple[str, str], str] = field(default_factory=dict)
    """Of servers that have imported Prefect, by its folder and API; "" where one command was run so far."""

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork of the server reads the same environment as a command that is started with it."""
        if self.process is None and os.environ.get("OVERTILE_TESTS_FORK", "1") == "1":
            self._start(environment)
        return self.process is not None and all(
            self.environment.get(name) == environment.get(name)
            for name in {*self.environment, *environment} - MAY_DIFFER
        )

    def run(self, request: Mapping[str, Any], descriptors: tuple[int, int]) -> int:
        """Run one command; its exit code. Kills it with its children when it hangs or the test is interrupted."""
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile() as answers:
            connection.connect(self._address_for(request))
            socket.send_fds(connection, [json.dumps(request).encode()], list(descriptors))
            process_group = int(answers.readline())
            connection.settimeout(PATIENCE_S)
            try:
                return int(answers.readline())
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process_group, signal.SIGKILL)
                raise

    def write_script(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Write a script `overtile` that runs commands in forks; they have this environment, or more variables."""
        assert self.serves(environment), "an environment of the fixtures"
        with_prefect = self._address_with_prefect(environment)
        script = folder / "overtile"
        script.write_text(
            f"#!{sys.executable} -IS\nADDRESS, WITH_PREFECT = {self.address!r}, {with_prefect!r}\n{SCRIPT}"
        )
        script.chmod(0o755)

    def _address_for(self, request: Mapping[str, Any]) -> str:
        """Of a server that has imported Prefect, from an environment's second command on that imports it."""
        key = _prefect_of(request["environment"])
        if request.get("arguments", [])[1:2] not in WITH_PREFECT or key[1] in ("", NO_SERVER):
            return self.address
        if key not in self.prefect_addresses:
            self.prefect_addresses[key] = ""
            return self.address
        return self._address_with_prefect(request["environment"])

    def _address_with_prefect(self, environment: Mapping[str, str]) -> str:
        key = _prefect_of(environment)
        if not self.prefect_addresses.get(key):
            address = f"{self.address}.{sum(map(bool, self.prefect_addresses.values()))}"
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self.address)
                connection.sendall(json.dumps({"server": address, "environment": dict(environment)}).encode())
                connection.recv(1)  # the server closes the connection
            assert Path(address).exists(), "the server with Prefect has ended"
            self.prefect_addresses[key] = address
        return self.prefect_addresses[key]

    def _start(self, environment: Mapping[str, str]) -> None:
        """Start it in the environment of this process, whatever variables the first command adds."""
        own = {name: environment[name] for name in {*MAY_DIFFER, "PYTHONPATH"} & {*environment}}
        kept = {name: os.environ[name] for name in environment if name in os.environ}
        self.environment = {name: kept[name] for name in kept if not name.startswith(("PREFECT_", "OVERTILE_"))} | own
        self.address = str(Path(mkdtemp(prefix="overtile-commands-")) / "socket")
        words = [sys.executable, "-m", "tests.support.command_server", self.address]
        self.process = subprocess.Popen(words, env=self.environment, cwd=REPOSITORY)
        while not Path(self.address).exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"{shlex.join(words)}: ended with {self.process.returncode}")
            time.sleep(0.02)


SERVER = CommandServer()


@dataclass(frozen=True, slots=True)
class Command:
    """Environment and working folder of the command."""

    environment: Mapping[str, str]
    folder: Path
    prefix: Sequence[str] = field(default=())

    @classmethod
    def under(cls, folder: Path, api_url: str | None) -> Command:
        """Return a command with a clean environment below ``folder``; without ``api_url`` it starts its own server."""
        if api_url is None:
            with_database(folder / "prefect")
        own = {name for name in os.environ if name.startswith(("PREFECT_", "OVERTILE_"))}
        kept = {name: value for name, value in os.environ.items() if name not in own | OF_LIBRARIES}
        environment = {**kept, "PREFECT_HOME": str(folder / "prefect"), "COLUMNS": "200"}
        if api_url is not None:
            environment["PREFECT_API_URL"] = api_url
        found = [str(ABSENT), *kept.get("PYTHONPATH", "").split(os.pathsep)]
        if not installed_command()[0].endswith("overtile"):
            found.append(str(REPOSITORY))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, found))
        (folder / "started-here").mkdir(exist_ok=True)
        return cls(environment, folder / "started-here")

    def with_environment(self, **more: str) -> Command:
        """Return the command with additional environment variables."""
        return Command({**self.environment, **more}, self.folder, self.prefix)

    def run(self, *arguments: str | Path, out: Path = Path()) -> Ran:
        """Run the command in a process group of its own; a hung one is killed with its children."""
        if not self.prefix and SERVER.serves(self.environment):
            return self._run_in_fork({"arguments": [installed_command()[0], *map(str, arguments)]}, out)
        return self.run_installed(*arguments, out=out)

    def run_code(self, text: str) -> Ran:
        """Run Python code as ``python -c`` does; it finds what is on the search path of this command's environment."""
        return self._run_in_fork({"code": text}, Path())

    def _run_in_fork(self, what: Mapping[str, Any], out: Path) -> Ran:
        with TemporaryFile() as stdout, TemporaryFile() as stderr:
            request = {**what, "environment": dict(self.environment), "folder": str(self.folder)}
            code = SERVER.run(request, (stdout.fileno(), stderr.fileno()))
            texts = []
            for stream in (stdout, stderr):
                stream.seek(0)
                texts.append(stream.read().decode())
        return Ran(code, *texts, out)

    def run_installed(self, *arguments: str | Path, out: Path = Path()) -> Ran:
        """Run the console script itself, as a user does."""
        process = subprocess.Popen(
            [*self.prefix, *installed_command(), *map(str, arguments)],
            env=dict(self.environment),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return Ran(process.returncode, stdout.decode(), stderr.decode(), out)

    def segment(self, source: Path | Sequence[Path], out: Path, *options: str | Path, model: Path = CLASSES) -> Ran:
        """Segment in one process in blocks of 512 px; ``options`` with a ``=`` are settings."""
        sources = [source] if isinstance(source, Path) else source
        settings = ["cluster.kind=serial", "tiles.block=512", "compute.precision=fp32"]
        arguments: list[str | Path] = []
        for option in options:
            if isinstance(option, str) and "=" in option and not option.startswith("-"):
                settings.append(option)
            else:
                arguments.append(option)
        pairs = [word for setting in settings for word in ("--set", setting)]
        return self.run("segment", *sources, "--out", out, "--model", model, *pairs, *arguments, out=out)


@dataclass(frozen=True, slots=True)
class FileState:
    """Identity and content of a file: a changed inode or time means that it was written again."""

    inode: int
    mtime_ns: int
    sha256: str


def files_of(root: Path) -> dict[str, FileState]:
    """Return every file below a folder by its relative path."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            status, digest = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(root).as_posix()] = FileState(status.st_ino, status.st_mtime_ns, digest)
    return found


def result_digests(slide: Path) -> dict[str, str]:
    """Return the digest of every file of a result that must not depend on how the run went."""
    return {
        name: state.sha256
        for name, state in files_of(slide).items()
        if not name.startswith(".work/") and name != "manifest.json"
    }


def history(slide: Path) -> list[dict[str, Any]]:
    """Return the history entries of every stage of every run of a slide."""
    return [json.loads(line) for line in (slide / ".work" / "history.jsonl").read_text().splitlines()]


def is_complete(slide: Path) -> bool:
    """Return whether the folder counts as a finished result."""
    return (slide / "manifest.json").exists()
