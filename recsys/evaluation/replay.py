"""The yardstick: every event after T2 is predicted from what its user had done before that moment.

An evaluation bundle frozen at T2 gives the ranks of every rung of the leaderboard, and on request the lists. The events
of one user in one second share a context, hence a list. States move on with the events, item statistics with the days;
retrievers and rankers do not move.

Shapes: B contexts of a batch, E events, k = LIST_LENGTH.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import replacing_file
from recsys.bundle import Bundle
from recsys.columns import (
    COVISITATION,
    EASE,
    IALS,
    ITEM_ID,
    ITEM_KNN,
    POPULARITY,
    RANKED,
    RATING,
    TIMESTAMP,
    TWO_TOWER,
    USER_ID,
)
from recsys.errors import DataError
from recsys.evaluation.beyond_accuracy import Items, Shown
from recsys.evaluation.cohorts import GAP_S, N_HISTORY, NEW_USER, RATERS, Trained
from recsys.evaluation.leaderboard import MethodRanks, Replayed
from recsys.evaluation.metrics import LIST_LENGTH, rank_in
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, day_of
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.ranker import LogisticRanker
from recsys.recommender import Recommendations, Recommender, RequestContext, order
from recsys.retrieval.merge import ask
from recsys.threads import limited

FULL_SYSTEM = "full system"
MERGED = "merged retrievers"
LOGISTIC = "logistic regression"
TOP = 10

DUMP_SCHEMA = pa.schema(
    [(USER_ID, pa.int64()), (TIMESTAMP, pa.int64()), (ITEM_ID, pa.int64()), (RANKED, pa.list_(pa.int64()))]
)
DESCRIPTIONS = {
    POPULARITY: "time-decayed popularity",
    COVISITATION: "recency-decayed co-visitation",
    ITEM_KNN: "item-kNN on a recency-weighted history",
    IALS: "implicit ALS, folded in from a recency-weighted history",
    EASE: "EASE on a recency-weighted history",
    TWO_TOWER: "two-tower model and its FAISS index",
    MERGED: "all retrievers, reciprocal rank fusion",
    LOGISTIC: "merged retrievers, reordered by logistic regression",
    FULL_SYSTEM: "merged retrievers, reordered by LightGBM",
}


def test_events(events: pd.DataFrame, t2: int) -> pd.DataFrame:
    """Events after T2, in the order of the tables. Raises DataError where there are none."""
    after = events[events[TIMESTAMP] > t2]
    if len(after) == 0:
        raise DataError(f"There is no event after T2 = {t2}, so there is nothing to test on.")
    return after


def replay(
    bundle: Bundle,
    histories: Histories,
    snapshot_table: pd.DataFrame,
    events: pd.DataFrame,
    *,
    dump: Path | None = None,
    leaderboard: bool = True,
    observe: Callable[[Recommendations, IntArray, IntArray, FloatArray], None] = lambda *_: None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Replayed:
    """Ranks of every event in `events` (all after the bundle's `trained_through`) for each rung of the leaderboard, or
    with `leaderboard` False for the full system alone. `dump` writes its lists, a Parquet row for each event.

    `observe(full, row, item_id, rating)` is called once a batch with the full system's answers and the events (E,) of
    the batch: which row answers each, and what happened.
    """
    recommender = bundle.recommender
    catalogue = recommender.catalogue
    contexts = PredictionPoints.from_events(events)
    timeline = ItemStatsTimeline(catalogue, snapshot_table)
    target = catalogue.to_idx(contexts.event_item_id)
    by_context = np.argsort(contexts.event_context, kind="stable")
    starts = np.searchsorted(contexts.event_context[by_context], np.arange(len(contexts) + 1))
    names = [*(s.name for s in reversed(recommender.retrievers)), MERGED, LOGISTIC] if leaderboard else []
    names.append(FULL_SYSTEM)
    trained = Trained.through(histories, bundle.facts.trained_through)
    items = Items(catalogue, trained.raters, len(trained.user_ids))
    ranks = {name: np.zeros(len(events), dtype=np.int64) for name in names}
    shown = {name: Shown(items) for name in names}
    n_history, gap_s = np.zeros((2, len(events)), dtype=np.int64)

    done = 0
    with limited(1), _dump_writer(dump) as write:
        for rows in contexts.batches_by_day():
            states = histories.states_at(contexts.user_id[rows], contexts.timestamp[rows])
            stats = timeline.as_of(int(day_of(contexts.timestamp[rows[0]])))
            batch = np.concatenate([by_context[starts[c] : starts[c + 1]] for c in rows])  # its events
            row_of = np.repeat(np.arange(len(rows)), starts[rows + 1] - starts[rows])
            full, lists = answers_by_method(
                recommender, bundle.logistic if leaderboard else None, states, RequestContext(stats)
            )
            for name, ranked in lists.items():
                ranks[name][batch] = rank_in(ranked[row_of], target[batch])
                shown[name].add(ranked[:, :TOP])
            n_history[batch] = states.n_events[row_of]
            gap_s[batch] = np.where(states.cold, -1, states.now - states.timestamps[:, -1])[row_of]
            write(contexts, batch, full.item_ids[row_of])
            observe(full, row_of, contexts.event_item_id[batch], contexts.event_rating[batch])
            done += len(rows)
            progress(done, len(contexts))
    columns = {
        USER_ID: contexts.user_id[contexts.event_context],
        TIMESTAMP: contexts.timestamp[contexts.event_context],
        ITEM_ID: contexts.event_item_id,
        RATING: events[RATING].to_numpy(np.float32),
        N_HISTORY: n_history,
        GAP_S: gap_s,
        NEW_USER: ~np.isin(events[USER_ID].to_numpy(), trained.user_ids),
        RATERS: np.append(trained.raters, 0)[target],  # an item outside the catalogue has none
    }
    systems = (MERGED, LOGISTIC, FULL_SYSTEM)
    methods = [
        MethodRanks(
            name, ranks[name], shown[name].measure(), "system" if name in systems else "single", DESCRIPTIONS[name]
        )
        for name in names
    ]
    return Replayed(pd.DataFrame(columns), len(catalogue), methods)


def answers_by_method(
    recommender: Recommender, logistic: LogisticRanker | None, states: StateBatch, context: RequestContext
) -> tuple[Recommendations, dict[str, IntArray]]:
    """The full system's answers, and (B, k) row numbers by method, best first, -1 where there is no more: of every rung
    of the leaderboard, or without a `logistic` of the full system alone."""
    answers = ask(recommender.retrievers, states)
    full = recommender.recommend(states, context, LIST_LENGTH, answers=answers)
    lists = {}
    if logistic is not None:
        lists = {name: answers[name].top(LIST_LENGTH)[0] for name in reversed(answers)}
        lists[MERGED] = order(full.candidates, full.candidates.rrf_score, LIST_LENGTH)[0]
        if full.features is not None:
            scores = recommender.ranked_scores(full.candidates, full.features, logistic)
            lists[LOGISTIC] = order(full.candidates, scores, LIST_LENGTH)[0]
    lists[FULL_SYSTEM] = recommender.catalogue.to_idx(full.item_ids)
    return full, lists


@contextmanager
def _dump_writer(path: Path | None) -> Iterator[Callable[[PredictionPoints, IntArray, IntArray], None]]:
    """A function that writes a batch of events with their lists; one that does nothing without a path."""
    if path is None:
        yield lambda *_: None
        return
    with replacing_file(path) as beside, pq.ParquetWriter(beside, DUMP_SCHEMA) as writer:

        def write(contexts: PredictionPoints, events: IntArray, ranked_ids: IntArray) -> None:
            context = contexts.event_context[events]
            columns: dict[str, Any] = {
                USER_ID: contexts.user_id[context],
                TIMESTAMP: contexts.timestamp[context],
                ITEM_ID: contexts.event_item_id[events],
                RANKED: [ranked[ranked >= 0] for ranked in ranked_ids],
            }
            writer.write_table(pa.table(columns, schema=DUMP_SCHEMA))

        yield write
