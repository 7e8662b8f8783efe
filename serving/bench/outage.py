"""Taking the online store away from a running service, and giving it back.

Stage: serving (soak test). In: the file of a temporary home's SQLite store. Out: a store that cannot be read for a
while. Absent: a user's own store; only a home that was made for the purpose is treated so.

SQLite is a file that the service holds open: renamed away, or emptied, it would still be read from the connection's
cache. Its tables are renamed instead, in one transaction of another connection, which every reader notices at once.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from recsys.errors import StoreError

AWAY = "away_"  # before a table's name
LOCK_LIMIT_S = 10.0


@contextmanager
def store_away(online_file: Path) -> Iterator[None]:
    """While the block runs, every read and write fails. Raises StoreError where there is no store."""
    if not online_file.is_file():
        raise StoreError(f"There is no online store at {online_file} to be taken away.")
    _rename(online_file, lambda name: AWAY + name)
    try:
        yield
    finally:
        _rename(online_file, lambda name: name.removeprefix(AWAY))


def _rename(online_file: Path, new_name: Callable[[str], str]) -> None:
    with closing(sqlite3.connect(online_file, timeout=LOCK_LIMIT_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            if not name.startswith("sqlite_"):
                connection.execute(f"ALTER TABLE {_quoted(name)} RENAME TO {_quoted(new_name(name))}")
        connection.execute("COMMIT")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
