"""Look-ups in the object table reject rows that are not in the order of ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DamagedError
from pipeline.objects.table_reader import read_objects


def test_rows_that_are_not_in_the_order_of_ids_are_rejected(tmp_path: Path) -> None:
    ids, area = np.arange(1, 7, dtype=np.uint32), np.arange(6) * 1.5
    path = tmp_path / "objects.parquet"
    pq.write_table(pa.table({"id": ids, "area_um2": area}), path, row_group_size=4)
    assert read_objects(path, ["area_um2"], [], np.array([2, 6]))["area_um2"].tolist() == [1.5, 7.5]
    for wrong in (ids[[0, 2, 1, 3, 4, 5]], ids + 1, ids[[0, 0, 2, 3, 4, 5]]):
        pq.write_table(pa.table({"id": wrong, "area_um2": area}), path, row_group_size=4)
        with pytest.raises(DamagedError, match="expected ids 1 to 4 in order"):
            read_objects(path, ["area_um2"], [], np.array([2, 6]))
