"""Put the newest row of every key into the online store, and nothing else.

Stage: features. In: Feast's store, the Parquet tables. Out: an online store that holds exactly their newest rows.
Absent: incremental materialisation: what an older run or a push left behind must go, and a whole run is minutes.

SQLite is filled beside and copied over in one transaction, so a running service reads the old rows or the new ones
and needs no restart. (A rename of the file would leave that service on the old one, whose journal has the same name
as the new one's.) Redis has no such moment: its rows are deleted, then written, and in between users look unknown.
"""

import contextlib
import io
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recsys.columns import EVENT_TIMESTAMP, ITEM_STATS_VIEW, USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.feature_store.config import FeatureStoreConfig
from recsys.feature_store.tables import table_path

VIEWS = (USER_STATE_VIEW, USER_SEEN_VIEW, ITEM_STATS_VIEW)
SECOND = timedelta(seconds=1)


def stamp_range(paths: Sequence[Path]) -> tuple[datetime, datetime]:
    """One second before the oldest and after the newest stamp of the tables, from their statistics; never now().

    Both are 1970 where every table is empty.
    """
    oldest: list[datetime] = []
    newest: list[datetime] = []
    for path in paths:
        meta = pq.read_metadata(path)
        column = next(i for i in range(meta.num_columns) if meta.schema.column(i).path == EVENT_TIMESTAMP)
        groups = [meta.row_group(i).column(column).statistics for i in range(meta.num_row_groups)]
        known = [s for s in groups if s is not None and s.has_min_max]
        oldest += [s.min for s in known]
        newest += [s.max for s in known]
    if not newest:
        return datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(0, UTC)
    return min(oldest) - SECOND, max(newest) + SECOND


def materialize_all(feast_store: Any, config: FeatureStoreConfig) -> None:
    """Replace the online store's content; Feast shows its progress bars on stderr."""
    start, end = stamp_range([table_path(config.home, view) for view in VIEWS])
    if config.online_file is None:
        _empty(feast_store, config)
        _materialize(feast_store, start, end)
        return
    from feast import FeatureStore

    fresh_file = config.online_file.with_name(".online.db.part")
    fresh_file.unlink(missing_ok=True)
    fresh = FeatureStore(config=config.feast_config(fresh_file))
    try:
        views, entities = fresh.list_feature_views(), fresh.list_entities()
        fresh.provider.update_infra(config.project, [], views, [], entities, partial=True)
        _materialize(fresh, start, end)
        _copy_over(fresh_file, config.online_file)
    finally:
        fresh.provider.teardown_infra(config.project, [], [])  # closes and removes the file beside
        dispose(fresh)


def _materialize(feast_store: Any, start: Any, end: Any) -> None:
    """Fill all views. What Feast prints on stdout (with colour codes, whatever stdout is) would end up in results."""
    with contextlib.redirect_stdout(io.StringIO()):
        feast_store.materialize(start, end, feature_views=list(VIEWS))


def _empty(feast_store: Any, config: FeatureStoreConfig) -> None:
    """Delete every key of this project in Redis, users and movies that no longer exist among them."""
    feast_store.provider.teardown_infra(config.project, feast_store.list_feature_views(), [])


def _copy_over(fresh: Path, online: Path) -> None:
    """Make the tables of `online` equal to those of `fresh`, in one transaction."""
    with closing(sqlite3.connect(online, timeout=60, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers do not wait for writers
        connection.execute("ATTACH DATABASE ? AS fresh", (str(fresh),))
        found = connection.execute("SELECT name FROM fresh.sqlite_master WHERE type = 'table'").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        try:
            for (name,) in found:
                columns = ", ".join(row[1] for row in connection.execute(f'PRAGMA fresh.table_info("{name}")'))
                connection.execute(f'DELETE FROM main."{name}"')
                connection.execute(f'INSERT INTO main."{name}" ({columns}) SELECT {columns} FROM fresh."{name}"')
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("DETACH DATABASE fresh")


def dispose(feast_store: Any) -> None:
    """Close the registry's database connections and SQLite's; Feast's own `close` does neither."""
    registry = feast_store.registry
    for engine in (getattr(registry, "write_engine", None), getattr(registry, "read_engine", None)):
        if engine is not None:
            engine.dispose()
    online = feast_store.provider.online_store
    connection = getattr(online, "_conn", None)
    if connection is not None:
        connection.close()
        online._conn = None
