"""Which file of a home is damaged or missing, once a command has failed in a way that it did not expect.

Nothing is checked beforehand: a home is large, and its files are written whole.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import RESTORE


def explain(error: BaseException, home: Path) -> str | None:
    """A line for the reader: the first damaged file below `home`, or the missing one that `error` names; None where the
    home is not to blame."""
    missing = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and missing is not None and Path(missing).is_relative_to(home):
        return f"{missing} is missing. Restore it, or run `recsys data` or `recsys train --force`, which write it."
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        if reason := _damage(path):
            return f"{path} is damaged: {reason}. {RESTORE}"
    text = str(error)
    if str(home) in text:  # libraries that raise errors of their own for a file that is not there
        return (
            f"{text.splitlines()[0].rstrip('.')}. A file of {home} is missing or damaged. Run `recsys train --force`."
        )
    return None


def _damage(path: Path) -> str | None:
    try:
        if path.suffix == ".json" and not json.loads(path.read_text(encoding="utf-8")):
            return "it is empty"
        if path.suffix == ".parquet":
            pq.read_table(path)
        if path.suffix == ".db":
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
    except (ValueError, OSError, pa.ArrowException, sqlite3.DatabaseError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None
