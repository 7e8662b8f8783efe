"""Stage `features`: events become the tables that Feast keeps, and its online store.

In: the typed tables, the service's event log. Out: `features/*.parquet`, Feast's registry and online store. Absent:
anything learnt.

The newest state of every user goes online; past states are written for the contexts from which rankers learn. Logged
events are in the newest states, the seen items and the item statistics, and in no past state: nothing that was known
before changes. A service may run meanwhile, and loses none.
"""

import time
from itertools import pairwise
from pathlib import Path

import pandas as pd

from pipelines.job import Job
from recsys.columns import ITEM_STATS_VIEW, TIMESTAMP, USER_ID, USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.feature_store import Latest, history_path, write_feature_tables
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
    names = (USER_STATE_VIEW, USER_SEEN_VIEW, ITEM_STATS_VIEW)
    files = [*(job.home.features / f"{view}.parquet" for view in names), history_path(job.home)]
    return [*files, *(path for path in (config.registry_file, config.online_file) if path is not None)]


def run(job: Job) -> None:
    split = job.split
    edges = (split.t0, split.t1, split.t2, split.end)
    windows = [ranker_contexts(job, after, through) for after, through in pairwise(edges)]
    contexts = pd.concat([pd.DataFrame({USER_ID: c.user_id, TIMESTAMP: c.timestamp}) for c in windows])
    latest = Latest.of(job.histories, job.tables.events, job.tables.users, job.home.events)
    if latest.received:
        job.report(f"features: {len(latest.received):,} users moved by the event log")
    # Of days that have ended: a part of today's would pass for the whole once it is midnight.
    today = int(day_of(int(time.time())))
    ended = latest.known[latest.known[TIMESTAMP] < today * SECONDS_PER_DAY]
    write_feature_tables(job.home, job.histories, snapshots(ended), contexts, latest)
    job.store.apply()
    job.store.materialize()
