"""The embedded registry's file, when it is damaged.

Stage: features. In: the path of a SQLite file. Out: a place that is free for a new one. Absent: what is in it; it is
all made again from `feature_repo/definitions.py`, so that a damaged file is worth nothing.
"""

import logging
import sqlite3
from pathlib import Path

log = logging.getLogger(__name__)


def set_aside_if_damaged(path: Path) -> bool:
    """Rename a file that is no whole SQLite database to `<name>.damaged`, over an older one; whether it was.

    Raises sqlite3.OperationalError where that cannot be told, as while somebody else has it locked.
    """
    if not path.exists() or _whole(path):
        return False
    for suffix in ("-wal", "-shm", "-journal"):  # a journal would be played into the new file
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    log.warning("the registry %s is damaged; it is made again, and the old file is now %s", path, aside.name)
    return True


def _whole(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("PRAGMA quick_check")] == ["ok"]
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()
