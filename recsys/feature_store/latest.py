"""Everything that is known by now: the data set's events and the event log's, as one set; and one user's share of it.

Stage: features, and serving where a state must be rebuilt. In: the data set's events, the folder of the log. Out:
`Latest`, from which the newest rows of the feature tables are made; `history.parquet`, every user's whole history, with
the position in the log up to which it is complete. Absent: past states. They are made from the data set alone:

An event that was received late does not change what was known before. Past states, from which rankers learn, hold no
logged event, and item statistics count one from the day on which it was received. Only newer states know it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file
from recsys.columns import AGE, GENDER, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, USER_ID, USER_STATE_VIEW
from recsys.event_log import BEGINNING, Position, end_of, read_log
from recsys.features.histories import Histories
from recsys.features.state import Event, UserState
from recsys.features.state_merge import distinct_rows, state_from_events
from recsys.workspace import DatasetWorkspace

RECEIVED: Final = "received"
EVENT_COLUMNS: Final = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
HISTORY_SCHEMA = pa.schema(
    [(USER_ID, pa.int64()), (ITEM_ID, pa.int64()), (RATING, pa.float32()), (TIMESTAMP, pa.int64())]
)
ROWS_PER_GROUP = 16_384  # what is read to find one user's rows: a quarter of a megabyte
_POSITION: Final = b"recsys.log_position"


@dataclass(frozen=True)
class Latest:
    """histories  of every event known, each key once
    known     (E,) rows like the data set's events; `timestamp` is the second at which each was known: the event's
              own, or that of its reception where the log brought it later
    received  user_id -> when the last of that user's logged events was received; users without any are absent
    position  the log is in it up to here
    """

    histories: Histories
    known: pd.DataFrame
    received: Mapping[int, int]
    position: Position

    @classmethod
    def of(cls, histories: Histories, events: pd.DataFrame, users: pd.DataFrame, folder: Path) -> "Latest":
        """`histories` are those of `events`; `folder` is the log's, and need not exist."""
        position = end_of(folder)
        rows = [
            (e.user_id, e.item_id, e.rating, e.timestamp, e.received)
            for e in read_log(folder, through=position)
            if e.rating is not None
        ]
        if not rows:
            return cls(histories, events, {}, position)
        logged = pd.DataFrame(rows, columns=[*EVENT_COLUMNS, RECEIVED]).astype({RATING: np.float32})
        received: dict[Any, int] = logged.groupby(USER_ID)[RECEIVED].max().to_dict()
        logged[RECEIVED] = logged[[RECEIVED, TIMESTAMP]].max(axis=1)
        # Of equal rows `distinct_rows` keeps the last: the data set's, or the first that was received.
        given = events[list(EVENT_COLUMNS)].assign(**{RECEIVED: events[TIMESTAMP]})
        everything = pd.concat([logged.sort_values(RECEIVED, ascending=False, kind="stable"), given])
        kept = distinct_rows(everything)
        now = Histories.from_tables(histories.catalogue, kept, users)
        return cls(now, kept.assign(**{TIMESTAMP: kept[RECEIVED]})[list(EVENT_COLUMNS)], received, position)


def history_path(home: DatasetWorkspace) -> Path:
    return home.features / "history.parquet"


def write_history(home: DatasetWorkspace, histories: Histories, position: Position) -> None:
    """All events by user and time, with the position beside them in one file, so that the two always agree."""
    columns = {
        USER_ID: np.repeat(histories.user_ids, np.diff(histories.offset)),
        ITEM_ID: histories.item_ids,
        RATING: histories.ratings,
        TIMESTAMP: histories.timestamps,
    }
    schema = HISTORY_SCHEMA.with_metadata({_POSITION: orjson.dumps(dict(position))})
    with replacing_file(history_path(home)) as beside:
        pq.write_table(pa.table(columns, schema=schema), beside, row_group_size=ROWS_PER_GROUP)


def history_position(home: DatasetWorkspace) -> Position:
    """Up to where the log is in the feature tables; the beginning where there are no tables yet."""
    path = history_path(home)
    return _position(pq.read_schema(path)) if path.exists() else BEGINNING


def whole_state(home: DatasetWorkspace, profile: UserState) -> tuple[UserState, IntArray]:
    """State and seen items of one user from all events there are: the table's and the log's after it.

    Exact whatever happened before, and slow (milliseconds, and more with every event logged since the features
    stage): for a state that `recsys.features.state_merge.fold` cannot move. The static profile is taken from `profile`;
    where that is empty, from the feature tables.
    """
    user_id = profile.user_id
    if (profile.gender, profile.age, profile.occupation) == ("", 0, ""):
        profile = replace(profile, **_stored_profile(home, user_id))
    position, stored = BEGINNING, []
    if history_path(home).exists():
        with pq.ParquetFile(history_path(home)) as file:
            position = _position(file.schema_arrow)
            rows = _rows_of(file, user_id, [ITEM_ID, RATING, TIMESTAMP])
        stored = [Event(row[ITEM_ID], row[RATING], row[TIMESTAMP]) for row in rows]
    logged = read_log(home.events, after=position, user_id=user_id)
    later = (Event(e.item_id, e.rating, e.timestamp) for e in logged if e.rating is not None)
    return state_from_events(profile, chain(stored, later))


def _stored_profile(home: DatasetWorkspace, user_id: int) -> dict[str, Any]:
    """Of any past state of the user: a profile never changes. Nothing for somebody without a row."""
    path = home.features / f"{USER_STATE_VIEW}.parquet"
    if not path.exists():
        return {}
    with pq.ParquetFile(path) as file:
        rows = _rows_of(file, user_id, [GENDER, AGE, OCCUPATION])
    return rows[0] if rows else {}


def _position(schema: Any) -> Position:
    return dict(orjson.loads(schema.metadata[_POSITION]))


def _rows_of(file: Any, user_id: int, columns: list[str]) -> list[dict[str, Any]]:
    """From the row groups whose statistics can hold the user; few, because rows are sorted by it, the first column."""
    groups = []
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(0).statistics
        if statistics.min <= user_id <= statistics.max:
            groups.append(group)
    table = file.read_row_groups(groups, columns=[USER_ID, *columns])
    rows: list[dict[str, Any]] = table.filter(pc.equal(table[USER_ID], user_id)).select(columns).to_pylist()
    return rows
