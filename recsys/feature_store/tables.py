"""The Parquet tables behind the three views, and the way back from their columns to `UserState`.

Stage: features. In: `Histories`, the snapshot table of `item_stats`, the moments whose states are wanted, and what the
event log knows beyond. Out: `user_state.parquet`, `user_seen.parquet`, `item_stats.parquet`, and `history.parquet`
(`latest`), each written beside and renamed. Absent: Feast; these are plain files that it reads.

Rows are sorted by key and stamp, those that hold logged events after all others; stamps are UTC microseconds, because
Feast's DuckDB store fails on nanoseconds. A `user_state` row stamped s holds all of the user's events with timestamp
<= s that were known when it was `created`.

Shapes: R rows, U users, L = HISTORY_LENGTH.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
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
    USER_SEEN_VIEW,
    USER_STATE_VIEW,
)
from recsys.errors import StoreError
from recsys.event_log import BEGINNING
from recsys.feature_store.latest import Latest, write_history
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
STATE_COLUMNS = tuple(name for name, _ in STATE_FIELDS)
SEEN_COLUMN = "seen_item_ids"

STATE_SCHEMA = pa.schema([(USER_ID, pa.int64()), *_STAMPS, *STATE_FIELDS])
SEEN_SCHEMA = pa.schema([(USER_ID, pa.int64()), *_STAMPS, (SEEN_COLUMN, pa.list_(pa.int64()))])
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
    latest: Latest | None = None,
) -> None:
    """Write all three tables, and every user's whole history.

    Of every user: an empty state with the profile, stamped one second before the first event (before the first event
    of all for somebody without any); the newest state; and for each (user_id, timestamp) of `state_contexts` the
    state just before that moment, stamped by its last event. Rows asked for twice are written once.

    `histories` are those of the data set. Where the event log knows more, `latest` has it: the newest states and the
    seen items are made from that, and a state that a logged event moved is `created` when it was received. Raises
    StoreError for a context of a user whom `histories` does not hold.
    """
    latest = latest or Latest(histories, pd.DataFrame(), {}, BEGINNING)
    first_stamps = _first_stamps(histories)
    user_idx, ends = _state_rows(histories, state_contexts)
    past = _state_batches(histories, first_stamps, *_before_moved(histories, latest, user_idx, ends))
    moved_idx, moved_ends = _moved_rows(histories, latest)
    now_stamps = _first_stamps(latest.histories)
    moved = _state_batches(latest.histories, now_stamps, moved_idx, moved_ends, latest.received)
    _write(table_path(home, USER_STATE_VIEW), STATE_SCHEMA, chain(past, moved))
    _write(table_path(home, USER_SEEN_VIEW), SEEN_SCHEMA, iter([_seen_table(latest, now_stamps)]))
    write_history(home, latest.histories, latest.position)
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


def _moved_rows(histories: Histories, latest: Latest) -> tuple[IntArray, IntArray]:
    """Rows of `latest.histories`, as users and positions: the newest state of every user with logged events, and an
    empty state before it for those of whom the data set holds none."""
    now = latest.histories
    user_ids = np.array(sorted(latest.received), dtype=np.int64)
    user_idx = now.user_idx(user_ids)
    base_idx = histories.user_idx(user_ids)
    no_score = user_idx[(base_idx < 0) | (np.diff(histories.offset)[base_idx] == 0)] if len(user_ids) else user_idx
    rows = np.concatenate(
        [np.stack([no_score, now.offset[no_score]]), np.stack([user_idx, now.offset[user_idx + 1]])], 1
    )
    return rows[0], rows[1]


def _before_moved(
    histories: Histories, latest: Latest, user_idx: IntArray, ends: IntArray
) -> tuple[IntArray, IntArray]:
    """The data set's rows, without those that a moved user's newest state replaces: of its own second, or the empty
    one of somebody without events that happens to be stamped later."""
    if not latest.received:
        return user_idx, ends
    now = latest.histories
    moved_ids = np.array(sorted(latest.received), dtype=np.int64)
    base_idx, now_idx = histories.user_idx(moved_ids), now.user_idx(moved_ids)
    newest = np.full(len(histories.user_ids), np.iinfo(np.int64).max)
    newest[base_idx[base_idx >= 0]] = now.timestamps[now.offset[now_idx + 1] - 1][base_idx >= 0]
    kept = _row_stamps(histories, _first_stamps(histories), user_idx, ends) < newest[user_idx]
    return user_idx[kept], ends[kept]


def _created(stamps: IntArray, user_ids: IntArray, received: Mapping[int, int]) -> IntArray:
    """(R,) seconds UTC: the stamp, or the later reception of a user's last logged event."""
    return np.array([max(s, received.get(u, s)) for s, u in zip(stamps.tolist(), user_ids.tolist(), strict=True)])


