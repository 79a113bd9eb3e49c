"""The stages of a slide in order: one row each, and the only place that lists them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a slide.

    Attributes:
        name: Name in configurations, manifests, stamps and progress.
        version: Part of the plan hash; raised by one when a change to the stage's code changes what it writes.
        cost: Relative cost of one block, for progress.
        upstream: Stages whose plan hashes enter this stage's hash.
        is_network: Whether the network's answer depends on the stage.
        needs_gpu: Whether the stage's blocks run on GPU workers where there are any.
    """

    name: str
    version: int
    cost: float
    upstream: tuple[str, ...] = ()
    is_network: bool = False
    needs_gpu: bool = False


STAGE_TABLE: tuple[Stage, ...] = (
    Stage("ingest", 1, 3.0, is_network=True),
    Stage("tissue", 2, 0.5, ("ingest",), is_network=True),
    Stage("predict", 1, 80.0, ("ingest", "tissue"), is_network=True, needs_gpu=True),
    Stage("label", 2, 2.0, ("predict",)),
    Stage("measure", 2, 2.0, ("ingest", "predict", "label")),
    Stage("pyramid", 1, 2.0, ("ingest", "predict", "label")),
    Stage("export", 1, 4.0, ("label", "measure")),
    Stage("overlay", 3, 0.0, ("tissue", "label", "measure", "pyramid")),
)

STAGES: tuple[str, ...] = tuple(stage.name for stage in STAGE_TABLE)
"""Names of the stages in the order in which they run."""

STAGE: dict[str, Stage] = {stage.name: stage for stage in STAGE_TABLE}
"""Stages by name."""

NETWORK_STAGES: tuple[str, ...] = tuple(stage.name for stage in STAGE_TABLE if stage.is_network)
"""Stages that decide the probability."""
