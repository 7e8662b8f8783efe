"""Feast opened for one home, with its registry brought to what `definitions.py` says, and its online store filled.

Only the pipeline registers a data set (`create`). A reader that finds it registered with other definitions, or with the
paths of the place that the home was copied from, brings it up to date. Processes of one home take turns. Feast's own
loader would import the definitions as a module: a second home in one process would get the first one's files.
"""

import contextlib
import fcntl
import gc
import io
import logging
import runpy
import sqlite3
import warnings
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from recsys.atomic_io import fingerprint_value, locked_folder
from recsys.columns import USER_STATE_VIEW
from recsys.errors import StoreError
from recsys.feature_store.config import FeatureStoreConfig

DEFINITIONS_TAG: Final = "definitions"  # of the project: what was registered, so that it cannot outlive the registry
ALL_TIME: Final = (datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))  # never now(): stamps are data's

log = logging.getLogger(__name__)


def open_feast(config: FeatureStoreConfig, *, create: bool = False) -> Any:
    """Feast's store. Raises StoreError where the data set is not registered and `create` is False."""
    registry = config.registry_file
    if create:
        config.home.feast.mkdir(parents=True, exist_ok=True)
    elif registry is not None and not registry.exists():
        raise StoreError(f"No feature registry at {registry}. Run `recsys train` first.")
    from feast import FeatureStore

    # Feast makes deprecations visible when it is imported; this one is ibis's, about DuckDB, on every read.
    warnings.filterwarnings("ignore", r"fetch_arrow_table\(\) is deprecated", DeprecationWarning)
    with locked_folder(config.home.feast, fcntl.LOCK_EX):  # opening may make the registry's tables
        if create:
            for path in filter(None, (registry, config.online_file)):
                _set_aside_if_damaged(path)
        feast_store = FeatureStore(config=config.feast_config())
        try:
            _register(feast_store, config, create)
        except BaseException:
            close_feast(feast_store)
            raise
        return feast_store


def _register(feast_store: Any, config: FeatureStoreConfig, create: bool) -> None:
    """Apply the definitions, unless the registry and the online store have them already."""
    definitions, features = config.repo / "definitions.py", str(config.home.features.resolve())
    tag = fingerprint_value([definitions.read_text(encoding="utf-8"), features])
    registered = {project.name: project.tags.get(DEFINITIONS_TAG) for project in feast_store.list_projects()}
    if config.project not in registered and not create:
        raise StoreError(
            f"The registry does not know project {config.project}: the data set was prepared anew, or the home was "
            "moved. Run `recsys train --only features --force`."
        )
    online = config.online_file
    if registered.get(config.project) == tag and (online is None or online.exists()):
        return
    from feast import Entity, FeatureService, FeatureView, Project

    found = list(runpy.run_path(str(definitions), {"FEATURES_FOLDER": features}).values())
    objects = [x for x in found if isinstance(x, Entity | FeatureView | FeatureService)]
    sources = [x.batch_source for x in objects if isinstance(x, FeatureView)]
    feast_store.apply([Project(name=config.project, tags={DEFINITIONS_TAG: tag}), *sources, *objects])
    feast_store.refresh_registry()


def close_feast(feast_store: Any) -> None:
    """Close the registry's database connections. SQLite's online file is closed once nobody holds `feast_store`."""
    for name in ("write_engine", "read_engine"):
        engine = getattr(feast_store.registry, name, None)
        if engine is not None:
            engine.dispose()


def _set_aside_if_damaged(path: Path) -> None:
    """Rename a file that is no whole SQLite database to `<name>.damaged`: what is in it can be made again.

    Raises sqlite3.OperationalError where nobody can tell, as while it is locked.
    """
    if not path.exists():
        return
    with closing(sqlite3.connect(path)) as connection:
        try:
            if connection.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            pass
    for suffix in ("-wal", "-shm", "-journal"):  # a journal would be played into the new file
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    log.warning("%s is damaged; it is made again, and the old file is now %s", path, aside.name)


def fill_online_store(config: FeatureStoreConfig) -> None:
    """Put the newest row of every user into the online store, while a service may read it.

    Redis takes each row as one command. SQLite takes all rows in one transaction over a write-ahead log, so that
    readers neither wait nor see half. Afterwards, unless somebody has the file open, it is without one again: only then
    can a read-only home be read.
    """
    online = config.online_file
    if online is not None:
        _set_journal(online, "WAL")
    feast_store = open_feast(config)  # one of its own: others do not read in its transaction
    try:
        # One at a time; `open_feast` locks another folder, so that a service can start meanwhile. What Feast prints on
        # stdout (with colour codes, whatever stdout is) would end up in results.
        with locked_folder(config.home.features, fcntl.LOCK_EX), contextlib.redirect_stdout(io.StringIO()):
            feast_store.materialize(*ALL_TIME, feature_views=[USER_STATE_VIEW])
    finally:
        close_feast(feast_store)
    del feast_store
    if online is not None:
        gc.collect()  # Feast closes its connection by being collected
        with contextlib.suppress(sqlite3.OperationalError):  # a service has it open
            _set_journal(online, "DELETE")


def _set_journal(path: Path, mode: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
