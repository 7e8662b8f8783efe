"""Past rows of a feature table: of each key the newest one at or before a moment.

Feast's DuckDB join pairs every row asked for with all rows of its key, so that time and memory grow with the square of
a history. Beyond a few rows they are searched for in the same sorted file, and a random sample is held against Feast's
join, exactly. Feast returns rows in any order, so that every row carries an id through the join; a row lost, doubled or
with another key is a StoreError, never a shifted feature.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import IntArray
from recsys.columns import EVENT_TIMESTAMP
from recsys.errors import StoreError

ROW_ID: Final = "row_id"
MOST_BY_FEAST: Final = 500  # rows; a user's state pairs with hundreds of others, of 1.3 kB each
ADVICE: Final = "Run `recsys train --only features --force`."

# ibis keeps one DuckDB connection a process, whatever the home; it must not be used by two threads at once.
_DUCKDB_LOCK = threading.Lock()


def past_rows(
    feast_store: Any, service: str, source: Path, key: str, keys: IntArray, moments_us: IntArray, columns: Sequence[str]
) -> Any:
    """Arrow table of `columns`, row i from the newest row of `keys[i]` stamped by `moments_us[i]`, or null.

    `source` is the file behind the feature service. Up to `MOST_BY_FEAST` rows are Feast's own answer; of more, a
    sample of that size is, and a difference is a StoreError.
    """
    if len(keys) <= MOST_BY_FEAST:
        return join_by_feast(feast_store, service, key, keys, moments_us, columns)
    rows = search(source, key, keys, moments_us, columns)
    sample = np.random.default_rng(len(keys)).choice(len(keys), MOST_BY_FEAST, replace=False)
    checked = join_by_feast(feast_store, service, key, keys[sample], moments_us[sample], columns)
    for name in columns:
        if rows[name].take(sample).to_pylist() != checked[name].to_pylist():
            raise StoreError(f"Feast's answer for {service!r} differs from the table's in {name}. {ADVICE}")
    return rows


def search(source: Path, key: str, keys: IntArray, moments_us: IntArray, columns: Sequence[str]) -> Any:
    """The same from the file. Raises StoreError where it is not sorted by key and stamp or has two rows of one key and
    stamp: which of them is the newer is Feast's to say."""
    table = pq.read_table(source, columns=list(dict.fromkeys([key, EVENT_TIMESTAMP, *columns])))
    row_keys = table[key].to_numpy()
    stamps = table[EVENT_TIMESTAMP].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    # One number for key and stamp: both are replaced by their ranks, because the raw ones do not fit into 64 bits.
    known_keys, known_stamps = np.unique(row_keys), np.unique(stamps)
    step = len(known_stamps) + 1
    place = np.searchsorted(known_keys, row_keys) * step + np.searchsorted(known_stamps, stamps) + 1
    if (np.diff(place) <= 0).any():
        raise StoreError(f"{source} is not sorted by {key} and time. {ADVICE}")
    wanted = np.searchsorted(known_keys, keys) * step + np.searchsorted(known_stamps, moments_us, side="right")
    newest = np.searchsorted(place, wanted, side="right") - 1
    same_key = np.append(row_keys, -1)[newest] == keys  # -1, none before, reads the appended one
    return table.select(list(columns)).take(pa.array(newest, mask=~same_key))


def join_by_feast(
    feast_store: Any, service: str, key: str, keys: IntArray, moments_us: IntArray, columns: Sequence[str]
) -> Any:
    """The same by Feast's point-in-time join; equal rows are joined once."""
    distinct, inverse = np.unique(np.stack([keys, moments_us], axis=1).reshape(-1, 2), axis=0, return_inverse=True)
    if not len(distinct):
        return pa.table({name: pa.array([]) for name in columns})
    frame = pd.DataFrame(
        {
            ROW_ID: np.arange(len(distinct)),
            key: distinct[:, 0],
            EVENT_TIMESTAMP: pd.to_datetime(distinct[:, 1], unit="us", utc=True).astype("datetime64[us, UTC]"),
        }
    )
    with _DUCKDB_LOCK:
        job = feast_store.get_historical_features(
            entity_df=frame.copy(), features=feast_store.get_feature_service(service)
        )
        out = job.to_arrow()
    missing = {ROW_ID, key, *columns} - set(out.column_names)
    if missing:
        raise StoreError(f"Feature service {service!r} returned no column {sorted(missing)[0]!r}. {ADVICE}")
    out = out.take(np.argsort(out[ROW_ID].to_numpy(), kind="stable"))
    if any(not np.array_equal(out[name].to_numpy(), frame[name].to_numpy()) for name in (ROW_ID, key)):
        raise StoreError(
            f"The join for {service!r} lost, doubled or mixed rows: {len(out)} for {len(frame)}. "
            "Check that feature_store.yaml names the DuckDB offline store; Dask loses rows."
        )
    return out.select(list(columns)).take(inverse.reshape(-1))
