"""Which version has an alias, asked of MLflow's own SQLite file: 1 ms, where importing MLflow alone takes 2 s.

MLflow owns these tables: only a revision of its schema that is known here is read, and a test holds each answer
against MLflow's.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from recsys.registry.records import VersionInfo, version_info

KNOWN_REVISIONS: Final = {"dc11669786a5"}  # MLflow 3.17
WAIT_S: Final = 1.0  # for a writer
log = logging.getLogger(__name__)


def quick_look(database: Path, model_name: str, alias: str) -> VersionInfo | None:
    """The version that `alias` names. None where there is none, or the file is not as this code knows it: then ask
    MLflow, which also says what is wrong."""
    if not database.is_file():
        return None
    try:
        uri = f"{database.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=WAIT_S)) as connection:
            return _look(connection, model_name, alias)
    except (sqlite3.Error, KeyError, ValueError) as error:
        log.info("%s is left to MLflow: %s", database, error)
        return None


def _look(connection: sqlite3.Connection, model_name: str, alias: str) -> VersionInfo | None:
    connection.execute("BEGIN")  # all of it as of one moment
    revisions = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
    if len(revisions) != 1 or revisions[0] not in KNOWN_REVISIONS:
        raise ValueError(f"its schema has revision {revisions}")
    of_model = "WHERE workspace = 'default' AND name = ?"
    # Constant text; what varies is bound.
    of_aliases = f"SELECT alias, version FROM registered_model_aliases {of_model}"  # nosec B608
    pairs = connection.execute(of_aliases, (model_name,))
    aliases = {str(name): int(version) for name, version in pairs}
    if alias not in aliases:
        return None
    of_version, key = f"{of_model} AND version = ?", (model_name, aliases[alias])
    of_facts = f"SELECT creation_time, run_id FROM model_versions {of_version}"  # nosec B608
    row = connection.execute(of_facts, key).fetchone()
    if row is None:
        return None
    of_tags = f'SELECT "key", value FROM model_version_tags {of_version}'  # nosec B608
    tags = dict(connection.execute(of_tags, key))
    entity = SimpleNamespace(tags=tags, version=aliases[alias], creation_timestamp=row[0], run_id=row[1])
    return version_info(entity, aliases)
