"""Data that leaves a run.

There is no network traffic, no personal data of a slide, and no picture of its label. One real run, with dask workers
and its own Prefect server, on slides full of personal data. Its sockets are read from the kernel while it runs;
afterwards everything it wrote is searched.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import stat
import sys
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from pipeline.slides.opening import open_slide
from tests.support.commands import CLASSES, REPOSITORY, Command, Ran, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write
from tests.support.leaks import colour_held, files_below, words_held
from tests.support.make_private import DATE, LABEL, WORD, write_private_slides
from tests.support.sockets import Listening, family, listening
from tests.unit.flows.serving import running, serving, wait_for
from tests.unit.flows.test_work_pool import answers

SHAPE = (200, 260)
WHOLE = ("aperio", "ome", "tags", "photo", "dicom", "ngff")


@dataclass(slots=True)
class Watched:
    """A run, the folders it wrote to, and the sockets it and its children listened on."""

    ran: Ran
    home: Path
    scratch: Path
    seen: set[Listening] = field(default_factory=set)

    @property
    def written(self) -> tuple[Path, ...]:
        """Every folder it may have written to."""
        return self.ran.out, self.home, self.scratch


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("security")
    write_private_slides(folder / "slides", draw(SHAPE, red_and_blue(SHAPE)))
    (folder / "tmp").mkdir()
    command = Command.under(folder, None).with_environment(TMPDIR=str(folder / "tmp"))
    command = replace(command, prefix=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    shutil.rmtree(folder / "prefect")  # the run creates the database
    before = {process.pid for process in family(psutil.Process())}
    settings = ["cluster.kind=local", "cluster.workers=2", "tissue=null", f"outputs.scratch={folder / 'scratch'}"]
    seen: set[Listening] = set()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(command.segment, folder / "slides", folder / "out", *settings, model=CLASSES)
        while not running.done():
            for process in family(psutil.Process()):
                seen |= set(listening(process)) if process.pid not in before else set()
            wait([running], timeout=0.5)
    return Watched(running.result(), folder / "prefect", folder / "tmp", seen)


# ---- sockets and stored data --------------------------------------------------------------------------------------


def test_fault_63_every_socket_of_a_run_is_on_loopback(watched: Watched) -> None:
    assert [one for one in watched.seen if not one.is_local] == []
    holders = {one.pid for one in watched.seen}
    assert len(holders) >= 4, f"expected a Prefect server, a scheduler and two workers, found {watched.seen}"


@pytest.mark.long
def test_fault_63_every_socket_of_a_schedule_is_on_loopback(tmp_path: Path) -> None:
    log, command = tmp_path / "log", Command.under(tmp_path, None)
    words = [tmp_path, "--out", tmp_path / "out", "--cron", "0 0 1 1 *", "--timezone", "UTC"]
    with serving(command, log, *words) as process:
        wait_for(lambda: "runs are shown at" in log.read_text(), log)
        seen = {one for member in family(process) for one in listening(member)}
    assert seen, "the schedule starts its own server"
    assert [one for one in seen if not one.is_local] == []


@pytest.mark.long
def test_server_of_the_readme_requires_its_password(tmp_path: Path) -> None:
    text = (REPOSITORY / ".github" / "docs" / "security.md").read_text("utf-8")
    settings = dict(line.split("=", 1) for line in re.findall(r"^PREFECT_\w+=.*$", text, re.MULTILINE))
    assert len(settings) == 5
    slide = write(tmp_path / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    api, log = f"http://127.0.0.1:{port}/api", tmp_path / "log"
    start = [sys.executable, "-m", "prefect", "server", "start", "--port", port, "--no-ui"]
    with running(start, Command.under(tmp_path, None).with_environment(**settings), log):
        wait_for(lambda: answers(f"{api}/health"), log)
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{api}/admin/version", timeout=60)
        password = b64encode(settings["PREFECT_API_AUTH_STRING"].encode()).decode()
        mine = {"Authorization": f"Basic {password}", "Origin": "https://elsewhere.example"}
        with urlopen(Request(f"{api}/admin/version", headers=mine), timeout=60) as response:
            assert response.headers.get("Access-Control-Allow-Origin") is None, "pages of other origins may not read it"
        posted = Request(f"{api}/flow_runs/filter", b"{}", {"Content-Type": "application/json", **mine})
        with pytest.raises(HTTPError, match="403"):  # no token to change anything either
            urlopen(posted, timeout=60)
        client_settings = {name: value for name, value in settings.items() if "SERVER" not in name}
        ran = Command.under(tmp_path, api).with_environment(**client_settings).segment(slide, tmp_path / "out")
        assert ran.code == 0, ran.transcript


def test_fault_66_nothing_is_kept_as_a_pickle(watched: Watched) -> None:
    """By default, Prefect stores results and parameters as pickles, and dask what does not fit into memory."""
    for folder in watched.written:
        for path in files_below(folder):
            start = path.read_bytes()[:2]
            assert path.suffix not in (".pkl", ".pickle"), path
            assert start not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), path
    kept = [json.loads(path.read_text()) for path in files_below(watched.home / "storage")]
    message = "1 of 7 slides are not complete as asked"
    error = {"__exc_type__": "flows.segment.IncompleteError", "message": message}
    assert kept == [error], "the error raised by the flow"
    assert b"gAWV" not in b"".join(path.read_bytes() for path in files_below(watched.home)), "a pickle in base64"


def test_what_a_run_writes_obeys_its_umask(watched: Watched) -> None:
    for folder in watched.written:
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if not path.is_symlink()}
        assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


# ---- metadata of slides -----------------------------------------------------------------------------------------


def test_fault_65_no_personal_data_of_slides_is_written(watched: Watched) -> None:
    assert watched.ran.states() == dict.fromkeys(WHOLE, "complete") | {"damaged": "failed"}, watched.ran.transcript
    slides = watched.ran.out.parent / "slides"
    assert {name.partition("/")[0].partition(".")[0] for name, _ in words_held(slides, [WORD])} == {*WHOLE, "damaged"}
    assert "damaged.svs: level 0, tile (0, 0)" in watched.ran.error_of("damaged")
    for folder in watched.written:
        assert words_held(folder, [WORD, DATE, "2001-02-03"]) == set()
    assert WORD not in watched.ran.transcript
    assert "DateTime" not in watched.ran.transcript, "a library warned about a tag"
    assert list(watched.home.rglob("*.db")), "no Prefect database was searched"


def test_fault_65_no_label_is_shown(watched: Watched) -> None:
    assert len(colour_held(watched.ran.out.parent / "slides", LABEL)) >= 4, "the search finds labels in the slides"
    for folder in watched.written:
        assert colour_held(folder, LABEL) == []
    assert all(is_complete(watched.ran.out / key) for key in WHOLE)


def test_fault_65_no_private_tag_of_a_real_scanner_is_written(shared_data: Path, tmp_path: Path) -> None:
    """Hamamatsu's own tags; a scanner's number and a date are overwritten in place."""
    path = tmp_path / "slide.ndpi"
    content = (shared_data / "wsi" / "test3-TRITC 2 (560).ndpi").read_bytes()
    assert b"NDP.scan" in content
    path.write_bytes(content.replace(b"NDP.scan", b"CANARY-S"))
    slide = open_slide(path)
    assert WORD not in repr((slide.describe(), slide.channel_names, slide.warnings))
