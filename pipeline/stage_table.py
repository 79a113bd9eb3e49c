"""The stages of a slide in order: one row each, and the only place that lists them.

A new stage is one row here, one module in ``pipeline/stages``, its hash in ``pipeline/runs/plan.py`` and its binding in
``pipeline/runs/stage_runner.py``; a new file or array also needs its path in ``pipeline/storage/layout.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a slide.

    Attributes:
        name: Name in configurations, manifests, stamps and progress.
        version: Part of the plan hash; raised by one when a change to the stage's code changes what it writes.
        cost: Relative cost of one block, for progress.
        reads: Artifacts that the stage reads, by their names in ``pipeline.storage.layout``.
        writes: Artifacts that the stage writes; each artifact has one writer.
        upstream: Stages whose plan hashes enter this stage's hash.
        is_network: Whether the network's answer depends on the stage.
        needs_gpu: Whether the stage's blocks run on GPU workers where there are any.
    """

    name: str
    version: int
    cost: float
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    upstream: tuple[str, ...]
    is_network: bool = False
    needs_gpu: bool = False


MAPS = ("maps/distance", "maps/centre", "maps/boundary")
"""Artifacts that only networks with the map of that name have."""

STAGE_TABLE: tuple[Stage, ...] = (
    Stage("ingest", 1, 3.0, (), ("image",), (), is_network=True),
    Stage("tissue", 2, 0.5, ("image",), ("tissue", "quality"), ("ingest",), is_network=True),
    Stage(
        *("predict", 1, 80.0, ("image", "tissue"), ("probability", *MAPS), ("ingest", "tissue")),
        is_network=True,
        needs_gpu=True,
    ),
    Stage("label", 2, 2.0, ("probability", *MAPS), ("objects",), ("predict",)),
    Stage("measure", 2, 2.0, ("image", "probability", "objects"), ("table",), ("ingest", "predict", "label")),
    Stage("pyramid", 1, 2.0, ("image", "probability", *MAPS, "objects"), ("levels",), ("ingest", "predict", "label")),
    Stage("export", 1, 4.0, ("objects", "table"), ("geojson",), ("label", "measure")),
    Stage(
        *("overlay", 3, 0.0, ("image", "tissue", "quality", "objects", "table", "levels"), ("overview",)),
        upstream=("tissue", "label", "measure", "pyramid"),
    ),
)

STAGES: tuple[str, ...] = tuple(stage.name for stage in STAGE_TABLE)
"""Names of the stages in the order in which they run."""

STAGE: dict[str, Stage] = {stage.name: stage for stage in STAGE_TABLE}
"""Stages by name."""

NETWORK_STAGES: tuple[str, ...] = tuple(stage.name for stage in STAGE_TABLE if stage.is_network)
"""Stages that decide the probability."""

WRITER: dict[str, str] = {artifact: stage.name for stage in STAGE_TABLE for artifact in stage.writes}
"""The stage that writes each artifact."""

INGEST, PREDICT, OVERLAY = WRITER["image"], WRITER["probability"], WRITER["overview"]
"""The stages that schedulers and estimates treat in their own way."""
