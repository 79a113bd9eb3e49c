"""Segment one image in memory: the stages of a slide in a temporary folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from pipeline.config import RunConfig, validated
from pipeline.errors import ConfigError
from pipeline.execution.blocks import serial
from pipeline.inference.ensemble import load_model
from pipeline.inputs.discovery import Candidate
from pipeline.runs.plan import Compute, SlidePlan, plan_slide, resolve_tile
from pipeline.runs.slide_run import SlideRun
from pipeline.storage.layout import IMAGE, OBJECTS, PROBABILITY, TABLE
from pipeline.storage.slide_store import SlideStore

_TILE = (512, 512)


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The segmentation of one image, at the model's resolution.

    Attributes:
        image: Pixels (channel, y, x) that the network has seen, in the type of the input.
        probability: Probability of each foreground class (class, y, x) as uint8, 255 for 1.
        labels: Object ids (y, x) as uint32; 0 is background.
        objects: One row an object, with the columns of ``objects.parquet``; ``objects.to_pandas()`` makes a data frame.
        class_names: Names of the foreground classes.
        mpp: Micrometres per pixel of the arrays. For an image without a resolution, 1.
        warnings: What should be known about the image, for example that its resolution is unusual.
    """

    image: NDArray[Any]
    probability: NDArray[np.uint8]
    labels: NDArray[np.uint32]
    objects: pa.Table
    class_names: tuple[str, ...]
    mpp: float
    warnings: tuple[str, ...]


def segment_image(
    image: ArrayLike | str | Path,
    model: str = "nuclei",
    *,
    mpp: float | Literal["native"] | None = None,
    tissue: Mapping[str, Any] | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    **objects: Any,
) -> Segmentation:
    """Segment one image and return arrays; nothing stays on disk.

    The arrays equal those that ``overtile segment`` writes for the same image with the same settings: tiles are read
    with their context, mirrored at the border, and never blended.

    Args:
        image: Pixels (y, x) or (y, x, channel) of uint8 or uint16, or the path of a slide or image file.
        model: Name of a built-in model (``nuclei``, ``nuclei@1``, ``nuclei-fluorescence``) or path of a model file.
        mpp: Micrometres per pixel of the image. An image at another resolution than the model's is resampled to it;
            ``"native"`` turns that off. A file may state its own resolution; an array has none.
        tissue: Settings of the section ``tissue``, whose defaults an empty mapping has. None computes all pixels.
        precision: Precision of the network; ``"auto"`` is the fastest that the device computes natively.
        **objects: Settings of the section ``objects``, such as ``threshold``, ``min_area_um2`` or ``split``.

    Returns:
        The segmentation, at the resolution of the model.

    Raises:
        ConfigError: For an array of another shape or type, for unknown settings, and for a missing ``mpp``.
        ModelError: When the model does not exist or cannot be read.
        SlideError: When the file cannot be read, or has other channels than the model.
    """
    config = validated(
        RunConfig,
        {
            "model": {"weights": str(model)},
            "input": {"mpp": float(mpp) if isinstance(mpp, int) else mpp},
            "compute": {"precision": precision},
            "tissue": tissue,
            "objects": objects,
            "outputs": {"geojson": False, "overview": False},
        },
        "segment_image",
    )
    with TemporaryDirectory(prefix="overtile-") as folder:
        path = Path(image) if isinstance(image, str | Path) else _write(np.asarray(image), mpp, Path(folder))
        plan = _plan(path, config)
        store = SlideStore(Path(folder) / "result")
        _run(SlideRun(plan, store))
        return Segmentation(
            image=store.read(IMAGE)[:, :, :],
            probability=store.read(PROBABILITY)[:, :, :],
            labels=store.read(OBJECTS)[:, :],
            objects=pq.read_table(store.root / TABLE, memory_map=False),
            class_names=plan.model.spec.class_names,
            mpp=plan.resolution.mpp,
            warnings=plan.warnings,
        )


def _plan(path: Path, config: RunConfig) -> SlidePlan:
    from pipeline.inference.predictor import resolve_device, resolve_precision  # torch takes a second to import

    ensemble = load_model(config.model)
    device = resolve_device(config.compute.device)
    precision = resolve_precision(config.compute.precision, device)
    return plan_slide(
        Candidate("image", path), ensemble, Compute(device, precision, resolve_tile(config, ensemble, device)), config
    )


def _run(run: SlideRun) -> None:
    run.prepare()
    for stage in run.plan.hashes:
        run.step(stage, serial)


def _write(pixels: NDArray[Any], mpp: float | Literal["native"] | None, folder: Path) -> Path:
    """Write an array as a TIFF file, from which it is read like any slide."""
    import tifffile

    if pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.dtype not in (np.uint8, np.uint16):
        raise ConfigError(
            f"image: expected (y, x) or (y, x, channel) of uint8 or uint16, found {pixels.shape} of {pixels.dtype}. "
            "Move the channels to the last axis and scale the values to one of these types"
        )
    if mpp is None:
        raise ConfigError(
            'image: expected its resolution, found an array, which has none. Give mpp=, or mpp="native" if '
            "objects have the size in pixels that the model was trained on"
        )
    path = folder / "image.tif"
    rgb = pixels.ndim == 3 and pixels.shape[2] == 3
    planes = pixels if rgb or pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(
        path,
        np.ascontiguousarray(planes),
        tile=_TILE,
        photometric="rgb" if rgb else "minisblack",
        planarconfig="contig" if rgb else "separate" if pixels.ndim == 3 and pixels.shape[2] > 1 else None,
    )
    return path
