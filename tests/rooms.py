"""The plan of the house: which file is built on which, which library lives where, and the few exceptions by name.

A new file needs one line here, in the level it belongs to: that is the moment to ask whether it belongs at all.
"""

from __future__ import annotations

PACKAGES = ("flows", "pipeline", "unet_core")  # each may import itself and what stands to its right

LEVELS: tuple[tuple[str, ...], ...] = (
    ("alias errors layout", "geometry"),
    (  # pure files and single rooms. Within a family (one line) files may import one another, families may not
        "components connected holes hull moments numbering watershed",
        "beside",
        "config",
        "display picture page fields",
        "files",
        "flight",
        "mask_file",
        "morphology",
        "network",
        "object_table",
        "patience",
        "perimeter",
        "polygons",
        "regions",
        "discover resample slide slide_channels slide_check slide_dicom slide_file slide_formats slide_ifd slide_jpeg "
        "slide_kinds slide_labels slide_ome slide_openslide slide_photo slide_reader slide_state slide_tags slide_tiff "
        "slide_tiles slide_zarr",
        "shard",
        "tissue_mask",
    ),
    ("bad_tiles", "cases", "drawn", "lock", "plan model", "quality", "seam", "store"),
    ("agreement", "judge", "manifest", "object_runs", "ome_metadata", "work"),
    (
        "export handover ngff04 object_shapes ome_tiff",
        "ingest",
        "label split",
        "measure object_rows",
        "overlay",
        "predict",
        "pyramid",
        "tissue",
        "verify",
        "workers cluster",
    ),
    ("dropped", "staging", "stages"),
    ("slide_run", "prune"),
)
"""Files of ``pipeline``, lowest first. A file imports lower levels only."""

ROOMS: dict[str, tuple[str, ...]] = {
    "prefect": ("flows/*",),
    "uvicorn": ("flows/server.py", "flows/view/server.py"),
    "starlette": ("flows/view/server.py",),
    "typer": ("flows/cli.py", "flows/options.py", "flows/model.py", "flows/*_command*.py"),
    "click": ("flows/cli.py",),
    "rich": ("flows/*",),
    "dask": ("pipeline/workers.py", "pipeline/cluster.py"),
    "dask_jobqueue": ("pipeline/cluster.py",),
    "distributed": ("pipeline/workers.py", "pipeline/cluster.py"),
    "torch": ("unet_core/*", "pipeline/network.py", "flows/doctor.py"),
    "safetensors": ("unet_core/*",),
    "tifffile": ("pipeline/slide*.py", "pipeline/ome_tiff.py", "flows/demo.py"),
    "imagecodecs": ("pipeline/slide*.py", "flows/demo.py"),
    "simplejpeg": ("pipeline/slide*.py",),
    "zarr": ("pipeline/store.py", "pipeline/pyramid.py", "pipeline/slide_zarr.py", "pipeline/ngff04.py"),
    "numcodecs": ("pipeline/shard.py", "pipeline/ngff04.py"),
    "google_crc32c": ("pipeline/shard.py",),
    "ome_zarr_models": ("pipeline/store.py", "pipeline/ome_metadata.py", "pipeline/slide_zarr.py"),
    "rasterio": ("pipeline/polygons.py",),
    "yaml": ("pipeline/config.py",),
    "sklearn": ("unet_core/baselines.py", "unet_core/folds.py"),
    "openslide": ("pipeline/slide_openslide.py",),
    "pydicom": ("pipeline/slide_dicom.py",),
    "monai": ("unet_core/*",),
    "matplotlib": ("flows/figures.py",),
    "jinja2": ("flows/document.py",),
    "markupsafe": ("flows/document.py",),
    **dict.fromkeys(("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"), ()),
}
"""One library, one room: the files that may import it."""

_PREFECT = ("artifact", "segment", "train", "night", "catch_up", "schedule", "notify")
LAZY = {
    "torch": ("unet_core/*", "pipeline/network.py"),
    "monai": ("unet_core/variants.py",),
    "zarr": ("pipeline/pyramid.py", "pipeline/slide_zarr.py", "pipeline/ngff04.py"),
    "matplotlib": ("flows/figures.py",),
    "prefect": tuple(f"flows/{n}.py" for n in _PREFECT),
}
"""What costs a second to import, zarr a third: everywhere else only inside a function."""

LIGHT = (
    "unet_core.header",
    "unet_core.cost",
    "unet_core.shapes",
    "pipeline.plan",
    "pipeline.slide_run",
    "pipeline.cluster",
    *(f"pipeline.{stage}" for stage in ("ingest", "tissue", "label", "measure", "pyramid", "export", "overlay")),
    "pipeline.verify",
    "flows.cli",
    "flows.status",
    "flows.view.server",
)
"""Modules that must import neither torch nor prefect, not even through others."""

BROAD = {("flows/batch.py", "_plan"), ("flows/batch.py", "open_slide_run"), ("pipeline/patience.py", "_carry")}
"""Where ``except Exception`` stands: around one slide of a batch, which must never stop the others, and where an error
is raised again in another thread."""

PASSES_ON = {("unet_core/spec.py", "preset")}
"""Functions with ``**keywords``: they name fields of a model that checks them."""

TOP = {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "CHANGELOG.md", "LICENSE", "configs", "tests"}
TOP |= set(PACKAGES)

NOBODY = {"utils", "util", "helpers", "helper", "common", "base", "manager", "handler", "engine", "misc", "core", "lib"}
