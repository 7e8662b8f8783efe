"""Connections to the event table's database. A SQLite file in a home mounted read-only is still read."""

import os
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool

BUSY_S: Final = 5.0  # how long SQLite waits for another writer, and PostgreSQL for a connection
CREATION_LOCK: Final = 7_241_001  # PostgreSQL: whoever makes the table holds this advisory lock


def sqlite_url(path: Path) -> sa.URL:
    """The URL of a file, whatever characters its path holds."""
    return sa.URL.create("sqlite", database=str(path))


def open_engine(url: sa.URL, table: sa.Table) -> sa.Engine:
    """An engine whose database has the table. Any number of processes may be the first at once."""
    if url.get_backend_name() != "sqlite":
        limits = {"connect_timeout": 3, "tcp_user_timeout": int(1_000 * BUSY_S)}  # for a machine that is gone
        engine = sa.create_engine(url, pool_pre_ping=True, pool_timeout=BUSY_S, connect_args=limits)
        _create(engine, table)
        return engine
    path = Path(url.database or "").absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    if os.access(folder, os.W_OK) and (not path.exists() or os.access(path, os.W_OK)):
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})
        sa.event.listen(engine, "connect", _set_up)
        _create(engine, table)
        return engine
    if path.exists():
        # A write-ahead log may belong to a writer elsewhere. Without one nothing can change under the reader.
        how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
        address = f"{path.as_uri()}?{how}"
        connect = partial(sqlite3.connect, address, timeout=BUSY_S, uri=True, check_same_thread=False)
        return sa.create_engine("sqlite://", creator=connect, poolclass=QueuePool)
    empty = sa.create_engine("sqlite://")
    _create(empty, table)
    sa.event.listen(empty, "begin", lambda connection: connection.exec_driver_sql("PRAGMA query_only=ON"))
    return empty


def _set_up(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=FULL")  # committed is on disk
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")  # readers wait for no writer
            return
        except sqlite3.OperationalError:  # SQLite does not wait here for another who switches at the same moment
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _create(engine: sa.Engine, table: sa.Table) -> None:
    if sa.inspect(engine).has_table(table.name):
        return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATION_LOCK)))
        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def is_deadlock(error: Exception) -> bool:
    """PostgreSQL ended this transaction because it and another one waited for each other."""
    return isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) == "40P01"
