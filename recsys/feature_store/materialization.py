"""Put the newest row of every user into the online store.

A service may read meanwhile: in SQLite all rows are one transaction over a write-ahead log, and in Redis each row is
one command. Rows say how far they know the events, so that old and new ones may stand side by side.
"""

import contextlib
import fcntl
import gc
import io
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from recsys.atomic_io import locked_folder
from recsys.columns import USER_STATE_VIEW
from recsys.feature_store.config import FeatureStoreConfig
from recsys.feature_store.registration import close_feast, open_feast

ALL_TIME: Final = (datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))  # never now(): stamps are data's


def fill_online_store(config: FeatureStoreConfig) -> None:
    online = config.online_file
    with contextlib.nullcontext() if online is None else _written_ahead(online):
        _materialize(config)


def _materialize(config: FeatureStoreConfig) -> None:
    feast_store = open_feast(config)  # one of its own: others do not read in its transaction
    try:
        # One at a time; `open_feast` locks another folder, so that a service can start meanwhile. What Feast prints on
        # stdout (with colour codes, whatever stdout is) would end up in results.
        with locked_folder(config.home.features, fcntl.LOCK_EX), contextlib.redirect_stdout(io.StringIO()):
            feast_store.materialize(*ALL_TIME, feature_views=[USER_STATE_VIEW])
    finally:
        close_feast(feast_store)


@contextlib.contextmanager
def _written_ahead(path: Path) -> Iterator[None]:
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
