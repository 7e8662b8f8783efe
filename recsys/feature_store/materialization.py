"""Put the newest row of every user into the online store.

Everything is written anew each time. A service may read meanwhile: in SQLite all rows are one transaction over a
write-ahead log, and in Redis each row is one command. Rows say how far they know the events, so that old and new ones
may stand side by side.
"""

import contextlib
import gc
import io
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recsys.columns import EVENT_TIMESTAMP, USER_STATE_VIEW

SECOND = timedelta(seconds=1)


def fill_online_store(feast_store: Any, table: Path) -> None:
    start, end = stamp_range(table)
    # What Feast prints on stdout (with colour codes, whatever stdout is) would end up in results.
    with contextlib.redirect_stdout(io.StringIO()):
        feast_store.materialize(start, end, feature_views=[USER_STATE_VIEW])


def stamp_range(path: Path) -> tuple[datetime, datetime]:
    """One second before the oldest and after the newest stamp of a table, from its statistics; never now().

    Both are 1970 where the table is empty.
    """
    meta = pq.read_metadata(path)
    column = next(i for i in range(meta.num_columns) if meta.schema.column(i).path == EVENT_TIMESTAMP)
    groups = [meta.row_group(i).column(column).statistics for i in range(meta.num_row_groups)]
    known = [s for s in groups if s is not None and s.has_min_max]
    if not known:
        return datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(0, UTC)
    return min(s.min for s in known) - SECOND, max(s.max for s in known) + SECOND


@contextlib.contextmanager
def written_ahead(path: Path) -> Iterator[None]:
    """SQLite with a write-ahead log: readers neither wait for the writer nor see half of what it does.

    Afterwards, unless somebody has the file open, without one again: only then can a read-only home be read.
    """
    _set_journal(path, "WAL")
    yield
    gc.collect()  # Feast closes its connection by being collected
    with contextlib.suppress(sqlite3.OperationalError):  # a service has it open
        _set_journal(path, "DELETE")


def _set_journal(path: Path, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
