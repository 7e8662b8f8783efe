"""What models learn from: the data set, and the ratings that the event table has received since.

`recsys train` calls `take` once: it asks the event table for a sequence number S and keeps the ratings up to S in
`training_set/` of the data set's home. Every other command calls `load` and sees what the last training saw, whatever
has been received in the meantime.

A user and an item count once: of several ratings the latest stands, and of equally late ones the one received last.
"""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
import pandas as pd

from pipelines.stage_runner import read_record
from recsys.atomic_io import fingerprint_value, read_json, replacing_folder, write_json
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.data.split import Split, split_by_time
from recsys.data.tables import DatasetInfo, Tables, load_tables
from recsys.events import RATING_KIND, EventTable
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.workspace import DatasetWorkspace

RECORD, RATINGS = "training_set.json", "later_ratings.parquet"


@dataclass(frozen=True)
class TrainingSet:
    """The tables, and what follows from them.

    tables       events, items and users; `tables.info` counts them and has a fingerprint of its own where ratings
                 were added
    source       the data set alone
    through_seq  S, the last event of the table that may be in; 0 before the first training
    n_later      how many ratings of the event table are in
    cutoffs      those of the whole table, where events were left out
    """

    tables: Tables
    source: DatasetInfo
    through_seq: int = 0
    n_later: int = 0
    cutoffs: Split | None = None

    @cached_property
    def split(self) -> Split:
        return self.cutoffs or split_by_time(self.tables.events[TIMESTAMP].to_numpy())

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.from_tables(self.tables.items, self.tables.users)

    @cached_property
    def histories(self) -> Histories:
        return Histories.from_tables(self.catalogue, self.tables.events, self.tables.users)

    @cached_property
    def timeline(self) -> ItemStatsTimeline:
        return ItemStatsTimeline(self.catalogue, snapshots(self.tables.events))

    def window(self, after: int, through: int) -> pd.DataFrame:
        """Events with after < timestamp <= through."""
        events = self.tables.events
        return events[(events[TIMESTAMP] > after) & (events[TIMESTAMP] <= through)]

    def with_events(self, events: pd.DataFrame) -> "TrainingSet":
        """The same with these events alone; the cutoffs stay."""
        return replace(self, tables=replace(self.tables, events=events), cutoffs=self.split)


def take(home: DatasetWorkspace, table: EventTable) -> TrainingSet:
    """Keep the ratings received so far as those that models learn from. Waits for inserts under way."""
    through = table.safe_seq()
    if through != _through_seq(home):
        ratings = _received(table, through, load_tables(home.data).info)
        with replacing_folder(home.training_set) as beside:
            ratings.to_parquet(beside / RATINGS)
            taken_utc = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(beside / RECORD, {"through_seq": through, "n_ratings": len(ratings), "taken_utc": taken_utc})
    return load(home)


def load(home: DatasetWorkspace) -> TrainingSet:
    """What the last training learnt from; the data set alone where there was none."""
    through = _through_seq(home)
    if not through:
        return data_set_alone(home)
    return with_later_ratings(load_tables(home.data), pd.read_parquet(home.training_set / RATINGS), through)


def with_later_ratings(plain: Tables, later: pd.DataFrame, through_seq: int) -> TrainingSet:
    """The tables with `later` (user_id, item_id, rating, timestamp) in the order received. Ratings of items that the
    catalogue does not have are left out."""
    later = _typed(later[later[ITEM_ID].isin(plain.items[ITEM_ID])])
    if later.empty:
        return TrainingSet(plain, plain.info, through_seq)
    received = pd.concat([plain.events, later], ignore_index=True).sort_values(TIMESTAMP, kind="stable")
    events = received.drop_duplicates([USER_ID, ITEM_ID], keep="last")
    events = events.sort_values([TIMESTAMP, USER_ID, ITEM_ID], ignore_index=True)
    content = pd.util.hash_pandas_object(later, index=False).to_numpy().tobytes().hex()
    info = replace(
        plain.info,
        fingerprint=fingerprint_value([plain.info.fingerprint, content]),
        n_events=len(events),
        n_users=len(np.union1d(plain.users[USER_ID], events[USER_ID])),
    )
    return TrainingSet(replace(plain, events=events, info=info), plain.info, through_seq, len(later))


def data_set_alone(home: DatasetWorkspace) -> TrainingSet:
    """Without any rating of the event table, for what is compared with other people's figures or kept for others."""
    plain = load_tables(home.data)
    return TrainingSet(plain, plain.info)


def newest(home: DatasetWorkspace, table: EventTable) -> TrainingSet:
    """What the next training would learn from: the data set and every rating received so far."""
    through = table.safe_seq()
    plain = load_tables(home.data)
    return with_later_ratings(plain, _received(table, through, plain.info), through)


def waiting(home: DatasetWorkspace, table: EventTable) -> int:
    """How many ratings the next training would take."""
    return sum(event.kind == RATING_KIND for event in table.read(after=_through_seq(home)))


def status(home: DatasetWorkspace, table: EventTable) -> str:
    """`recsys status`: what a data set holds, what its models learnt from, and what waits for the next training."""
    info = load_tables(home.data).info
    registered = read_record(home.stages, "register")
    trained = "not trained yet"
    if registered is not None:
        trained = f"trained {registered.finished_utc[:19]} UTC on these and {load(home).n_later:,} later ratings"
    n = waiting(home, table)
    return (
        f"data     {info.label}: {info.n_events:,} ratings, {info.n_items:,} items, {info.n_users:,} users\n"
        f"model    {trained}\n"
        f"waiting  {n:,} ratings in the event table" + ("; `recsys train` takes them" if n else "")
    )


def _through_seq(home: DatasetWorkspace) -> int:
    """S of the last training, 0 where there was none."""
    path = home.training_set / RECORD
    return int(read_json(path)["through_seq"]) if path.exists() else 0


def _received(table: EventTable, through: int, info: DatasetInfo) -> pd.DataFrame:
    """In the time of the data set."""
    to_data = table.data_clock(info.last_event_at, time.time()).to_data
    events = (event for event in table.read(through=through) if event.kind == RATING_KIND)
    rows = [(event.user_id, event.item_id, event.value, to_data(event.occurred_at)) for event in events]
    return _typed(pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP]))


def _typed(ratings: pd.DataFrame) -> pd.DataFrame:
    return ratings.astype({USER_ID: np.int64, ITEM_ID: np.int64, RATING: np.float32, TIMESTAMP: np.int64})
