"""The result of a slide of 100,000 x 100,000 px, for benchmarks of readers.

It takes seconds to make and a few megabytes of disk. One block of real tissue is segmented; its shards are hard-linked
to every position of the large arrays and their levels. Every file exists with its real size, every shard can be
decoded, and metadata, levels and manifest are written by the usual code. Differences from a real result: each block and
level shows the same tissue, and ids repeat. The object table has the requested length.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from support.tissue import write_slide

from pipeline.execution.blocks import Counts, StageContext
from pipeline.geometry import Box, TileGrid
from pipeline.image_info import ClassInfo, ImageInfo
from pipeline.objects.table_writer import ROW_GROUP
from pipeline.rendering.contrast import class_colours
from pipeline.stages.pyramid import PyramidInputs, pyramid_slide
from pipeline.storage.atomic_files import sha256_file
from pipeline.storage.layout import IMAGE, MAPS, OBJECTS, PROBABILITY
from pipeline.storage.manifest import read_manifest, result_files, rewrite
from pipeline.storage.slide_store import ArraySpec, Index, SlideStore, shard_path

SIDE_PX, BLOCK_PX = 100_000, 2048
MADE_BY = {IMAGE: "ingest", PROBABILITY: "predict", OBJECTS: "label"}


def virtual_result(root: Path, objects: int) -> SlideStore:
    """Make the result in ``root`` with this many rows in its table."""
    small = _one_block(root.parent)
    manifest = read_manifest(small)
    assert manifest is not None
    store = SlideStore(root)
    root.mkdir()
    for name in ("overview.png", "objects.geojson.gz"):
        (root / name).write_bytes((small.root / name).read_bytes())
    _write_arrays(store, small, manifest)
    _write_table(store, small, objects)
    rewrite(store, _manifest(store, manifest, objects))
    return store


def _one_block(folder: Path) -> SlideStore:
    """Run the installed command on a slide of one block."""
    write_slide(folder / "block.tif", BLOCK_PX)
    arguments = ["segment", folder / "block.tif", "--out", folder / "out", "--set", "cluster.kind=serial"]
    subprocess.run([Path(sys.executable).parent / "overtile", *arguments], check=True, stdout=sys.stderr)
    return SlideStore(folder / "out" / "block")


def _write_arrays(store: SlideStore, small: SlideStore, manifest: dict[str, Any]) -> None:
    plan, spec = manifest["plan"], manifest["plan"]["model"]["spec"]
    factor = manifest["stages"]["tissue"]["facts"]["factor"]
    made_by = MADE_BY | {MAPS[name]: "predict" for name in spec.get("maps", ())}
    sides = {"tissue": SIDE_PX // factor} | dict.fromkeys(made_by, SIDE_PX)
    for path, side_px in sides.items():
        source, codec = small.read(path), "lz4" if path == IMAGE else "zstd"
        shape = (*source.shape[:-2], side_px, side_px)
        store.create(ArraySpec(path, shape, str(source.dtype), source.block_px, source.plan, codec))  # type: ignore[arg-type]  # one of two literals
        grid = TileGrid(Box(0, 0, side_px, side_px), source.block_px)
        list(link(store, small, path, (tile.index for tile in grid)))
    section = PyramidInputs(
        image=ImageInfo(plan["image"]["mpp"], (1.0, 1.0), tuple(plan["image"]["channels"])),
        classes=ClassInfo(tuple(spec["class_names"]), class_colours(len(spec["class_names"]))),
        arrays={path: plan["hashes"][stage] for path, stage in made_by.items()},
    )
    work = StageContext(store.root, (SIDE_PX, SIDE_PX), BLOCK_PX, plan["hashes"]["pyramid"])
    pyramid_slide(work, section, Linking(store, small))


@dataclass(frozen=True, slots=True)
class Linking:
    """Maps blocks of a level by linking them."""

    store: SlideStore
    small: SlideStore

    def __call__(self, function: Callable[[Index], Counts], indices: Iterable[Index]) -> Iterator[Counts]:
        assert isinstance(function, partial)
        return link(self.store, self.small, function.args[1].path, indices)


def link(store: SlideStore, small: SlideStore, path: str, indices: Iterable[Index]) -> Iterator[Counts]:
    """Link all blocks of an array, or of one of its levels, to the one block of the small result."""
    first = path if path == "tissue" else f"{path[:-1]}0"
    ndim = len(small.read(first).shape)
    source = shard_path(small.zarr / first, (0, 0), ndim)
    for index in indices:
        shard = shard_path(store.zarr / path, index, ndim)
        shard.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, shard)
        yield {"blocks": 1}


def _write_table(store: SlideStore, small: SlideStore, objects: int) -> None:
    """Repeat the rows of the small table, moved to each block, up to the requested number."""
    rows = pq.read_table(small.root / "objects.parquet")
    across = SIDE_PX // BLOCK_PX
    parts = [_moved(rows, one, divmod(one % across**2, across)) for one in range(-(-objects // len(rows)))]
    table = pa.concat_tables(parts).slice(0, objects)
    pq.write_table(table, store.root / "objects.parquet", row_group_size=ROW_GROUP, compression="zstd")


def _moved(rows: pa.Table, number: int, index: Index) -> pa.Table:
    """Return the rows as those of another block: ids continue, pixel coordinates are moved."""
    for axis, position in zip("yx", index, strict=True):
        for name in (f"centroid_{axis}_px", f"bbox_{axis}0_px", f"bbox_{axis}1_px"):
            column = rows.schema.get_field_index(name)
            moved = pa.compute.add(rows[name], BLOCK_PX * position).cast(rows.schema.field(name).type)
            rows = rows.set_column(column, rows.schema.field(name), moved)
    ids = pa.compute.add(rows["id"], number * len(rows)).cast(rows.schema.field("id").type)
    return rows.set_column(rows.schema.get_field_index("id"), rows.schema.field("id"), ids)


def _manifest(store: SlideStore, manifest: dict[str, Any], objects: int) -> dict[str, Any]:
    """Return the small result's manifest with shape, files and objects of the large one."""
    digests: dict[int, str] = {}
    files = {}
    for path in result_files(store):
        found = path.stat()
        if found.st_ino not in digests:
            digests[found.st_ino] = sha256_file(path)
        files[path.relative_to(store.root).as_posix()] = {"size": found.st_size, "sha256": digests[found.st_ino]}
    content: dict[str, Any] = json.loads(json.dumps(manifest))
    content["plan"]["image"]["shape_yx"] = [SIDE_PX, SIDE_PX]
    content["stages"]["label"]["facts"]["objects"] = objects
    for row in content["stages"]["measure"]["facts"]["rows"]:
        row["count"] = objects
    content["stages"]["pyramid"] = {"facts": store.facts("pyramid"), "runs": content["stages"]["pyramid"]["runs"]}
    metadata = {name: (store.root / name).read_text("utf-8") for name in files if name.endswith("zarr.json")}
    return {**content, "files": files, "metadata": metadata}
