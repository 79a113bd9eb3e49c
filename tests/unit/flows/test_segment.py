"""The flow on a real Prefect server: readable runs, honest states, one slide read while another is computed."""

from __future__ import annotations

import json
import threading
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tifffile
from skimage.data import immunohistochemistry

from flows.batch.scheduler import AdmissionPolicy
from tests.support.commands import CONTEXT, Command, Ran


@dataclass(frozen=True, slots=True)
class Shown:
    """What the command did, and what the server shows of it."""

    ran: Ran
    flow: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    artifacts: list[dict[str, Any]]


def asked(api: str, what: str, **filters: Any) -> list[dict[str, Any]]:
    """Rows of one kind from the server."""
    body = json.dumps(filters).encode()
    request = urllib.request.Request(f"{api}/{what}/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return list(json.load(answer))


@pytest.fixture(scope="module")
def shown(overtile: Command, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Two slides of real tissue and one that is none, on two dask workers."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "evening").mkdir()
    tissue = np.tile(immunohistochemistry()[:509, :505], (3, 3, 1))
    for name in ("first", "second"):
        tifffile.imwrite(folder / "evening" / f"{name}.tif", tissue, tile=(256, 256), photometric="rgb")
    (folder / "evening" / "broken.tif").write_bytes(b"II*\0")
    options = ["--mpp", "0.25", "--set", "tiles.block=512", "--set", "cluster.workers=2", "--model", CONTEXT]
    ran = overtile.run("segment", folder / "evening", "--out", folder / "morning", *options, out=folder / "morning")
    (flow,) = [run for run in asked(prefect_server, "flow_runs") if run["name"] == "evening -> morning"]
    artifacts = asked(
        prefect_server, "artifacts", artifacts={"flow_run_id": {"any_": [flow["id"]]}, "key": {"any_": ["slide"]}}
    )
    return Shown(ran, flow, settled_tasks(prefect_server, flow["id"]), artifacts)


def settled_tasks(api: str, flow_id: str) -> dict[str, dict[str, Any]]:
    """The flow's task runs by name. The server writes them down a moment after they happened: asked until all ended."""
    tasks: list[dict[str, Any]] = []
    for _ in range(300):
        tasks = asked(api, "task_runs", flow_runs={"id": {"any_": [flow_id]}}, limit=200)
        if len(tasks) >= 18 and all(task["end_time"] for task in tasks):
            break
        threading.Event().wait(0.1)
    return {task["name"]: task for task in tasks}


def test_a_bad_slide_does_not_stop_the_others(shown: Shown) -> None:
    assert shown.ran.code == 3, shown.ran.said
    assert shown.ran.states() == {"first": "complete", "second": "complete", "broken": "failed"}


def test_one_task_for_each_stage_of_each_slide_by_name(shown: Shown) -> None:
    stages = ("ingest", "tissue", "predict", "label", "measure", "pyramid", "export", "overlay", "manifest")
    assert set(shown.tasks) == {f"{slide}: {stage}" for slide in ("first", "second") for stage in stages}
    assert {task["state_type"] for task in shown.tasks.values()} == {"COMPLETED"}


def test_a_batch_that_is_not_complete_is_a_failed_run(shown: Shown) -> None:
    assert shown.flow["state_type"] == "FAILED"
    assert "1 of 3 slides" in shown.flow["state"]["message"]


def test_an_artifact_for_each_slide(shown: Shown) -> None:
    assert sorted(artifact["description"] for artifact in shown.artifacts) == ["first", "second"]
    assert all("| objects |" in artifact["data"] for artifact in shown.artifacts)


def test_the_next_slide_is_read_while_one_is_computed(shown: Shown) -> None:
    assert shown.tasks["second: ingest"]["start_time"] < shown.tasks["first: predict"]["end_time"]


# ---- how many slides are open --------------------------------------------------------------------------------------


def opened(policy: AdmissionPolicy, blocks_a_slide: int) -> int:
    """How many slides of a long batch are open before the first is through the network."""
    left: list[int] = []
    while policy.may_open(left):
        left.append(blocks_a_slide)
    return len(left)


def test_so_many_slides_are_open_that_workers_have_blocks() -> None:
    auto = AdmissionPolicy("auto", threads=lambda: 4)
    assert [opened(auto, blocks) for blocks in (500, 12, 6, 4, 2)] == [2, 2, 2, 3, 6]
    assert opened(auto, 0) == 16, "what is through the network does not count, but has its tables in memory"
    assert auto.may_open([5, 3, 3]), "nearly through: the next may come"
    assert not auto.may_open([5, 4, 3])


def test_no_more_slides_are_open_than_asked_for() -> None:
    assert [opened(AdmissionPolicy(number, threads=lambda: 4), 1) for number in (1, 5)] == [1, 5]
