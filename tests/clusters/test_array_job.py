"""Array jobs: independent processes write to one OUT, and its batch files cover all slides."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.batch.array_job import ArrayJob
from flows.batch.array_summary import outcomes_of_all_jobs, write_until_stable
from flows.batch.history import NAME
from pipeline.errors import ConfigError
from tests.clusters.test_machines import Running
from tests.support.commands import Command, result_digests
from tests.support.faults.pictures import draw, red_and_blue, write

SHAPE = (600, 1100)
"""Of slides with 6 blocks."""


@given(st.integers(1, 9), st.integers(0, 40))
def test_jobs_partition_the_slides_evenly(of: int, slides: int) -> None:
    parts = [ArrayJob(number, of).take(range(slides)) for number in range(1, of + 1)]
    assert Counter(slide for part in parts for slide in part) == Counter(range(slides))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", "1 /4", "", "1.0/4"])
def test_invalid_array_is_rejected_with_the_options_for_slurm(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected i/n .* \$SLURM_ARRAY_TASK_ID/\$SLURM_ARRAY_TASK_COUNT"):
        ArrayJob.read(text)
    assert ArrayJob.read("3/8") == ArrayJob(3, 8)


def test_states_of_other_jobs_come_from_folders_and_history(tmp_path: Path) -> None:
    slides = {name: tmp_path / f"{name}.svs" for name in ("never", "bad", "begun")}
    assert [outcome.state for outcome in outcomes_of_all_jobs(tmp_path, (), slides)] == ["waiting"] * 3
    (tmp_path / "begun" / ".work").mkdir(parents=True)
    slides["bad"].touch()
    entry = {"slide": str(slides["bad"]), "state": "failed", "stage": "ingest", "cause": "cut", "attempt": "x"}
    lines = [
        {"event": "began", "run": "r", "when": "2026-01-01T00:00:00+00:00", "command": ["overtile"]},
        {"event": "ended", "run": "r", "when": "2026-01-01T00:01:00+00:00", "not_complete": {"bad": entry}},
    ]
    (tmp_path / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    never, bad, begun = outcomes_of_all_jobs(tmp_path, (), slides)
    assert (never.state, bad.state, bad.stage, bad.cause) == ("waiting", "failed", "ingest", "cut")
    assert begun.state == "resumable"


def test_last_writer_has_read_all_ends(tmp_path: Path) -> None:
    history, heard = tmp_path / NAME, list[str]()
    history.write_text("first\n")
    late = iter(["second\n", "third\n"])

    def slowly() -> None:
        """Two other jobs end while this one writes."""
        heard.append(history.read_text())
        with history.open("a") as file:
            file.write(next(late, ""))

    write_until_stable(tmp_path, slowly)
    assert heard[-1] == "first\nsecond\nthird\n"
    assert len(heard) == 3


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_four_concurrent_jobs_with_one_killed_and_repeated(overtile: Command, tmp_path: Path) -> None:
    names = [f"slide-{number}" for number in range(9)]
    for number, name in enumerate(names):
        write(tmp_path / "slides" / f"{name}.tif", draw(SHAPE, red_and_blue(SHAPE, radius=12 + number)))
    (tmp_path / "slides" / "slide-7.tif").write_bytes(b"II*\0")  # of the last share
    sound = [name for name in names if name != "slide-7"]
    alone = overtile.segment([tmp_path / "slides" / f"{name}.tif" for name in sound], tmp_path / "alone")
    assert alone.code == 0, alone.transcript

    out = tmp_path / "out"
    own = Command.under(tmp_path, None)  # each starts a server, with a database of its own
    settings = ["cluster.kind=serial", "cluster.slides_at_once=1"]
    shares = [Running(own, tmp_path / "slides", out, settings, "--array", f"{number}/4") for number in (1, 2, 3, 4)]
    doomed = shares[1]  # slides 1 and 5
    doomed.until((out / "slide-1" / "slide.ome.zarr" / "probability" / "0" / "c" / "0").exists)
    doomed.kill()
    codes = [share.end() for share in shares if share is not doomed]
    assert [code for code, _ in codes] == [0, 0, 3], codes

    def states() -> dict[str, str]:
        outcomes = json.loads((out / "batch.json").read_text())["run"]["outcomes"]
        return {one["key"]: one["state"].removesuffix(" before") for one in outcomes}

    after = states()
    assert list(after) == names, "all slides, in order"
    assert {name for name in names if after[name] == "complete"} == set(sound) - {"slide-1", "slide-5"}
    assert (after["slide-1"], after["slide-5"], after["slide-7"]) == ("resumable", "waiting", "failed")
    assert [row["slide"] for row in rows(out / "failures.csv")] == ["slide-1", "slide-7"]
    assert "**6 of 9 slides complete**" in (out / "summary.md").read_text()

    again = own.segment(tmp_path / "slides", out, *settings, "--array", "2/4")
    assert again.code == 0, again.transcript
    assert states() == dict.fromkeys(sound, "complete") | {"slide-7": "failed"}
    assert "**8 of 9 slides complete**, 1 failed" in (out / "summary.md").read_text()
    found = rows(out / "results.csv")
    assert {row["slide"] for row in found if row["state"] == "complete"} == set(sound)
    for name in sound:
        assert result_digests(out / name) == result_digests(tmp_path / "alone" / name), name
