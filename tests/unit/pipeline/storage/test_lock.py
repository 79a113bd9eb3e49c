"""One live run per slide folder: live owners are respected, dead owners replaced, no lock is deleted by hand."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import LockedError
from pipeline.storage import lock
from pipeline.storage.lock import STALE_S, slide_lock

HOLD = """
import sys
from pathlib import Path
from pipeline.errors import LockedError
from pipeline.storage.lock import slide_lock
try:
    with slide_lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except LockedError as error:
    print(error, flush=True)
"""

HOLD_WITH_CHILD = """
import signal, subprocess, sys
from pathlib import Path
from pipeline.storage.lock import slide_lock
with slide_lock(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
    print(child.pid, flush=True)
    signal.pause()
"""


@contextmanager
def process(script: str, work: Path) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-c", script, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with started:
        yield started
        started.kill()


def first_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def owned_by(work: Path, owner: object, age_s: float) -> Path:
    work.mkdir(parents=True)
    path = work / "lock"
    path.write_text(json.dumps(owner))
    now = path.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))
    return path


ELSEWHERE = {"pid": 4711, "host": "elsewhere", "boot": "b", "since": "2026-11-20T01:00:00+00:00"}


# ---- the living ----------------------------------------------------------------------------------------------------


def test_fault_15_second_process_is_refused_with_pid_host_slide_and_since(tmp_path: Path) -> None:
    with process(HOLD, tmp_path / "slide" / ".work") as holder:
        assert first_line(holder) == "held"
        with pytest.raises(LockedError) as caught, slide_lock(tmp_path / "slide" / ".work"):
            pytest.fail("two runs hold one slide")
    message = str(caught.value)
    assert f"process {holder.pid} on {socket.gethostname()}" in message
    assert str(tmp_path / "slide") in message
    assert "since 20" in message
    assert "delete" not in message.casefold(), "a lock never has to be deleted by hand"


def test_lock_stays_held_when_holder_opens_its_file(tmp_path: Path) -> None:
    """POSIX record locks are released when their process closes *any* descriptor of the file; this lock is not."""
    with slide_lock(tmp_path):
        (tmp_path / "lock").read_bytes()
        with pytest.raises(LockedError, match=str(os.getpid())), slide_lock(tmp_path):
            pytest.fail("two threads hold one slide")
        with process(HOLD, tmp_path) as other:
            assert f"process {os.getpid()} on" in first_line(other)


def test_released_lock_can_be_taken(tmp_path: Path) -> None:
    with process(HOLD, tmp_path) as holder:
        assert first_line(holder) == "held"
        holder.communicate("\n")
        with slide_lock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    with slide_lock(tmp_path):
        pass


def test_lock_is_released_after_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), slide_lock(tmp_path):
        raise ZeroDivisionError
    with slide_lock(tmp_path):
        pass


def test_two_slides_are_two_locks(tmp_path: Path) -> None:
    with slide_lock(tmp_path / "a"), slide_lock(tmp_path / "b"):
        pass


def test_only_empty_lock_file_is_left(tmp_path: Path) -> None:
    owned_by(tmp_path / "w", ELSEWHERE, STALE_S + 1)
    with slide_lock(tmp_path / "w"):
        pass
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["lock"]
    assert (tmp_path / "w" / "lock").stat().st_size == 0


# ---- the dead ------------------------------------------------------------------------------------------------------


def test_fault_15_a_killed_owner_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    with process(HOLD, tmp_path) as holder:
        assert first_line(holder) == "held"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid, "it had no time to clean up"
        with slide_lock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_child_of_killed_owner_does_not_hold_lock(tmp_path: Path) -> None:
    with process(HOLD_WITH_CHILD, tmp_path) as holder:
        child = int(first_line(holder))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert is_alive(child)
        with slide_lock(tmp_path):
            pass


def test_a_fresh_owner_on_another_host_is_respected_and_left_alone(tmp_path: Path) -> None:
    path = owned_by(tmp_path / "w", ELSEWHERE, STALE_S - 30)
    with (
        pytest.raises(LockedError, match=r"process 4711 on elsewhere since 2026-11-20T01:00:00"),
        slide_lock(tmp_path / "w"),
    ):
        pytest.fail("took a live run's slide")
    assert json.loads(path.read_text()) == ELSEWHERE
    assert [entry.name for entry in path.parent.iterdir()] == ["lock"]


def test_refused_process_does_not_write_heartbeat(tmp_path: Path) -> None:
    path = owned_by(tmp_path / "w", ELSEWHERE, STALE_S - 30)
    before = path.stat().st_mtime
    with pytest.raises(LockedError), slide_lock(tmp_path / "w"):
        pass
    assert path.stat().st_mtime == before, "or asking every minute would keep a dead run's lock for ever"


def test_fault_15_an_owner_on_another_host_without_a_beat_is_replaced(tmp_path: Path) -> None:
    path = owned_by(tmp_path / "w", ELSEWHERE, STALE_S + 1)
    with slide_lock(tmp_path / "w"):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("owner", [{}, [], None, "text", {"pid": 1}, {"host": socket.gethostname(), "pid": 1}])
def test_owner_without_usable_data_or_of_this_host_is_replaced(tmp_path: Path, owner: object) -> None:
    owned_by(tmp_path / "w", owner, 0)
    with slide_lock(tmp_path / "w"):
        pass


def test_a_half_written_owner_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b'{"pid": 4711, "ho')
    with slide_lock(tmp_path):
        pass


# ---- the beat ------------------------------------------------------------------------------------------------------


def test_heartbeat_continues_during_work_and_after_transient_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[Path] = []
    enough = threading.Event()
    utime = os.utime

    def counting(path: Path) -> None:
        beats.append(path)
        if len(beats) == 1:
            raise OSError(5, "the file server hiccups")
        utime(path)
        if len(beats) == 3:
            enough.set()

    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    monkeypatch.setattr(lock.os, "utime", counting)
    with slide_lock(tmp_path):
        assert enough.wait(30)
    assert set(beats) == {tmp_path / "lock"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("beat")]
