"""Rules of the source tree: levels of folders, where each library may be imported, and the exceptions by name.

A new module needs no entry here; a new folder needs one, in the level it belongs to.
"""

from __future__ import annotations

PACKAGES = ("flows", "pipeline", "unet_core")  # each may import itself and those to its right

LEVELS: tuple[tuple[str, ...], ...] = (
    ("unet_core", "unet_core.metrics", "pipeline"),
    (
        "unet_core.data",
        "unet_core.networks",
        "pipeline.slides.checks",
        "pipeline.rendering",
        "pipeline.tissue_detection",
    ),
    ("unet_core.model_file", "pipeline.storage", "pipeline.slides.tiff"),
    ("unet_core.training", "pipeline.slides", "pipeline.execution", "pipeline.inference"),
    ("pipeline.inputs",),
    ("pipeline.objects",),
    ("pipeline.stages", "pipeline.annotations"),
    ("pipeline.runs", "pipeline.evaluation"),
    ("pipeline.exports",),
    ("flows.batch",),
    ("flows.reports",),
    ("flows.training", "flows.view"),
    ("flows",),
    ("flows.cli",),
)
"""Folders, lowest first. A module imports modules of its own folder and of folders on lower levels."""

MODULES_IN_A_FOLDER = 20

LIBRARIES: dict[str, tuple[str, ...]] = {
    "prefect": ("flows/*",),
    "uvicorn": ("flows/prefect_server.py", "flows/view/server.py"),
    "starlette": ("flows/view/server.py",),
    "typer": ("flows/cli/*.py",),
    "click": ("flows/cli/main.py",),
    "rich": ("flows/*",),
    "dask": ("pipeline/execution/*.py", "pipeline/exports/result.py"),
    "dask_jobqueue": ("pipeline/execution/cluster.py",),
    "distributed": ("pipeline/execution/*.py",),
    "torch": ("unet_core/*", "pipeline/inference/predictor.py", "flows/cli/doctor.py"),
    "safetensors": ("unet_core/*",),
    "tifffile": (
        "pipeline/slides/*",
        "pipeline/annotations/label_image.py",
        "pipeline/exports/ome_tiff.py",
        "pipeline/runs/segment_image.py",
        "flows/cli/demo.py",
    ),
    "imagecodecs": ("pipeline/slides/*", "flows/cli/demo.py"),
    "simplejpeg": ("pipeline/slides/*",),
    "zarr": (
        "pipeline/storage/slide_store.py",
        "pipeline/stages/pyramid.py",
        "pipeline/slides/ome_zarr.py",
        "pipeline/exports/ome_zarr_04.py",
    ),
    "numcodecs": ("pipeline/storage/shard.py", "pipeline/exports/ome_zarr_04.py"),
    "google_crc32c": ("pipeline/storage/shard.py",),
    "ome_zarr_models": (
        "pipeline/storage/slide_store.py",
        "pipeline/storage/ome_metadata.py",
        "pipeline/slides/ome_zarr.py",
    ),
    "rasterio": ("pipeline/objects/polygons.py", "pipeline/annotations/qupath_objects.py"),
    "yaml": ("pipeline/config.py",),
    "sklearn": ("unet_core/training/baselines.py", "unet_core/data/folds.py"),
    "openslide": ("pipeline/slides/openslide_reader.py",),
    "pydicom": ("pipeline/slides/dicom.py",),
    "monai": ("unet_core/*",),
    "matplotlib": ("flows/reports/figures.py",),
    "jinja2": ("flows/reports/html_page.py",),
    "markupsafe": ("flows/reports/html_page.py",),
    **dict.fromkeys(("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"), ()),
}
"""Libraries that only some modules may import. A pattern with ``/*`` at its end includes sub-folders."""

_PREFECT = ("artifacts", "segment", "train", "scheduled_run", "missed_runs", "schedule", "notifications")
LAZY = {
    "torch": ("unet_core/*", "pipeline/inference/predictor.py"),
    "monai": ("unet_core/networks/monai_variants.py",),
    "sklearn": (),
    "zarr": ("pipeline/stages/pyramid.py", "pipeline/slides/ome_zarr.py", "pipeline/exports/ome_zarr_04.py"),
    "matplotlib": ("flows/reports/figures.py",),
    "prefect": tuple(f"flows/{name}.py" for name in _PREFECT),
}
"""Libraries that take long to import (torch and prefect a second, zarr a third), and the modules that may import them
at the top. Other modules import them inside functions."""

LIGHT = (
    "unet_core.model_file.header",
    "unet_core.networks.model_summary",
    "unet_core.shapes",
    "pipeline.runs.plan",
    "pipeline.runs.slide_run",
    "pipeline.execution.cluster",
    *(f"pipeline.stages.{stage}" for stage in ("ingest", "tissue", "label", "measure", "pyramid", "export", "overlay")),
    "pipeline.runs.verify",
    "flows.cli.main",
    "flows.batch.status",
    "flows.view.server",
)
"""Modules that import neither torch nor prefect, directly or through others."""

BROAD = {
    ("flows/batch/batch.py", "_plan"),
    ("flows/batch/batch.py", "open_slide_run"),
    ("flows/batch_run.py", "_attempt"),
    ("pipeline/slides/read_timeout.py", "_resolve"),
}
"""Functions with ``except Exception``: around a slide or stage of a batch, or where an error is raised again in another
thread."""

PASSES_ON = {("unet_core/spec.py", "preset"), ("pipeline/runs/segment_image.py", "segment_image")}
"""Functions with ``**keywords`` that are passed on to a model which validates them."""

TOP = {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "CHANGELOG.md", "LICENSE", "configs", "tests"}
TOP |= set(PACKAGES)

MEANINGLESS = {
    *("utils", "util", "helpers", "helper", "common", "base", "manager", "handler", "engine", "misc", "core", "lib"),
}
"""Words that no file name may consist of."""

REFUSED_WORDS = (
    r"one decisio[n] made here",
    r"^\s*(?:\"\"\")?Decision:",
    r"\b[Ww]hoeve[r]\b",
    r"\b[Nn]obod[y]\b",
    r"\bof its own accord\b",
    r"\b[Hh]e who\b",
    r"\b(?:is|are|was|were|be) let in\b",
    r"\bone voice\b",
    r"\bthe house\b",
    r"\bin the air\b",
)
"""Phrases that standard technical English does without, as regular expressions that do not match themselves."""
