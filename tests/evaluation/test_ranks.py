"""Ranks come back as they were written, by event, and nothing else passes for them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import BundleError
from recsys.evaluation.ranks import SCHEMA, read_ranks, write_ranks

# Out of order, with a column that is not kept.
FRAME = pd.DataFrame(
    {
        "rank": np.array([3, 0, 500, 1], dtype=np.int32),
        "item_id": [7, 9, 8, 7],
        "rating": [1.0, 2.0, 3.0, 4.0],
        "user_id": [2, 1, 1, 1],
        "timestamp": [50, 60, 50, 50],
    }
)


def test_ranks_come_back_by_event(tmp_path: Path) -> None:
    write_ranks(FRAME, tmp_path / "ranks.parquet")
    back = read_ranks(tmp_path / "ranks.parquet")
    assert list(back.columns) == ["user_id", "timestamp", "item_id", "rank"]
    assert back.to_numpy().tolist() == [[1, 50, 7, 1], [1, 50, 8, 500], [1, 60, 9, 0], [2, 50, 7, 3]]
    write_ranks(FRAME[::-1], tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "ranks.parquet").read_bytes()


def test_what_are_no_ranks_is_neither_written_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "ranks.parquet"
    with pytest.raises(ValueError, match="rank must lie in"):
        write_ranks(FRAME.assign(rank=[1, 2, 3, 501]), path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"no Parquet at all")
    with pytest.raises(BundleError, match=r"ranks\.parquet cannot be read as Parquet .*; train again"):
        read_ranks(path)
    pq.write_table(pa.table({name: [1] for name in reversed(SCHEMA.names)}), path)
    with pytest.raises(BundleError, match=r"has the columns \['rank', .*train again"):
        read_ranks(path)
