"""Put the newest row of every key into the online store, and nothing else.

Stage: features. In: Feast's store, the Parquet tables. Out: an online store that holds exactly their newest rows.
Absent: incremental materialisation: what an older run or a push left behind must go, and a whole run is minutes; and
what was logged after the tables were written, but for the moment at which it can be put on top (`FeatureStore`).

SQLite is filled beside and copied over in one transaction, so a running service reads the old rows or the new ones
and needs no restart. (A rename of the file would leave that service on the old one, whose journal has the same name
as the new one's.) Redis has no such moment: each row is written over, and those of users and items that are gone are
deleted at the end, so that nobody looks unknown in between.
"""

import contextlib
import fcntl
import io
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recsys.atomic_io import locked_folder
from recsys.columns import EVENT_TIMESTAMP, ITEM_ID, ITEM_STATS_VIEW, USER_ID, USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.feature_store.config import FeatureStoreConfig
from recsys.feature_store.online import close_connection
from recsys.feature_store.tables import table_path

VIEWS = (USER_STATE_VIEW, USER_SEEN_VIEW, ITEM_STATS_VIEW)
SECOND = timedelta(seconds=1)
SCANNED = 1_000  # keys that Redis looks at or deletes in one command


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


def materialize_all(
    feast_store: Any, config: FeatureStoreConfig, before_swap: Callable[[Any], object] = lambda _fresh: None
) -> None:
    """Replace the online store's content, one process at a time; Feast shows its progress bars on stderr.

    `before_swap` gets the Feast store over the SQLite file beside, once it is full and before anybody reads it.
    """
    config.home.feast.mkdir(parents=True, exist_ok=True)
    with locked_folder(config.home.feast, fcntl.LOCK_EX):  # two would fill, and remove, one file beside
        start, end = stamp_range([table_path(config.home, view) for view in VIEWS])
        if config.online_file is None:
            _materialize(feast_store, start, end)
            _delete_strangers(feast_store, config)
        else:
            _materialize_beside(config, config.online_file, start, end, before_swap)


def _materialize_beside(
    config: FeatureStoreConfig, online: Path, start: Any, end: Any, before_swap: Callable[[Any], object]
) -> None:
    """Fill a new SQLite file and copy it over."""
    from feast import FeatureStore

    fresh_file = online.with_name(".online.db.part")
    fresh_file.unlink(missing_ok=True)
    fresh = FeatureStore(config=config.feast_config(fresh_file))
    try:
        views, entities = fresh.list_feature_views(), fresh.list_entities()
        fresh.provider.update_infra(config.project, [], views, [], entities, partial=True)
        _materialize(fresh, start, end)
        before_swap(fresh)
        _copy_over(fresh_file, online)
    finally:
        fresh.provider.teardown_infra(config.project, [], [])  # closes and removes the file beside
        dispose(fresh)


def _materialize(feast_store: Any, start: Any, end: Any) -> None:
    """Fill all views. What Feast prints on stdout (with colour codes, whatever stdout is) would end up in results."""
    with contextlib.redirect_stdout(io.StringIO()):
        feast_store.materialize(start, end, feature_views=list(VIEWS))


def _delete_strangers(feast_store: Any, config: FeatureStoreConfig) -> None:
    """Delete this project's keys in Redis of users and items that the tables do not hold.

    Feast deletes all rows of a view or none; its form of a key is taken from it.
    """
    from feast.infra.online_stores.helpers import _redis_key, _redis_key_prefix
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    client = feast_store.provider.online_store._get_client(feast_store.config.online_store)
    version = feast_store.config.entity_key_serialization_version
    for join_key, view in ((USER_ID, USER_STATE_VIEW), (ITEM_ID, ITEM_STATS_VIEW)):
        ids = pq.read_table(table_path(config.home, view), columns=[join_key])[join_key].unique().to_pylist()
        known = {
            _redis_key(config.project, EntityKey(join_keys=[join_key], entity_values=[Value(int64_val=i)]), version)
            for i in ids
        }
        pattern = b"".join([_redis_key_prefix([join_key]), b"*", config.project.encode()])
        gone = [key for key in client.scan_iter(pattern, count=SCANNED) if key not in known]
        for low in range(0, len(gone), SCANNED):
            client.delete(*gone[low : low + SCANNED])


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
                # Names come from our own database's schema.
                connection.execute(f'DELETE FROM main."{name}"')  # nosec B608
                copy = f'INSERT INTO main."{name}" ({columns}) SELECT {columns} FROM fresh."{name}"'  # nosec B608
                connection.execute(copy)
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
    close_connection(feast_store.provider)
