"""Stage `features`: the data set and the event table become the tables that Feast keeps, and its online store.

The newest state of every user goes online, with the last event of the table that it knows; past states are written for
the contexts from which rankers learn. A service may run meanwhile: it adds later events by itself.
"""

import time
from itertools import pairwise
from pathlib import Path

import pandas as pd

from pipelines import training_set
from pipelines.stage_runner import Report
from pipelines.training_set import TrainingSet
from recsys.columns import ITEM_STATS_VIEW, TIMESTAMP, USER_ID, USER_STATE_VIEW
from recsys.events import EventTable
from recsys.feature_store import FeatureStore, table_path, write_feature_tables
from recsys.features.item_stats import SECONDS_PER_DAY, day_of, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.ranking.training import RankerSettings
from recsys.workspace import DatasetWorkspace


def ranker_contexts(data: TrainingSet, after: int, through: int, ranker: RankerSettings) -> PredictionPoints:
    """The contexts of a ranker's window: all of them, or the configured number at random."""
    return PredictionPoints.from_events(data.window(after, through), most=ranker.max_contexts, seed=ranker.seed)


def outputs(home: DatasetWorkspace, store: FeatureStore) -> list[Path]:
    """The tables, and those stores that are files."""
    stores = (store.config.registry_file, store.config.online_file)
    tables = [table_path(home, view) for view in (USER_STATE_VIEW, ITEM_STATS_VIEW)]
    return [*tables, *(path for path in stores if path is not None)]


def write(
    data: TrainingSet,
    ranker: RankerSettings,
    home: DatasetWorkspace,
    store: FeatureStore,
    event_table: EventTable,
    report: Report,
) -> None:
    """Past states of `data`, from which rankers learn; newest states and statistics of what is known by now."""
    split = data.split
    edges = (split.t0, split.t1, split.t2, split.end)
    windows = [ranker_contexts(data, after, through, ranker) for after, through in pairwise(edges)]
    contexts = pd.concat([pd.DataFrame({USER_ID: c.user_id, TIMESTAMP: c.timestamp}) for c in windows])
    newest = training_set.newest(home, event_table)
    if newest.n_later:
        report(f"features: {newest.n_later:,} ratings of the event table are in")
    # Of days that have ended: a part of today's would pass for the whole once it is midnight.
    now = int(time.time())
    now = event_table.data_clock(data.source.last_event_at, now).to_data(now)
    midnight = int(day_of(now)) * SECONDS_PER_DAY
    ended = newest.tables.events[newest.tables.events[TIMESTAMP] < midnight]
    write_feature_tables(home, newest.histories, snapshots(ended), contexts, newest.through_seq)
    store.apply()
    store.materialize()
