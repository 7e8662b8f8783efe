"""The Parquet tables behind the two views, and the way back from their columns to `UserState`.

Rows are sorted by key and stamp, in UTC microseconds, because Feast's DuckDB store fails on nanoseconds. A `user_state`
row stamped s holds the user's events with timestamp <= s. Only a user's newest row tells what is older than the window,
and how far the event table is in it: past rows with whole histories would grow with the square of a history.

Shapes: R rows, U users, L = HISTORY_LENGTH.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file
from recsys.columns import (
    AGE,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    GENDER,
    ITEM_ID,
    ITEM_STATS_VIEW,
    OCCUPATION,
    TIMESTAMP,
    USER_ID,
    USER_STATE_VIEW,
)
from recsys.errors import StoreError
from recsys.features.histories import Histories
from recsys.features.item_stats import DECAYED
from recsys.features.state import HISTORY_LENGTH, UserState
from recsys.workspace import DatasetWorkspace

THROUGH_SEQ = "through_seq"
STAMP = pa.timestamp("us", tz="UTC")
_STAMPS = [(EVENT_TIMESTAMP, STAMP), (CREATED_TIMESTAMP, STAMP)]
STATE_FIELDS = [
    ("history_item_ids", pa.list_(pa.int64())),
    ("history_ratings", pa.list_(pa.float32())),
    ("history_timestamps", pa.list_(pa.int64())),
    ("n_events", pa.int64()),
    ("n_liked", pa.int64()),
    ("rating_sum", pa.float64()),
    ("rating_square_sum", pa.float64()),
    (GENDER, pa.string()),
    (AGE, pa.int64()),
    (OCCUPATION, pa.string()),
]
NEWEST_FIELDS = [
    ("older_item_ids", pa.list_(pa.int64())),
    ("older_ratings", pa.list_(pa.float32())),
    ("older_timestamps", pa.list_(pa.int64())),
    (THROUGH_SEQ, pa.int64()),
]
PAST_STATE_COLUMNS = tuple(name for name, _ in STATE_FIELDS)
STATE_COLUMNS = (*PAST_STATE_COLUMNS, *(name for name, _ in NEWEST_FIELDS))

STATE_SCHEMA = pa.schema([(USER_ID, pa.int64()), *_STAMPS, *STATE_FIELDS, *NEWEST_FIELDS])
STATS_SCHEMA = pa.schema(
    [
        (ITEM_ID, pa.int64()),
        *_STAMPS,
        ("snapshot_day", pa.int64()),
        ("n_ratings", pa.int64()),
        ("n_liked", pa.int64()),
        ("rating_sum", pa.float64()),
        *((name, pa.float64()) for name in DECAYED),
        ("first_rated", pa.int64()),
        ("last_rated", pa.int64()),
    ]
)

ROWS_PER_GROUP = 16_384  # a row group of the state table is at most about 20 MB of history


def table_path(home: DatasetWorkspace, view: str) -> Path:
    """The Parquet file behind a view."""
    return home.features / f"{view}.parquet"


def write_feature_tables(
    home: DatasetWorkspace,
    histories: Histories,
    item_snapshots: pd.DataFrame,
    state_contexts: pd.DataFrame,
    through_seq: int = 0,
) -> None:
    """Write both tables.

    Of every user: an empty state with the profile, stamped one second before the first event (before the first event
    of all for somebody without any); the newest state, which knows the event table up to `through_seq`; and for each
    (user_id, timestamp) of `state_contexts` the state just before that moment, stamped by its last event. Rows asked
    for twice are written once. Raises StoreError for a context of a user whom `histories` does not hold.
    """
    user_idx, ends = _state_rows(histories, state_contexts)
    with replacing_file(table_path(home, USER_STATE_VIEW)) as path, pq.ParquetWriter(path, STATE_SCHEMA) as writer:
        for table in _state_batches(histories, user_idx, ends, through_seq):
            writer.write_table(table)
    stats = item_snapshots.sort_values([ITEM_ID, EVENT_TIMESTAMP], kind="stable")
    rows = pa.Table.from_pandas(stats[STATS_SCHEMA.names], STATS_SCHEMA, preserve_index=False)
    with replacing_file(table_path(home, ITEM_STATS_VIEW)) as path:
        pq.write_table(rows.replace_schema_metadata({THROUGH_SEQ: str(through_seq)}), path)


def _state_rows(histories: Histories, contexts: pd.DataFrame) -> tuple[IntArray, IntArray]:
    """(R,) users and (R,) positions after the last known event, unique, sorted by user and position."""
    wanted = contexts[[USER_ID, TIMESTAMP]].drop_duplicates()
    context_users = histories.user_idx(wanted[USER_ID].to_numpy(np.int64))
    if (context_users < 0).any():
        unknown = sorted(set(wanted[USER_ID].to_numpy()[context_users < 0].tolist()))
        raise StoreError(
            f"States are needed of {len(unknown)} users without a row in the data, the first {unknown[0]}. "
            "Build histories and contexts from the same tables."
        )
    everybody = np.arange(len(histories.user_ids))
    user_idx = np.concatenate([everybody, everybody, context_users])
    context_ends = histories.ends_before(context_users, wanted[TIMESTAMP].to_numpy(np.int64))
    ends = np.concatenate([histories.offset[:-1], histories.offset[1:], context_ends])
    step = len(histories.timestamps) + 1
    key = np.unique(user_idx * step + ends)
    return key // step, key % step


def _seconds(histories: Histories, user_idx: IntArray, ends: IntArray) -> IntArray:
    """(R,) when a row's last event happened; of an empty row, the second before the user's first event, or before the
    first of all for somebody without any."""
    starts = histories.offset[user_idx]
    earliest = int(histories.timestamps.min()) if len(histories.timestamps) else 0
    times = np.append(histories.timestamps, earliest)
    first = np.where(histories.offset[user_idx + 1] > starts, times[starts], earliest)
    return np.where(ends > starts, times[ends - 1], first - 1)


def _state_batches(histories: Histories, user_idx: IntArray, ends: IntArray, through_seq: int) -> Iterator[Any]:
    """The rows as Arrow tables of ROWS_PER_GROUP each, so that the gathered histories stay small in memory."""
    profile = histories.users.reindex(histories.user_ids)
    gender = profile[GENDER].fillna("").to_numpy(object)
    age = profile[AGE].fillna(0).to_numpy(np.int64)
    occupation = profile[OCCUPATION].fillna("").to_numpy(object)
    for low in range(0, len(user_idx), ROWS_PER_GROUP):
        user, end = user_idx[low : low + ROWS_PER_GROUP], ends[low : low + ROWS_PER_GROUP]
        start = histories.offset[user]
        newest = end == histories.offset[user + 1]
        stamps = pa.array(_seconds(histories, user, end) * 1_000_000).cast(STAMP)
        known = [histories.window(a, b) for a, b in zip(start, end, strict=True)]
        older = [row[:-HISTORY_LENGTH] if whole else row[:0] for row, whole in zip(known, newest, strict=True)]
        columns = {
            USER_ID: histories.user_ids[user],
            EVENT_TIMESTAMP: stamps,
            CREATED_TIMESTAMP: stamps,
            **_history_columns(histories, "history", [row[-HISTORY_LENGTH:] for row in known]),
            "n_events": histories.item_cumsum[end] - histories.item_cumsum[start],
            "n_liked": (histories.liked_cumsum[end] - histories.liked_cumsum[start]).astype(np.int64),
            "rating_sum": histories.rating_cumsum[end] - histories.rating_cumsum[start],
            "rating_square_sum": histories.square_cumsum[end] - histories.square_cumsum[start],
            GENDER: gender[user],
            AGE: age[user],
            OCCUPATION: occupation[user],
            **_history_columns(histories, "older", older),
            THROUGH_SEQ: np.where(newest, through_seq, 0),
        }
        yield pa.table(columns, schema=STATE_SCHEMA)


def _history_columns(histories: Histories, prefix: str, rows: Sequence[IntArray]) -> dict[str, Any]:
    """Three list columns of the events at the positions of each row."""
    bounds = pa.array(np.append(0, np.cumsum([len(row) for row in rows])), pa.int32())
    flat = np.concatenate(rows)
    values = (histories.item_ids[flat], histories.ratings[flat], histories.timestamps[flat])
    names = (f"{prefix}_item_ids", f"{prefix}_ratings", f"{prefix}_timestamps")
    return dict(zip(names, (pa.ListArray.from_arrays(bounds, column) for column in values), strict=True))


def states_from_columns(user_ids: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> list[UserState]:
    """One state a row from STATE_COLUMNS or PAST_STATE_COLUMNS; a row without `n_events` is an empty state."""
    states = []
    for row, user_id in enumerate(user_ids):
        values = {name.removeprefix("history_"): column[row] for name, column in columns.items()}
        held: dict[str, Any] = {}
        if values["n_events"] is not None:
            for name, value in values.items():
                plain = value.tolist() if isinstance(value, np.ndarray) else value
                held[name] = tuple(plain) if isinstance(plain, list) else plain
        states.append(UserState(user_id, **held))
    return states
