"""The as-of join for many rows: the same answer as Feast's, read from the same file in a fraction of the time.

Stage: ranking's training table. In: the Parquet file behind a view, keys and moments. Out: for each the newest row
stamped at or before the moment, columns by name. Absent: the proof that Feast says the same; `FeatureStore` asks it for
a sample of every such read.

Feast's DuckDB join pairs every row asked for with all rows of its key before it keeps one. A training table asks for
each item on each day, so that the pairs grow with the square of the days; a search in the sorted file does not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import IntArray
from recsys.columns import EVENT_TIMESTAMP
from recsys.errors import StoreError


def newest_rows(source: Path, key: str, keys: IntArray, moments_us: IntArray, columns: Sequence[str]) -> Any:
    """Arrow table of `columns`, row i from the newest row of `keys[i]` stamped at or before `moments_us[i]`.

    Null where there is no such row. Raises StoreError for a file that is not sorted by key and stamp, or holds two rows
    of one key and stamp: which of them is the newer is Feast's to say.
    """
    table = pq.read_table(source, columns=list(dict.fromkeys([key, EVENT_TIMESTAMP, *columns])))
    row_keys = table[key].to_numpy()
    stamps = table[EVENT_TIMESTAMP].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    # One number for key and stamp: both are replaced by their ranks, because the raw ones do not fit into 64 bits.
    known_keys, known_stamps = np.unique(row_keys), np.unique(stamps)
    step = len(known_stamps) + 1
    place = np.searchsorted(known_keys, row_keys) * step + np.searchsorted(known_stamps, stamps) + 1
    if (np.diff(place) <= 0).any():
        raise StoreError(f"{source} is not sorted by {key} and time. Run `recsys train --only features --force`.")
    rank = np.searchsorted(known_keys, keys)
    asked = rank * step + np.searchsorted(known_stamps, moments_us, side="right")
    found = np.searchsorted(place, asked, side="right") - 1
    same_key = (found >= 0) & (row_keys[np.maximum(found, 0)] == keys) if len(row_keys) else np.zeros(len(keys), bool)
    return table.select(list(columns)).take(pa.array(found, mask=~same_key))
