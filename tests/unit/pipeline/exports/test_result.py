"""`open_result` reads what is on disk, lazily, and refuses what is not complete."""

from __future__ import annotations

import shutil
from pathlib import Path

import dask.array
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import pipeline
from pipeline.errors import ConfigError, DamagedError
from tests.support.faults.trees import Finished


def test_arrays_are_dask_arrays_of_the_stored_pixels(finished: Finished) -> None:
    result = pipeline.open_result(finished.result)
    for array, path in (
        (result.image, "0"),
        (result.probability, "probability/0"),
        (result.labels, "labels/objects/0"),
    ):
        assert isinstance(array, dask.array.Array)
        stored = zarr.open_array(finished.result / "slide.ome.zarr" / path, mode="r")
        assert array.chunksize[-2:] == (min(512, stored.shape[-2]), min(512, stored.shape[-1]))
        assert array.dtype == stored.dtype
        assert np.array_equal(array.compute(), stored[...])


def test_the_table_and_the_manifest_are_those_on_disk(finished: Finished) -> None:
    result = pipeline.open_result(str(finished.result))
    assert result.objects.equals(pq.read_table(finished.result / "objects.parquet"))
    assert result.mpp == 0.5
    assert result.manifest["plan"]["key"] == "slide"
    assert len(result.class_names) == len(result.probability)


def test_an_incomplete_result_is_refused(finished: Finished, tmp_path: Path) -> None:
    copy = tmp_path / "slide"
    shutil.copytree(finished.result, copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="not complete"):
        pipeline.open_result(copy)


def test_a_missing_shard_raises_and_is_never_zeros(finished: Finished, tmp_path: Path) -> None:
    copy = tmp_path / "slide"
    shutil.copytree(finished.result, copy)
    (copy / "slide.ome.zarr" / "labels" / "objects" / "0" / "c" / "0" / "1").unlink()
    with pytest.raises(DamagedError, match="missing"):
        pipeline.open_result(copy).labels.compute()
