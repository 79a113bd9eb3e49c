"""The flow on a Prefect server: names and states of runs and tasks, artifacts, and slides in parallel."""

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
class FlowRun:
    """The output of the command, and the records of the server."""

    ran: Ran
    flow: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    artifacts: list[dict[str, Any]]


def records(api: str, kind: str, **filters: Any) -> list[dict[str, Any]]:
    """Rows of one kind from the server."""
    body = json.dumps(filters).encode()
    request = urllib.request.Request(f"{api}/{kind}/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return list(json.load(answer))


@pytest.fixture(scope="module")
def flow_run(overtile: Command, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> FlowRun:
    """Two slides of real tissue and an invalid one, on two dask workers."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "evening").mkdir()
    tissue = np.tile(immunohistochemistry()[:509, :505], (3, 3, 1))
    for name in ("first", "second"):
        tifffile.imwrite(folder / "evening" / f"{name}.tif", tissue, tile=(256, 256), photometric="rgb")
    (folder / "evening" / "broken.tif").write_bytes(b"II*\0")
    options = ["--mpp", "0.25", "--set", "tiles.block=512", "--set", "cluster.workers=2", "--model", CONTEXT]
    ran = overtile.run("segment", folder / "evening", "--out", folder / "morning", *options, out=folder / "morning")
    (flow,) = records(prefect_server, "flow_runs", flow_runs={"name": {"any_": ["evening -> morning"]}})
    artifacts = records(
        prefect_server, "artifacts", artifacts={"flow_run_id": {"any_": [flow["id"]]}, "key": {"any_": ["slide"]}}
    )
    return FlowRun(ran, flow, settled_tasks(prefect_server, flow["id"]), artifacts)


def settled_tasks(api: str, flow_id: str) -> dict[str, dict[str, Any]]:
    """Task runs of the flow by name. The server records them with a delay, so it is polled until all have ended."""
    tasks: list[dict[str, Any]] = []
    for _ in range(300):
        tasks = records(api, "task_runs", flow_runs={"id": {"any_": [flow_id]}}, limit=200)
        if len(tasks) >= 18 and all(task["end_time"] for task in tasks):
            break
        threading.Event().wait(0.1)
    return {task["name"]: task for task in tasks}


def test_failed_slide_does_not_stop_the_others(flow_run: FlowRun) -> None:
    assert flow_run.ran.code == 3, flow_run.ran.transcript
    assert flow_run.ran.states() == {"first": "complete", "second": "complete", "broken": "failed"}


def test_each_stage_of_each_slide_is_a_named_task(flow_run: FlowRun) -> None:
    stages = ("ingest", "tissue", "predict", "label", "measure", "pyramid", "export", "overlay", "manifest")
    assert set(flow_run.tasks) == {f"{slide}: {stage}" for slide in ("first", "second") for stage in stages}
    assert {task["state_type"] for task in flow_run.tasks.values()} == {"COMPLETED"}


def test_incomplete_batch_is_a_failed_flow_run(flow_run: FlowRun) -> None:
    assert flow_run.flow["state_type"] == "FAILED"
    assert "1 of 3 slides" in flow_run.flow["state"]["message"]


def test_each_complete_slide_has_an_artifact(flow_run: FlowRun) -> None:
    assert sorted(artifact["description"] for artifact in flow_run.artifacts) == ["first", "second"]
    assert all("| objects |" in artifact["data"] for artifact in flow_run.artifacts)


def test_next_slide_is_read_while_one_is_computed(flow_run: FlowRun) -> None:
    assert flow_run.tasks["second: ingest"]["start_time"] < flow_run.tasks["first: predict"]["end_time"]


# ---- how many slides are open --------------------------------------------------------------------------------------


def opened(policy: AdmissionPolicy, blocks_a_slide: int) -> int:
    """Number of open slides of a long batch before the first has passed the network."""
    left: list[int] = []
    while policy.may_open(left):
        left.append(blocks_a_slide)
    return len(left)


def test_auto_opens_slides_until_workers_have_blocks() -> None:
    auto = AdmissionPolicy("auto", threads=lambda: 4)
    assert [opened(auto, blocks) for blocks in (500, 12, 6, 4, 2)] == [2, 2, 2, 3, 6]
    assert opened(auto, 0) == 16, "slides that have passed the network have no blocks left, but hold tables in memory"
    assert auto.may_open([5, 3, 3]), "few blocks are left: the next slide may open"
    assert not auto.may_open([5, 4, 3])


def test_open_slides_are_limited_to_the_configured_number() -> None:
    assert [opened(AdmissionPolicy(number, threads=lambda: 4), 1) for number in (1, 5)] == [1, 5]
