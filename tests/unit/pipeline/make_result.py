"""A finished slide folder with every kind of file, made from noise, for tests of the manifest and of verify."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.stage_table import STAGES, WRITER
from pipeline.storage import layout
from pipeline.storage.manifest import write_manifest
from pipeline.storage.slide_store import SlideStore
from tests.support.make_store import put_array

PLANS = {stage: f"{number}" * 64 for number, stage in enumerate(STAGES)}
PLAN = {"key": "case/ü", "hashes": PLANS, "config": {"tiles": {"block": 512}}, "shape": (700, 600)}
ARRAYS = {
    "0": ("ingest", (3, 700, 600)),
    "tissue": ("tissue", (22, 19)),
    "probability/0": ("predict", (1, 700, 600)),
    "labels/objects/0": ("label", (700, 600)),
    "1": ("pyramid", (3, 350, 300)),
    "probability/1": ("pyramid", (1, 350, 300)),
    "labels/objects/1": ("pyramid", (350, 300)),
}
FILES = {path: WRITER[artifact] for artifact, path in layout.FILES.items()}


def finished_slide(root: Path) -> SlideStore:
    """Make arrays, groups, files, stamps and the manifest."""
    store = SlideStore(root)
    rng = np.random.default_rng(7)
    for path, (stage, shape) in ARRAYS.items():
        put_array(store, path, rng.integers(0, 4, shape, np.uint8), PLANS[stage])
    for group in ("", "probability", "labels", "labels/objects"):
        content = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5"}}}
        (store.zarr / group / "zarr.json").write_text(json.dumps(content))
    for name in FILES:
        (root / name).write_bytes(rng.bytes(300))
    for stage in STAGES:
        store.stamp(stage, PLANS[stage], {})
    write_manifest(store, PLAN, {stage: {"facts": {}} for stage in STAGES})
    return store
