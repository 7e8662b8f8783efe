"""The three typed tables that every later stage starts from.

Order is part of the contract: events by (timestamp, user_id, item_id), items by item_id, users by user_id.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.atomic_io import read_json, replacing_folder, write_json
from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.errors import MissingArtefactError

EVENTS_SCHEMA = pa.schema(
    [(USER_ID, pa.int64()), (ITEM_ID, pa.int64()), (RATING, pa.float32()), (TIMESTAMP, pa.int64())]
)
ITEMS_SCHEMA = pa.schema(
    [(ITEM_ID, pa.int64()), (TITLE, pa.string()), (YEAR, pa.int32()), (GENRES, pa.list_(pa.string()))]
)
USERS_SCHEMA = pa.schema([(USER_ID, pa.int64()), (GENDER, pa.string()), (AGE, pa.int32()), (OCCUPATION, pa.string())])


@dataclass(frozen=True)
class DatasetInfo:
    """What the tables were made from: the layout of the files, SHA-256 over them, numbers of rows.

    It goes into every artefact, metric, page and answer, so that synthetic data never pass for MovieLens."""

    name: str
    synthetic: bool
    layout: str
    fingerprint: str
    n_events: int
    n_items: int
    n_users: int
    n_quarantined: int = 0
    last_event_at: int | None = None  # seconds UTC; None where the data set's time is the service's (DataClock)

    @property
    def label(self) -> str:
        """The name as pages and answers show it."""
        return f"{self.name} (synthetic, not MovieLens)" if self.synthetic else self.name


@dataclass(frozen=True)
class Tables:
    """events (user_id, item_id, rating, timestamp), items (item_id, title, year, genres), users (user_id, gender,
    age, occupation). `users` has a row for every user of the source, with nulls where it tells nothing."""

    events: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    info: DatasetInfo


def save_tables(tables: Tables, folder: Path, quarantine: Path | None = None) -> None:
    """Sort, type and write all three tables and `dataset.json`; the folder is replaced whole.

    `quarantine` is a file with the rows that were left out; a copy lies beside the tables as `quarantine.csv`.
    """
    # lexsort on plain arrays: sort_values on several columns first turns each of them into categories.
    events = tables.events
    events = events.iloc[np.lexsort([events[column].to_numpy() for column in (ITEM_ID, USER_ID, TIMESTAMP)])]
    with replacing_folder(folder) as beside:
        for name, frame, schema in (
            ("events", events, EVENTS_SCHEMA),
            ("items", tables.items.sort_values(ITEM_ID), ITEMS_SCHEMA),
            ("users", tables.users.sort_values(USER_ID), USERS_SCHEMA),
        ):
            pq.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), beside / f"{name}.parquet")
        if quarantine is not None:
            shutil.copyfile(quarantine, beside / "quarantine.csv")
        write_json(beside / "dataset.json", asdict(tables.info))


def load_tables(folder: Path) -> Tables:
    """Read what `save_tables` wrote. Raises MissingArtefactError where the folder does not hold it."""
    if not (folder / "dataset.json").exists():
        raise MissingArtefactError(f"No data in {folder}. Run `recsys data` first.")
    events, items, users = (pd.read_parquet(folder / f"{n}.parquet") for n in ("events", "items", "users"))
    return Tables(events, items, users, DatasetInfo(**read_json(folder / "dataset.json")))
