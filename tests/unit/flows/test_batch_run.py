"""The plain function that runs a batch: without Prefect, and with the same bytes as the flow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flows
from tests.support.commands import CLASSES, Command, is_complete, result_digests
from tests.support.faults.pictures import draw, red_and_blue, write

PLAIN = """
import sys
from pathlib import Path
from flows import BatchRequest, run_batch
from pipeline.config import load_config

class Listener:
    seen = []
    def batch_planned(self, batch): self.seen.append("planned")
    def stage_started(self, key, stage): self.seen.append(f"{key}: {stage}")
    def block_done(self, key, stage, counts): pass
    def slide_done(self, outcome): self.seen.append(f"{outcome.key}: {outcome.state}")

slides, out, *settings = sys.argv[1:]
batch = run_batch(BatchRequest(inputs=(Path(slides),), out=Path(out), config=load_config(None, settings)), Listener())
print([batch.exit_code(), Listener.seen, sorted({"prefect", "distributed"} & set(sys.modules))])
"""
STAGES = ["ingest", "tissue", "predict", "label", "measure", "pyramid", "export", "overlay", "manifest"]


def test_a_batch_runs_without_prefect_in_the_bytes_of_the_flow(
    overtile: Command, prefect_server: str, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    for name, shape in (("a", (300, 420)), ("b", (530, 260))):
        write(slides / f"{name}.tif", draw(shape, red_and_blue(shape)))
    settings = [f"model.weights={CLASSES}", "cluster.kind=serial", "tiles.block=512", "compute.precision=fp32"]
    run = [sys.executable, "-c", PLAIN, str(slides), str(tmp_path / "plain"), *settings]
    ran = subprocess.run(run, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    code, seen, loaded = ast.literal_eval(ran.stdout)
    assert (code, loaded) == (0, [])
    assert seen[0] == "planned"
    for key in ("a", "b"):
        assert [event for event in seen if event.startswith(f"{key}: ")] == [
            *(f"{key}: {stage}" for stage in STAGES),
            f"{key}: complete",
        ]
    by_flow = overtile.segment(slides, tmp_path / "flow")
    assert by_flow.code == 0, by_flow.transcript
    for key in ("a", "b"):
        assert is_complete(tmp_path / "plain" / key)
        assert result_digests(tmp_path / "plain" / key) == result_digests(tmp_path / "flow" / key)


BROKEN = """
import sys
from pathlib import Path
from flows import BatchRequest, run_batch
from pipeline.config import load_config

slides, out, *settings = sys.argv[1:]
batch = run_batch(BatchRequest(inputs=(Path(slides),), out=Path(out), config=load_config(None, settings)))
print([batch.exit_code(), {outcome.key: outcome.state for outcome in batch.outcomes}])
"""


def test_a_slide_that_fails_is_an_outcome_of_the_plain_function(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    write(slides / "good.tif", draw((200, 200), red_and_blue((200, 200))))
    (slides / "broken.tif").write_bytes(b"II*\0")
    settings = [f"model.weights={CLASSES}", "cluster.kind=serial", "tiles.block=512", "compute.precision=fp32"]
    run = [sys.executable, "-c", BROKEN, str(slides), str(tmp_path / "out"), *settings]
    ran = subprocess.run(run, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ast.literal_eval(ran.stdout) == [3, {"broken": "failed", "good": "complete"}]


FLOW = """
import sys
import flows
print(sorted({"prefect", "torch", "pipeline"} & set(sys.modules)))
from flows import BatchRequest, RunConfig, segment_folder
try:
    segment_folder(BatchRequest(inputs=["nothing-here"], out="out", config=RunConfig()))
except Exception as error:
    print(type(error).__name__)
print(segment_folder.name, sorted(segment_folder.parameters.properties))
"""


def test_the_flow_is_exported_and_imported_when_it_is_used(prefect_server: str, tmp_path: Path) -> None:
    environment = Command.under(tmp_path, prefect_server).environment
    run = [sys.executable, "-c", FLOW]
    ran = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(environment))
    assert ran.stdout.splitlines() == ["[]", "ConfigError", "segment-folder ['request']"], ran.stderr


def test_every_exported_name_exists_and_others_are_refused() -> None:
    assert all(getattr(flows, name) for name in flows.__all__)
    assert set(flows.__all__) == set(flows._MODULES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flows.nothing  # noqa: B018  the look-up is what is tested
