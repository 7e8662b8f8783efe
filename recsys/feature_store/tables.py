"""The Parquet tables behind the two views, and the way back from their columns to `UserState`.

These are plain files, each written beside and renamed, that Feast reads. Rows are sorted by key and stamp; stamps are
UTC microseconds, because Feast's DuckDB store fails on nanoseconds. A `user_state` row stamped s holds all of the
user's events with timestamp <= s. Only a user's newest row tells what is older than the window, and how far the event
table is in it: past rows with whole histories would grow with the square of a history.

Shapes: R rows, U users, L = HISTORY_LENGTH.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import BoolArray, IntArray
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
    ("through_seq", pa.int64()),
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
    states = _state_batches(histories, user_idx, ends, through_seq)
    _write(table_path(home, USER_STATE_VIEW), STATE_SCHEMA, states)
    stats = item_snapshots.sort_values([ITEM_ID, EVENT_TIMESTAMP], kind="stable")
    rows = pa.Table.from_pandas(stats[STATS_SCHEMA.names], STATS_SCHEMA, preserve_index=False)
    _write(table_path(home, ITEM_STATS_VIEW), STATS_SCHEMA, iter([rows]))


def _write(path: Path, schema: Any, tables: Iterator[Any]) -> None:
    with replacing_file(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def _first_stamps(histories: Histories) -> IntArray:
    """(U,) stamp of every user's empty state, seconds UTC."""
    starts, ends = histories.offset[:-1], histories.offset[1:]
    earliest = int(histories.timestamps.min()) if len(histories.timestamps) else 0
    padded = np.append(histories.timestamps, earliest)  # a last user without events starts at E
    return np.where(ends > starts, padded[starts], earliest) - 1


def _state_rows(histories: Histories, contexts: pd.DataFrame) -> tuple[IntArray, IntArray]:
    """(R,) users and (R,) positions after the last known event, unique, sorted by user and position."""
    wanted = contexts[[USER_ID, TIMESTAMP]].drop_duplicates()
    context_users = histories.user_idx(wanted[USER_ID].to_numpy(np.int64))
    if (context_users < 0).any():
        unknown = sorted(set(wanted[USER_ID].to_numpy()[context_users < 0].tolist()))
        raise StoreError(
            f"States were asked for of {len(unknown)} users without a row in the data, the first {unknown[0]}. "
            "Build histories and contexts from the same tables."
        )
    everybody = np.arange(len(histories.user_ids))
    user_idx = np.concatenate([everybody, everybody, context_users])
    ends = np.concatenate(
        [
            histories.offset[:-1],
            histories.offset[1:],
            histories.ends_before(context_users, wanted[TIMESTAMP].to_numpy(np.int64)),
        ]
    )
    step = len(histories.timestamps) + 1
    key = np.unique(user_idx * step + ends)
    return key // step, key % step


def _row_stamps(histories: Histories, first_stamps: IntArray, user_idx: IntArray, ends: IntArray) -> IntArray:
    """(R,) seconds UTC of the last event that a row holds; the user's first stamp for an empty one."""
    known = ends > histories.offset[user_idx]
    last = histories.timestamps[np.maximum(ends - 1, 0)] if len(histories.timestamps) else first_stamps[user_idx]
    return np.where(known, last, first_stamps[user_idx])


def _state_batches(histories: Histories, user_idx: IntArray, ends: IntArray, through_seq: int) -> Iterator[Any]:
    """The rows as Arrow tables of ROWS_PER_GROUP each, so that the gathered histories stay small in memory."""
    first_stamps = _first_stamps(histories)
    profile = histories.users.reindex(histories.user_ids)
    gender = profile[GENDER].fillna("").to_numpy(object)
    age = profile[AGE].fillna(0).to_numpy(np.int64)
    occupation = profile[OCCUPATION].fillna("").to_numpy(object)
    for low in range(0, len(user_idx), ROWS_PER_GROUP):
        user, end = user_idx[low : low + ROWS_PER_GROUP], ends[low : low + ROWS_PER_GROUP]
        start = histories.offset[user]
        newest = end == histories.offset[user + 1]
        stamps = _stamps(_row_stamps(histories, first_stamps, user, end))
        window, older = _positions(histories, user, start, end, newest)
        columns = {
            USER_ID: histories.user_ids[user],
            EVENT_TIMESTAMP: stamps,
            CREATED_TIMESTAMP: stamps,
            **_history_columns(histories, "history", *window),
            "n_events": histories.item_cumsum[end] - histories.item_cumsum[start],
            "n_liked": (histories.liked_cumsum[end] - histories.liked_cumsum[start]).astype(np.int64),
            "rating_sum": histories.rating_cumsum[end] - histories.rating_cumsum[start],
            "rating_square_sum": histories.square_cumsum[end] - histories.square_cumsum[start],
            GENDER: gender[user],
            AGE: age[user],
            OCCUPATION: occupation[user],
            **_history_columns(histories, "older", *older),
            "through_seq": np.where(newest, through_seq, 0),
        }
        yield pa.table(columns, schema=STATE_SCHEMA)