def _state_batches(
    histories: Histories,
    first_stamps: IntArray,
    user_idx: IntArray,
    ends: IntArray,
    received: Mapping[int, int] | None = None,
) -> Iterator[Any]:
    """The rows as Arrow tables of ROWS_PER_GROUP each, so that the gathered histories stay small in memory."""
    profile = histories.users.reindex(histories.user_ids)
    gender = profile[GENDER].fillna("").to_numpy(object)
    age = profile[AGE].fillna(0).to_numpy(np.int64)
    occupation = profile[OCCUPATION].fillna("").to_numpy(object)
    for low in range(0, len(user_idx), ROWS_PER_GROUP):
        user, end = user_idx[low : low + ROWS_PER_GROUP], ends[low : low + ROWS_PER_GROUP]
        start = histories.offset[user]
        offsets, flat = _ranges(np.maximum(start, end - HISTORY_LENGTH), end)
        stamps = _row_stamps(histories, first_stamps, user, end)
        created = (
            stamps
            if received is None
            else np.where(end > start, _created(stamps, histories.user_ids[user], received), stamps)
        )
        columns = {
            USER_ID: histories.user_ids[user],
            EVENT_TIMESTAMP: _stamps(stamps),
            CREATED_TIMESTAMP: _stamps(created),
            "history_item_ids": pa.ListArray.from_arrays(offsets, histories.item_ids[flat]),
            "history_ratings": pa.ListArray.from_arrays(offsets, histories.ratings[flat]),
            "history_timestamps": pa.ListArray.from_arrays(offsets, histories.timestamps[flat]),
            "n_events": end - start,
            "n_liked": (histories.liked_cumsum[end] - histories.liked_cumsum[start]).astype(np.int64),
            "rating_sum": histories.rating_cumsum[end] - histories.rating_cumsum[start],
            "rating_square_sum": histories.square_cumsum[end] - histories.square_cumsum[start],
            GENDER: gender[user],
            AGE: age[user],
            OCCUPATION: occupation[user],
        }
        yield pa.table(columns, schema=STATE_SCHEMA)


def _seen_table(latest: Latest, first_stamps: IntArray) -> Any:
    """One row a user: every item rated so far, ascending, stamped like the newest state."""
    histories = latest.histories
    counts = np.diff(histories.offset)
    owner = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((histories.item_ids, owner))
    owner, items = owner[order], histories.item_ids[order]
    fresh = np.ones(len(items), dtype=bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (items[1:] != items[:-1])
    seen_counts = np.bincount(owner[fresh], minlength=len(counts))
    offsets = pa.array(np.append(0, np.cumsum(seen_counts)), pa.int32())
    stamps = _row_stamps(histories, first_stamps, np.arange(len(counts)), histories.offset[1:])
    return pa.table(
        {
            USER_ID: histories.user_ids,
            EVENT_TIMESTAMP: _stamps(stamps),
            CREATED_TIMESTAMP: _stamps(_created(stamps, histories.user_ids, latest.received)),
            SEEN_COLUMN: pa.ListArray.from_arrays(offsets, items[fresh]),
        },
        schema=SEEN_SCHEMA,
    )


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
    """One state a row from STATE_COLUMNS; a row whose `n_events` is null is an empty state without profile."""
    states = []
    for row, user_id in enumerate(user_ids):
        if columns["n_events"][row] is None:
            states.append(UserState(user_id))
            continue
        states.append(
            UserState(
                user_id=user_id,
                item_ids=tuple(columns["history_item_ids"][row]),
                ratings=tuple(columns["history_ratings"][row]),
                timestamps=tuple(columns["history_timestamps"][row]),
                n_events=int(columns["n_events"][row]),
                n_liked=int(columns["n_liked"][row]),
                rating_sum=float(columns["rating_sum"][row]),
                rating_square_sum=float(columns["rating_square_sum"][row]),
                gender=columns[GENDER][row],
                age=int(columns[AGE][row]),
                occupation=columns[OCCUPATION][row],
            )
        )
    return states


def columns_of_state(state: UserState) -> dict[str, Any]:
    """The inverse, for one state: STATE_COLUMNS by name."""
    return {
        "history_item_ids": list(state.item_ids),
        "history_ratings": list(state.ratings),
        "history_timestamps": list(state.timestamps),
        "n_events": state.n_events,
        "n_liked": state.n_liked,
        "rating_sum": state.rating_sum,
        "rating_square_sum": state.rating_square_sum,
        GENDER: state.gender,
        AGE: state.age,
        OCCUPATION: state.occupation,
    }
