"""results.csv during a batch and after ``kill -9``.

The file grows during a batch, is readable at any time, and keeps its rows after a kill.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import CLASSES, Command, installed_command, is_complete
from tests.support.faults.pictures import draw, red_and_blue, write

SLIDES = ("one", "two", "three")
SHAPE = (700, 1100)
OPTIONS = ("cluster.kind=serial", "tiles.block=512", "compute.precision=fp32")


def states(text: str) -> dict[str, str]:
    """Return the state of each slide; assert that every slide has a row and every row has all cells."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert text.endswith("\r\n")
    assert {len(row) for row in rows} == {len(rows[0])}
    found = {row[0]: row[-1] for row in rows[1:]}
    assert list(found) == ["three", "one", "two"], "the table's order"
    return found


@pytest.mark.long
def test_rows_are_there_when_their_slide_is_and_survive_a_kill(overtile: Command, tmp_path: Path) -> None:
    for number, name in enumerate(SLIDES):
        write(tmp_path / "slides" / f"{name}.tif", draw(SHAPE, red_and_blue(SHAPE, radius=15 + number)))
    table = tmp_path / "cases.csv"
    patients = {"three": "P3", "one": "P1", "two": "P2"}
    table.write_text("slide,patient\n" + "".join(f"{name},{patient}\n" for name, patient in patients.items()))
    arguments = ["segment", tmp_path / "slides", "--cases", table, "--model", CLASSES]
    arguments += [word for option in OPTIONS for word in ("--set", option)]
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    running = subprocess.Popen(
        [*installed_command(), *map(str, arguments), "--out", str(out)],
        env=dict(overtile.environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    results, looks = out / "results.csv", 0
    try:
        while not results.exists() or "complete" not in states(results.read_bytes().decode()).values():
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(timeout=0.02)
            looks += 1
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert looks
    text = results.read_bytes().decode()
    found = states(text)
    assert set(found.values()) == {"complete", "waiting"}
    first = next(name for name in SLIDES if found[name] == "complete")
    assert is_complete(out / first)
    kept = [line for line in text.splitlines() if line.startswith(f"{first},")]
    assert [line.split(",")[1:4] for line in kept] == [
        [patients[first], "", name] for name in ("red cell", "blue cell")
    ]
    assert all(int(line.split(",")[7]) > 0 for line in kept)

    resumed = overtile.run(*arguments, "--out", out, out=out)
    assert resumed.code == 0, resumed.transcript
    assert overtile.run(*arguments, "--out", undisturbed, out=undisturbed).code == 0
    assert results.read_bytes() == (undisturbed / "results.csv").read_bytes()
    assert kept == [line for line in results.read_text().splitlines() if line.startswith(f"{first},")]