def _history_columns(histories: Histories, prefix: str, bounds: Any, positions: IntArray) -> dict[str, Any]:
    return {
        f"{prefix}_item_ids": pa.ListArray.from_arrays(bounds, histories.item_ids[positions]),
        f"{prefix}_ratings": pa.ListArray.from_arrays(bounds, histories.ratings[positions]),
        f"{prefix}_timestamps": pa.ListArray.from_arrays(bounds, histories.timestamps[positions]),
    }


def _positions(
    histories: Histories, user: IntArray, start: IntArray, end: IntArray, newest: BoolArray
) -> tuple[tuple[Any, IntArray], tuple[Any, IntArray]]:
    """Of each row the events of the window and, for a newest row, the older ones: list offsets and positions."""
    split = np.maximum(start, end - HISTORY_LENGTH)
    if not histories.repeats[user].any():
        return _ranges(split, end), _ranges(start, np.where(newest, split, start))
    known = [histories.window(a, b) for a, b in zip(start, end, strict=True)]
    windows = [positions[-HISTORY_LENGTH:] for positions in known]
    older = [p[:-HISTORY_LENGTH] if is_newest else p[:0] for p, is_newest in zip(known, newest, strict=True)]
    return _lists(windows), _lists(older)


def _lists(parts: Sequence[IntArray]) -> tuple[Any, IntArray]:
    return pa.array(np.append(0, np.cumsum([len(part) for part in parts])), pa.int32()), np.concatenate(parts)


def _ranges(starts: IntArray, ends: IntArray) -> tuple[Any, IntArray]:
    """Arrow list offsets (R + 1,) and the concatenation of all ranges [start, end).

    >>> offsets, flat = _ranges(np.array([3, 9]), np.array([5, 10]))
    >>> offsets.to_pylist(), flat.tolist()
    ([0, 2, 3], [3, 4, 9])
    """
    lengths = ends - starts
    bounds = np.append(0, np.cumsum(lengths))
    flat = np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths)
    return pa.array(bounds, pa.int32()), flat


def _stamps(seconds: IntArray) -> Any:
    return pa.array(seconds * 1_000_000, pa.int64()).cast(STAMP)


def states_from_columns(user_ids: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> list[UserState]:
    """One state a row from STATE_COLUMNS or PAST_STATE_COLUMNS; a row without `n_events` is an empty state."""
    states = []
    for row, user_id in enumerate(user_ids):
        if columns["n_events"][row] is None:
            states.append(UserState(user_id))
            continue
        value = {name: values[row] for name, values in columns.items()}
        states.append(
            UserState(
                user_id=user_id,
                item_ids=tuple(value["history_item_ids"]),
                ratings=tuple(value["history_ratings"]),
                timestamps=tuple(value["history_timestamps"]),
                n_events=int(value["n_events"]),
                n_liked=int(value["n_liked"]),
                rating_sum=float(value["rating_sum"]),
                rating_square_sum=float(value["rating_square_sum"]),
                older_item_ids=tuple(value.get("older_item_ids", ())),
                older_ratings=tuple(value.get("older_ratings", ())),
                older_timestamps=tuple(value.get("older_timestamps", ())),
                gender=value[GENDER],
                age=int(value[AGE]),
                occupation=value[OCCUPATION],
                through_seq=int(value.get("through_seq", 0)),
            )
        )
    return states
