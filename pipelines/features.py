"""Stage `features`: the data set and the event table become the tables that Feast keeps, and its online store.

The newest state of every user goes online, with the last event of the table that it knows; past states are written for
the contexts from which rankers learn. A service may run meanwhile: it adds later events by itself.
"""

import time
from itertools import pairwise
from pathlib import Path

import pandas as pd

from pipelines import training_set
from pipelines.job import Job
from recsys.columns import ITEM_STATS_VIEW, TIMESTAMP, USER_ID, USER_STATE_VIEW
from recsys.feature_store import table_path, write_feature_tables
from recsys.features.item_stats import SECONDS_PER_DAY, day_of, snapshots
from recsys.features.prediction_points import PredictionPoints


def ranker_contexts(job: Job, after: int, through: int) -> PredictionPoints:
    """The contexts of a ranker's window: all of them, or the configured number at random."""
    return PredictionPoints.from_events(
        job.window(after, through), most=job.config.ranker.max_contexts, seed=job.config.ranker.seed
    )


def outputs(job: Job) -> list[Path]:
    """The tables, and those stores that are files."""
    config = job.store.config
    tables = [table_path(job.home, view) for view in (USER_STATE_VIEW, ITEM_STATS_VIEW)]
    return [*tables, *(path for path in (config.registry_file, config.online_file) if path is not None)]


def run(job: Job) -> None:
    split = job.split
    edges = (split.t0, split.t1, split.t2, split.end)
    windows = [ranker_contexts(job, after, through) for after, through in pairwise(edges)]
    contexts = pd.concat([pd.DataFrame({USER_ID: c.user_id, TIMESTAMP: c.timestamp}) for c in windows])
    learnt = training_set.take(job.home, job.settings.event_table(job.home))
    if learnt.n_later:
        job.report(f"features: {learnt.n_later:,} ratings of the event table are in")
    # Of days that have ended: a part of today's would pass for the whole once it is midnight.
    midnight = int(day_of(int(time.time()))) * SECONDS_PER_DAY
    ended = learnt.tables.events[learnt.tables.events[TIMESTAMP] < midnight]
    write_feature_tables(job.home, learnt.histories, snapshots(ended), contexts, learnt.through_seq)
    job.store.apply()
    job.store.materialize()
