"""Point-in-time reads through Feast, with every row accounted for.

Stage: ranking's training table, and the service's item statistics. In: Feast's store, a feature service by name,
keys and moments. Out: the features of each, in the order asked. Absent: what the moments mean (`store` decides
between strict and not) and any join of our own.

Feast returns rows in any order, and its default store loses some. So every row carries an id through the join and is
matched by it; a row lost, doubled or with another key is a StoreError, never a shifted feature.

Feast's DuckDB join pairs each row asked for with all past rows of its key before it keeps one. Time and memory grow
with that product, so equal rows are asked for once, and the rest in parts of bounded size.
"""

import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import IntArray
from recsys.columns import EVENT_TIMESTAMP
from recsys.errors import StoreError

ROW_ID = "row_id"

# ibis keeps one DuckDB connection a process, whatever the home; it must not be used by two threads at once.
_DUCKDB_LOCK = threading.Lock()


class HistoricalStore(Protocol):
    """The part of `feast.FeatureStore` that is used here."""

    def get_feature_service(self, name: str) -> Any: ...

    def get_historical_features(self, entity_df: Any, features: Any) -> Any: ...


def point_in_time(
    feast_store: HistoricalStore,
    service: str,
    source: Path,
    key: str,
    keys: IntArray,
    moments_us: IntArray,
    columns: Sequence[str],
    max_pairs: int,
) -> Any:
    """Arrow table of `columns`, row i from the newest row of `keys[i]` stamped at or before `moments_us[i]`.

    Null where there is no such row. `source` is the Parquet file behind the service; it tells how many rows each key
    has, and thereby where to cut: no part pairs more than about `max_pairs` rows (one row asked for may exceed it).
    """
    asked, inverse = np.unique(np.stack([keys, moments_us], axis=1).reshape(-1, 2), axis=0, return_inverse=True)
    pairs = np.cumsum(_rows_of_keys(source, key, asked[:, 0]))
    cuts = np.searchsorted(pairs, np.arange(0, pairs[-1] if len(pairs) else 0, max_pairs), side="right")
    parts = [
        _one_part(feast_store, service, key, asked[low:high], columns)
        for low, high in pairwise([*cuts, len(asked)])
        if high > low
    ]
    if not parts:
        return pa.table({name: pa.array([]) for name in columns})
    return pa.concat_tables(parts, promote_options="permissive").take(inverse.reshape(-1))


def _rows_of_keys(source: Path, key: str, asked: IntArray) -> IntArray:
    """How many rows the file holds of each key asked for; at least 1, so that every row costs something."""
    known, counts = np.unique(pq.read_table(source, columns=[key])[key].to_numpy(), return_counts=True)
    if not len(known):
        return np.ones(len(asked), dtype=np.int64)
    position = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[position] == asked, counts[position], 1)


def _one_part(feast_store: HistoricalStore, service: str, key: str, asked: IntArray, columns: Sequence[str]) -> Any:
    frame = pd.DataFrame(
        {
            ROW_ID: np.arange(len(asked)),
            key: asked[:, 0],
            EVENT_TIMESTAMP: pd.to_datetime(asked[:, 1], unit="us", utc=True).astype("datetime64[us, UTC]"),
        }
    )
    with _DUCKDB_LOCK:
        job = feast_store.get_historical_features(
            entity_df=frame.copy(), features=feast_store.get_feature_service(service)
        )
        out = job.to_arrow()
    missing = {ROW_ID, key, *columns} - set(out.column_names)
    if missing:
        raise StoreError(
            f"Feature service {service!r} returned no column {sorted(missing)[0]!r}; the registry is older than the "
            "code. Run `recsys train --only features --force`."
        )
    out = out.take(np.argsort(out[ROW_ID].to_numpy(), kind="stable"))
    _check(service, frame, out, key)
    return out.select(list(columns))


def _check(service: str, asked: pd.DataFrame, out: Any, key: str) -> None:
    """Every row asked for is there once, with its own key. `out` is sorted by row id."""
    advice = "Check that feature_store.yaml names the DuckDB offline store; Dask loses rows."
    if len(out) != len(asked):
        raise StoreError(f"The join for {service!r} gave {len(out)} rows for {len(asked)} asked. {advice}")
    if not np.array_equal(out[ROW_ID].to_numpy(), asked[ROW_ID].to_numpy()):
        raise StoreError(f"The join for {service!r} lost some rows and doubled others. {advice}")
    if not np.array_equal(out[key].to_numpy(), asked[key].to_numpy()):
        raise StoreError(f"The join for {service!r} returned rows with another {key} than was asked for. {advice}")
