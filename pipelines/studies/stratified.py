"""The protocol `stratified`: a random quarter of each item's ratings held out, the whole history known, top ten.

It is known in which order a user rated, but not where in it a held-out item belongs. So every event counts alike, and
the two-tower model and co-visitation, which predict what comes next, are left out. Time still shows which items were
rated close together: EASE is fitted a second time on short stretches of the histories as if each were a user.

The training part is dealt into FOLDS folds an item, and what is fitted without one fold is judged, or labelled, by that
fold. The first fold picks the settings of each retriever; the ranker learns from the candidates of all folds. Then the
retrievers are fitted on the whole training part. The held-out quarter is read once, at the end.

Shapes: U users, L history length, E events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from pipelines.pipeline import Pipeline
from recsys.arrays import DoubleArray, IntArray
from recsys.columns import EASE, IALS, ITEM_ID, ITEM_KNN, POPULARITY, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation.protocols import (
    LIST_METRICS,
    SPLIT_SEED,
    TRAIN_SHARE,
    ProtocolResult,
    item_folds,
    list_values,
    protocol_result,
    stratified_by_item,
)
from recsys.evaluation.replay import FULL_SYSTEM, MERGED
from recsys.evaluation.study import StudyRun
from recsys.features.item_stats import SECONDS_PER_DAY, day_of
from recsys.features.prediction_points import BATCH, PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.training import TrainingTable, fit_boosted, joined
from recsys.recommender import Recommender, RecommenderSettings, RequestContext
from recsys.retrieval.ease import Ease
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.retrievers import KnownEvents, fit_retriever
from recsys.training_table import build_training_table, retrieve_contexts

Settings = dict[str, Any]  # keyword arguments of a retriever's `fit`

EASE_STRETCHES: Final = "ease_stretches"
FOLDS: Final = 4
TOP: Final = 10
LONGEST: Final = 2_000  # events of a history that retrievers and features read; what was seen is known in full

GRID: Final[dict[str, list[Settings]]] = {
    EASE: [{"regularisation": r, "power": 0.0, "min_ratings": 1} for r in (150.0, 300.0, 500.0, 1_000.0)],
    EASE_STRETCHES: [
        {"length": n, "regularisation": r, "power": 0.0, "min_ratings": 1} for n in (6, 12) for r in (100.0, 300.0)
    ],
    IALS: [
        {"dim": 64, "regularisation": r, "alpha": a, "iterations": 12, "power": 0.0}
        for r, a in ((10.0, 1.0), (23.0, 2.7), (40.0, 5.0), (60.0, 10.0), (100.0, 20.0))
    ],
    ITEM_KNN: [{"shrinkage": s, "neighbours": 200, "power": 0.0} for s in (10.0, 30.0, 100.0)],
    POPULARITY: [{"half_life_days": 1e12}],  # every rating counts alike
}
RECOMMENDER: Final = RecommenderSettings(fetch=100, keep=150, rank=100, rrf_weights={ITEM_KNN: 0.3, POPULARITY: 0.1})
RANKER: Final[Settings] = {  # set by hand on an inner split: a list has dozens of right answers here
    "objective": "lambdarank",
    "leaves": 4,
    "learning_rate": 0.03,
    "max_trees": 400,
    "min_rows_in_leaf": 500,
    "feature_fraction": 0.6,
    "start_from_logistic": False,
    "negatives": RECOMMENDER.rank,
}


class EaseOnStretches(Ease):
    """Its "users" are stretches of histories, so that it stands beside EASE on whole histories."""

    name = EASE_STRETCHES


class Part:
    """Some events as everything that is known. Every prediction is made at midnight after the last of them: `day` in
    days, `now` in seconds UTC."""

    def __init__(self, pipeline: Pipeline, events: pd.DataFrame) -> None:
        self.data, self.settings = pipeline.data.with_events(events), pipeline.config.ranker
        self.catalogue = self.data.catalogue
        last = int(events[TIMESTAMP].max())
        self.known = KnownEvents.through(self.data.histories, len(self.catalogue), last)
        self.day = int(day_of(last)) + 1
        self.now = self.day * SECONDS_PER_DAY
        self.users = np.unique(events[USER_ID].to_numpy())

    def states(self, user_ids: IntArray) -> StateBatch:
        """States that hold the whole history of each user, up to the LONGEST newest events."""
        histories = self.data.histories
        row = histories.user_idx(user_ids)
        start, end = histories.offset[row], histories.offset[row + 1]
        length = int(min((end - start).max(initial=1), LONGEST))
        position = end[:, None] - length + np.arange(length)[None, :]  # (U, L)
        valid = position >= start[:, None]
        at = np.where(valid, position, 0)
        return replace(
            histories.states_at(user_ids, self.now),
            item_idx=np.where(valid, histories.item_idx[at], -1),
            ratings=np.where(valid, histories.ratings[at], np.float32(0)),
            timestamps=np.where(valid, histories.timestamps[at], 0),
        )

    def fit(self, name: str, settings: Settings) -> Retriever:
        if name != EASE_STRETCHES:
            return fit_retriever(name, self.known, settings)
        length, rest = int(settings["length"]), {k: v for k, v in settings.items() if k != "length"}
        return EaseOnStretches.fit(*stretches(self.known, length), self.known.n_items, **rest)

    def fit_all(self, settings: Mapping[str, Settings]) -> list[Retriever]:
        return [self.fit(name, settings[name]) for name in GRID]

    def measure(
        self, held: pd.DataFrame, retrievers: Sequence[Retriever], systems: Mapping[str, Recommender]
    ) -> tuple[IntArray, dict[str, DoubleArray]]:
        """The users of the held-out events, and (U, M) LIST_METRICS of their lists by method: of each retriever, newest
        in GRID first, and of each system."""
        users, row = np.unique(held[USER_ID].to_numpy(), return_inverse=True)
        context = RequestContext(self.data.timeline.as_of(self.day))
        lists: dict[str, list[IntArray]] = {name: [] for name in (*(r.name for r in reversed(retrievers)), *systems)}
        for low in range(0, len(users), BATCH):
            states = self.states(users[low : low + BATCH])
            for retriever in retrievers:
                lists[retriever.name].append(retriever.answer(states).top(TOP)[0])
            for name, system in systems.items():
                lists[name].append(self.catalogue.to_idx(system.recommend(states, context, TOP).item_ids))
        target = self.catalogue.to_idx(held[ITEM_ID].to_numpy())
        return users, {name: list_values(np.concatenate(parts), row, target) for name, parts in lists.items()}

    def table(self, held: pd.DataFrame, retrievers: Sequence[Retriever]) -> TrainingTable:
        """What the ranker learns from: a context for each user, labelled by what was held out."""
        contexts = PredictionPoints.from_events(
            held.assign(**{TIMESTAMP: self.now}), most=self.settings.max_contexts, seed=SPLIT_SEED
        )
        states = self.states(contexts.user_id)
        recommender = Recommender(self.catalogue, retrievers, None, RECOMMENDER)
        retrieved = retrieve_contexts(recommender, contexts, states)
        as_of = self.data.timeline.as_of
        return build_training_table(
            recommender, contexts, states, retrieved, as_of, negatives=RECOMMENDER.rank, seed=SPLIT_SEED
        )


def stretches(known: KnownEvents, length: int) -> tuple[IntArray, IntArray]:
    """Every history cut into stretches of `length` events, twice, the second time half a stretch further on: number of
    the stretch and item of each event, (2E,) each. An event is in two stretches, so neighbours always share one."""
    first = np.searchsorted(known.user_idx, known.user_idx, side="left")  # events are ordered by user
    step = np.arange(len(first)) - first
    number = np.concatenate([first + step // length, len(first) + first + (step + length // 2) // length])
    return np.unique(number, return_inverse=True)[1], np.tile(known.item_idx, 2)


def measure(pipeline: Pipeline, run: StudyRun, events: pd.DataFrame, row_order: str) -> ProtocolResult:
    """`row_order` says in which order the events come. Raises DataError where the parts are too small to learn from."""
    trains = stratified_by_item(events[ITEM_ID].to_numpy())
    train, test = events[trains].reset_index(drop=True), events[~trains]
    test = test[test[USER_ID].isin(train[USER_ID])]
    if len(test) == 0 or len(train) < FOLDS:
        raise DataError(f"{len(train)} events to train on and {len(test)} to test on are too few. Take more data.")
    chosen, tried, table = learn(pipeline, train)
    settings = replace(pipeline.config.ranker, **RANKER)
    ranker = fit_boosted(table, settings, report=pipeline.report)
    part = Part(pipeline, train)
    retrievers = part.fit_all(chosen)
    merged, full = (Recommender(part.catalogue, retrievers, fitted, RECOMMENDER) for fitted in (None, ranker))
    users, values = part.measure(test, retrievers, {MERGED: merged, FULL_SYSTEM: full})
    return protocol_result(
        run,
        f"Of each item's ratings a random {TRAIN_SHARE:.0%} train and the rest is tested: {len(train):,} and "
        f"{len(test):,} ratings, {len(users):,} users, seed {SPLIT_SEED}. Means over users.",
        users,
        values,
        LIST_METRICS,
        FULL_SYSTEM,
        {
            "row_order": row_order,
            "n_train": len(train),
            "n_test": len(test),
            "settings": chosen,
            "inner_ndcg@10": tried,
            "inner_retrieved": table.found,
            "ranker": {**asdict(settings), "trees": ranker.booster.num_trees()},
            "recommender": asdict(RECOMMENDER),
        },
    )


def learn(
    pipeline: Pipeline, train: pd.DataFrame
) -> tuple[dict[str, Settings], dict[str, list[Settings]], TrainingTable]:
    """From the training part alone: the settings of each retriever, NDCG@10 of all that were tried, and what the ranker
    learns from."""
    fold = item_folds(train[ITEM_ID].to_numpy(), FOLDS, SPLIT_SEED)
    # Large data need no more folds than give the ranker its contexts.
    n_folds = int(np.clip(pipeline.config.ranker.max_contexts // train[USER_ID].nunique(), 1, FOLDS))
    progress = pipeline.progress("stratified: folds")
    chosen: dict[str, Settings] = {}
    tried: dict[str, list[Settings]] = {}
    tables = []
    for f in range(n_folds):
        part, held = Part(pipeline, train[fold != f]), train[fold == f]
        held = held[held[USER_ID].isin(part.users)]
        for name, grid in GRID.items() if f == 0 else ():
            tried[name] = []
            for settings in grid:
                retriever = part.fit(name, settings)
                ndcg = float(part.measure(held, [retriever], {})[1][retriever.name][:, 0].mean())
                tried[name].append({**settings, "ndcg@10": ndcg})
            best = max(range(len(grid)), key=lambda i: tried[name][i]["ndcg@10"])
            chosen[name] = grid[best]
            pipeline.report(f"stratified: {name} {grid[best]}, inner NDCG@10 {tried[name][best]['ndcg@10']:.4f}")
        tables.append(part.table(held, part.fit_all(chosen)))
        progress(f + 1, n_folds)
    table = joined(tables)
    pipeline.report(
        f"stratified: {len(table):,} rows of {n_folds} folds; {table.found:.1%} of what was held out retrieved"
    )
    return chosen, tried, table
