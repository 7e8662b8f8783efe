"""`recsys recommend` and `recsys batch`: the champion's answers without a service.

States and statistics are computed from the data set and every rating received so far, with the same functions that
fill the feature store, so that a batch costs no look-up per user.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from pipelines import training_set
from pipelines.pipeline import Pipeline
from recsys.atomic_io import replacing_file
from recsys.bundle import Bundle, load_bundle
from recsys.columns import CHAMPION, ITEM_ID, RANK, SCORE, TIMESTAMP, USER_ID
from recsys.errors import ConfigError
from recsys.features.histories import Histories
from recsys.features.item_stats import SECONDS_PER_DAY, ItemStatsTimeline, day_of, snapshots
from recsys.features.state import StateBatch
from recsys.recommender import Recommendations, RequestContext
from recsys.threads import limited

BATCH = 256
RETURN_S = 60  # after the last event
BATCH_SCHEMA = pa.schema([(USER_ID, pa.int64()), (RANK, pa.int32()), (ITEM_ID, pa.int64()), (SCORE, pa.float32())])


@dataclass(frozen=True)
class Newest:
    """The champion, and everything known by `at`, seconds UTC in the time of the data set; also of users whom only the
    event table knows. None: each user comes back a minute after what they did last."""

    bundle: Bundle
    histories: Histories
    events: pd.DataFrame
    at: int | None

    @classmethod
    def of(cls, pipeline: Pipeline, at: int | None) -> "Newest":
        """`at` as the service's clock has it. Raises ConfigError for a moment of the past, which the champion has
        learnt from."""
        bundle = load_bundle(pipeline.registry.download(CHAMPION, pipeline.home.bundles))
        if at is not None:
            at = pipeline.event_table.data_clock(bundle.facts.dataset.last_event_at, time.time()).to_data(at)
        if at is not None and at <= bundle.facts.trained_through:
            raise ConfigError(
                f"--at {at} lies before the last event that {bundle.facts.bundle_id} learnt from "
                f"({bundle.facts.trained_through}). For the past there is `recsys evaluate --dump`."
            )
        tables = training_set.newest(pipeline.home, pipeline.event_table).tables
        catalogue = bundle.recommender.catalogue
        events = tables.events[catalogue.to_idx(tables.events[ITEM_ID].to_numpy()) >= 0]
        return cls(bundle, Histories.from_tables(catalogue, events, tables.users), events, at)

    @cached_property
    def context(self) -> RequestContext:
        """Item statistics of days that have ended, as a service reads them."""
        last = int(self.events[TIMESTAMP].max())
        today = int(day_of(last)) + 1 if self.at is None else int(day_of(self.at))
        ended = self.events[self.events[TIMESTAMP] < today * SECONDS_PER_DAY]
        timeline = ItemStatsTimeline(self.bundle.recommender.catalogue, snapshots(ended))
        return RequestContext(timeline.as_of(today))

    @limited(1)
    def answer(self, user_ids: list[int], k: int) -> Recommendations:
        return self.bundle.recommender.recommend(self.states(user_ids), self.context, k)

    def states(self, user_ids: list[int]) -> StateBatch:
        if self.at is not None:
            return self.histories.states_at(user_ids, self.at)
        moments = self._returns.reindex(user_ids, fill_value=self._returns.max())
        return self.histories.states_at(user_ids, moments.to_numpy(np.int64))

    @cached_property
    def _returns(self) -> "pd.Series[int]":
        return self.events.groupby(USER_ID)[TIMESTAMP].max() + RETURN_S


def print_recommendations(pipeline: Pipeline, user_id: int, k: int, at: int | None) -> None:
    """One user's list with titles, and which data set and version it came from."""
    newest = Newest.of(pipeline, at)
    answer = newest.answer([user_id], k)
    catalogue, facts = newest.bundle.recommender.catalogue, newest.bundle.facts
    cold = newest.states([user_id]).cold[0]
    note = " (unknown: the answer for a newcomer)" if cold else ""
    typer.echo(f"{facts.dataset.label}, {facts.bundle_id}, user {user_id}{note}")
    for place, (item_id, score) in enumerate(zip(answer.item_ids[0], answer.scores[0], strict=True)):
        if item_id >= 0:
            idx = int(catalogue.to_idx(item_id))
            watch, like = answer.watch_probability[0, place], answer.like_probability[0, place]
            probabilities = "" if np.isnan(watch) else f"  watch {watch:.1%}, like {like:.0%}"
            title, genres = catalogue.titles[idx], ", ".join(catalogue.genres_of(idx))
            typer.echo(f"{place + 1:3}  {score:8.3f}  {item_id:7}  {title}  {genres}{probabilities}")


def write_batch(pipeline: Pipeline, out: Path, k: int, at: int | None) -> None:
    """A row for each user and rank. Who has seen almost everything gets what is left."""
    newest = Newest.of(pipeline, at)
    user_ids = newest.histories.user_ids.tolist()
    tell = pipeline.progress("batch: users")
    rows = 0
    with replacing_file(out) as beside, pq.ParquetWriter(beside, BATCH_SCHEMA) as writer:
        for low in range(0, len(user_ids), BATCH):
            part = user_ids[low : low + BATCH]
            answer = newest.answer(part, k)
            row, column = np.nonzero(answer.item_ids >= 0)
            table = {
                USER_ID: np.asarray(part, dtype=np.int64)[row],
                RANK: (column + 1).astype(np.int32),
                ITEM_ID: answer.item_ids[row, column],
                SCORE: answer.scores[row, column],
            }
            writer.write_table(pa.table(table, schema=BATCH_SCHEMA))
            rows += len(row)
            tell(low + len(part), len(user_ids))
    typer.echo(f"{rows:,} rows for {len(user_ids):,} users of {newest.bundle.facts.dataset.label}: {out}", err=True)
