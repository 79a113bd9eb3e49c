"""The stage table agrees with the names on disk, the runners and the plan."""

from __future__ import annotations

import pytest

from pipeline.runs import dropped_arrays, prune
from pipeline.runs.stage_runner import RUNNERS
from pipeline.stage_table import NETWORK_STAGES, STAGE, STAGE_TABLE, STAGES, WRITER
from pipeline.storage import layout


def test_stage_names_versions_and_hash_inputs() -> None:
    assert {stage.name: (stage.version, stage.upstream) for stage in STAGE_TABLE} == {
        "ingest": (1, ()),
        "tissue": (2, ("ingest",)),
        "predict": (1, ("ingest", "tissue")),
        "label": (2, ("predict",)),
        "measure": (2, ("ingest", "predict", "label")),
        "pyramid": (1, ("ingest", "predict", "label")),
        "export": (1, ("label", "measure")),
        "overlay": (3, ("tissue", "label", "measure", "pyramid")),
    }
    assert NETWORK_STAGES == ("ingest", "tissue", "predict")
    assert [stage.name for stage in STAGE_TABLE if stage.needs_gpu] == ["predict"]


def test_every_stage_has_a_runner() -> None:
    assert tuple(RUNNERS) == STAGES


def test_every_artifact_has_one_writer_and_a_path() -> None:
    written = [artifact for stage in STAGE_TABLE for artifact in stage.writes]
    assert sorted(written) == sorted({*layout.ARRAYS, *layout.FILES, layout.LEVELS})
    assert {artifact for stage in STAGE_TABLE for artifact in stage.reads} <= set(written)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_rerun_when_an_artifact_that_it_reads_changes(stage: str) -> None:
    """Directly or through another stage, the hash of each stage depends on the writers of what the stage reads."""
    before: set[str] = set()
    for name in STAGE[stage].upstream:
        before |= {name, *_upstream(name)}
    assert {WRITER[artifact] for artifact in STAGE[stage].reads} <= before
    assert all(STAGES.index(name) < STAGES.index(stage) for name in before)


def _upstream(stage: str) -> set[str]:
    return {name for own in STAGE[stage].upstream for name in (own, *_upstream(own))}


def test_droppable_and_prunable_parts_and_their_stages() -> None:
    maps = dict.fromkeys(("maps/distance/0", "maps/centre/0", "maps/boundary/0"), "predict")
    assert {"0": "ingest", "probability/0": "predict", **maps} == dropped_arrays.MAKERS
    assert prune.PARTS == {
        "tables": ("objects.parquet",),
        "overview": ("overview.png",),
        "geojson": ("objects.geojson.gz",),
        "labels": ("slide.ome.zarr/labels",),
        "probability": ("slide.ome.zarr/probability", "slide.ome.zarr/maps"),
        "tissue": ("slide.ome.zarr/tissue", "slide.ome.zarr/quality"),
        "image": ("slide.ome.zarr",),
    }


@pytest.mark.parametrize(
    ("path", "artifact"),
    [
        ("slide.ome.zarr/0/c/0/1/2", "image"),
        ("slide.ome.zarr/1/c/0/1/2", "levels"),
        ("slide.ome.zarr/zarr.json", "levels"),
        ("slide.ome.zarr/maps/distance/0/c/1/2", "maps/distance"),
        ("slide.ome.zarr/maps/distance/1/c/1/2", "levels"),
        ("slide.ome.zarr/maps/zarr.json", "levels"),
        ("slide.ome.zarr/labels/objects/0/zarr.json", "objects"),
        ("slide.ome.zarr/labels/objects/zarr.json", "levels"),
        ("objects.parquet", "table"),
        ("objects.parquet.bak", "levels"),
    ],
)
def test_artifact_of_a_file_by_its_path(path: str, artifact: str) -> None:
    assert layout.artifact_of(path) == artifact
