"""The protocol `stratified`: a random quarter of each item's ratings held out, the whole history known, top ten.

Stage: a study beside the pipeline. In: events, in the order in which the split draws. Out: values of every retriever,
of their merged order and of the ranked lists. Absent: the split and the metrics (`recsys.evaluation.protocols`), the
two-tower model and co-visitation (they live on order, and a random hold-out has no "next").

The order of a history is known but not where in it a held-out item belongs, so every event counts alike. What time
still tells is which items were rated close together: EASE is fitted a second time on short stretches of the histories
as if each were a user.

Settings and the ranker come from inner splits of the training part, made in the same way: its ratings are dealt into
FOLDS folds an item, and what is fitted without one fold is judged, or labelled, by that fold. The first fold picks the
settings of each retriever; the ranker learns from the candidates of all folds. Then the retrievers are fitted on the
whole training part. The held-out quarter is read once, at the end.

Shapes: U users, L history length, E events.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from pipelines.job import Job
from recsys.arrays import IntArray
from recsys.columns import EASE, IALS, ITEM_ID, ITEM_KNN, POPULARITY, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation.protocols import (
    LIST_METRICS,
    SPLIT_SEED,
    TRAIN_SHARE,
    item_folds,
    list_values,
    stratified_by_item,
    summary,
)
from recsys.evaluation.replay import FULL_SYSTEM, MERGED
from recsys.features.histories import Histories
from recsys.features.item_stats import SECONDS_PER_DAY, ItemStats, ItemStatsTimeline, day_of, snapshots
from recsys.features.prediction_points import BATCH, PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.training import TrainingTable, fit_boosted, joined
from recsys.recommender import Recommender, RecommenderSettings, RequestContext
from recsys.retrieval.ease import Ease
from recsys.retrieval.retriever import Retriever, RetrieverScores
from recsys.retrieval.retrievers import KnownEvents, fit_retriever
from recsys.training_table import build_training_table, retrieve_contexts

Settings = dict[str, float]

EASE_STRETCHES: Final = "ease_stretches"
FOLDS: Final = 4
TOP: Final = 10
LONGEST: Final = 2_000  # events of a history that retrievers and features read; what was seen is known in full

GRID: Final[dict[str, list[dict[str, Any]]]] = {
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
RANKER: Final[dict[str, Any]] = {  # set by hand on an inner split: a list has dozens of right answers here
    "objective": "lambdarank",
    "leaves": 4,
    "learning_rate": 0.03,
    "max_trees": 400,
    "min_rows_in_leaf": 500,
    "feature_fraction": 0.6,
    "start_from_logistic": False,
    "negatives": RECOMMENDER.rank,
}


@dataclass(frozen=True)
class Renamed:
    """A retriever under another name, so that two of one kind can stand side by side."""

    name: str
    retriever: Retriever

    def answer(self, states: StateBatch) -> RetrieverScores:
        return self.retriever.answer(states)

    def save(self, folder: Path) -> None:
        self.retriever.save(folder)


class Part:
    """Some events as everything that is known: histories, statistics, and states of the users in them."""

    def __init__(self, job: Job, events: pd.DataFrame) -> None:
        self.catalogue = job.catalogue
        self.histories = Histories.from_tables(job.catalogue, events, job.tables.users)
        last = int(events[TIMESTAMP].max())
        self.known = KnownEvents.through(self.histories, len(job.catalogue), last)
        self.day = int(day_of(last)) + 1
        self._snapshots = snapshots(events)
        self.users = np.unique(events[USER_ID].to_numpy())

    @property
    def now(self) -> int:
        """The moment of every prediction: midnight after the last event, seconds UTC."""
        return self.day * SECONDS_PER_DAY

    def stats(self) -> ItemStats:
        return ItemStatsTimeline(self.catalogue, self._snapshots).as_of(self.day)

    def states(self, user_ids: IntArray) -> StateBatch:
        """States that hold the whole history of each user, up to the LONGEST newest events."""
        states = self.histories.states_at(user_ids, self.now)
        row = self.histories.user_idx(user_ids)
        start, end = self.histories.offset[row], self.histories.offset[row + 1]
        length = int(min((end - start).max(initial=1), LONGEST))
        position = end[:, None] - length + np.arange(length)[None, :]  # (U, L)
        valid = position >= start[:, None]
        at = np.where(valid, position, 0)
        return replace(
            states,
            item_idx=np.where(valid, self.histories.item_idx[at], -1),
            ratings=np.where(valid, self.histories.ratings[at], np.float32(0)),
            timestamps=np.where(valid, self.histories.timestamps[at], 0),
        )

    def fit(self, name: str, settings: dict[str, Any]) -> Retriever:
        if name != EASE_STRETCHES:
            return fit_retriever(name, self.known, settings)
        length, rest = int(settings["length"]), {k: v for k, v in settings.items() if k != "length"}
        stretch, item_idx = stretches(self.known, length)
        return Renamed(EASE_STRETCHES, Ease.fit(stretch, item_idx, self.known.n_items, **rest))


def stretches(known: KnownEvents, length: int) -> tuple[IntArray, IntArray]:
    """Every history cut into stretches of `length` events, twice, the second time half a stretch further on: number of
    the stretch and item of each event, (2E,) each. An event is in two stretches, so neighbours always share one."""
    first = np.searchsorted(known.user_idx, known.user_idx, side="left")  # events are ordered by user
    step = np.arange(len(known.user_idx)) - first
    shifted = (step + length // 2) // length
    keys = np.concatenate(
        [
            np.stack([np.zeros_like(step), known.user_idx, step // length]),
            np.stack([np.ones_like(step), known.user_idx, shifted]),
        ],
        axis=1,
    )
    _, number = np.unique(keys, axis=1, return_inverse=True)
    return np.asarray(number, dtype=np.int64).ravel(), np.tile(known.item_idx, 2)


def measure(job: Job, events: pd.DataFrame) -> dict[str, Any]:
    """The `summary` of all methods, with the settings that the inner split chose and what it saw of the others.

    Raises DataError where the parts are too small to learn from.
    """
    trains = stratified_by_item(events[ITEM_ID].to_numpy())
    train, test = events[trains].reset_index(drop=True), events[~trains]
    test = test[test[USER_ID].isin(train[USER_ID])]
    if len(test) == 0 or len(train) < FOLDS:
        raise DataError(f"{len(train)} events to train on and {len(test)} to test on are too few. Take more data.")
    chosen, tried, ranker_table, retrieved = learn(job, train)
    settings = replace(job.config.ranker, **RANKER)
    ranker = fit_boosted(ranker_table, settings, report=job.report)
    part = Part(job, train)
    retrievers = [part.fit(name, chosen[name]) for name in GRID]
    recommender = Recommender(job.catalogue, retrievers, ranker, RECOMMENDER)
    users = np.unique(test[USER_ID].to_numpy())
    lists = ranked_lists(job, part, recommender, users)
    held = np.searchsorted(users, test[USER_ID].to_numpy()), job.catalogue.to_idx(test[ITEM_ID].to_numpy())
    values = {name: list_values(found, *held) for name, found in lists.items()}
    return {
        **summary(users, values, LIST_METRICS, FULL_SYSTEM),
        "says": f"Of each item's ratings a random {TRAIN_SHARE:.0%} train and the rest is tested: {len(train):,} and "
        f"{len(test):,} ratings, {len(users):,} users, seed {SPLIT_SEED}. Means over users.",
        "n_train": len(train),
        "n_test": len(test),
        "settings": chosen,
        "inner_ndcg@10": tried,
        "inner_retrieved": retrieved,
        "ranker": {**asdict(settings), "trees": ranker.booster.num_trees()},
        "recommender": asdict(RECOMMENDER),
    }


def learn(
    job: Job, train: pd.DataFrame
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]], TrainingTable, float]:
    """From the training part alone: the settings of each retriever, NDCG@10 of all that were tried, what the ranker
    learns from, and the share of held-out ratings among the candidates."""
    fold = item_folds(train[ITEM_ID].to_numpy(), FOLDS, SPLIT_SEED)
    n_users = train[USER_ID].nunique()
    used = range(int(np.clip(job.config.ranker.max_contexts // n_users, 1, FOLDS)))  # large data need no more of them
    tell, steps = job.progress("stratified: fits"), sum(map(len, GRID.values())) + len(GRID) * len(used)
    done = 0
    chosen: dict[str, dict[str, Any]] = {}
    tried: dict[str, list[dict[str, Any]]] = {name: [] for name in GRID}
    tables = []
    for f in used:
        part, held = Part(job, train[fold != f]), train[fold == f]
        held = held[held[USER_ID].isin(part.users)]
        if f == 0:
            users = np.unique(held[USER_ID].to_numpy())
            truth = np.searchsorted(users, held[USER_ID].to_numpy()), job.catalogue.to_idx(held[ITEM_ID].to_numpy())
            for name, grid in GRID.items():
                for settings in grid:
                    found = tops(part, part.fit(name, settings), users)
                    tried[name].append({**settings, "ndcg@10": float(list_values(found, *truth)[:, 0].mean())})
                    done += 1
                    tell(done, steps)
                best = max(range(len(grid)), key=lambda i: tried[name][i]["ndcg@10"])
                chosen[name] = grid[best]
                job.report(f"stratified: {name} {grid[best]}, inner NDCG@10 {tried[name][best]['ndcg@10']:.4f}")
        retrievers = []
        for name in GRID:
            retrievers.append(part.fit(name, chosen[name]))
            done += 1
            tell(done, steps)
        tables.append(fold_table(job, part, held, retrievers))
    table = joined(tables)
    job.report(
        f"stratified: {len(table):,} rows of {len(used)} folds; {table.found:.1%} of what was held out retrieved"
    )
    return chosen, tried, table, table.found


def fold_table(job: Job, part: Part, held: pd.DataFrame, retrievers: list[Retriever]) -> TrainingTable:
    """One context a user: the candidates from the part, labelled by what was held out."""
    contexts = PredictionPoints.from_events(
        held.assign(**{TIMESTAMP: part.now}), most=job.config.ranker.max_contexts, seed=SPLIT_SEED
    )
    states = part.states(contexts.user_id)
    recommender = Recommender(job.catalogue, retrievers, None, RECOMMENDER)
    retrieved = retrieve_contexts(recommender, contexts, states)
    stats = part.stats()
    return build_training_table(
        recommender, contexts, states, retrieved, lambda _: stats, negatives=RECOMMENDER.rank, seed=SPLIT_SEED
    )


def tops(part: Part, retriever: Retriever, users: IntArray) -> IntArray:
    """(U, TOP) row numbers."""
    parts = [retriever.answer(part.states(users[low : low + BATCH])).top(TOP)[0] for low in range(0, len(users), BATCH)]
    return np.concatenate(parts)


def ranked_lists(job: Job, part: Part, recommender: Recommender, users: IntArray) -> dict[str, IntArray]:
    """(U, TOP) row numbers by method: every retriever, the merged order, the ranked lists."""
    merged = Recommender(job.catalogue, recommender.retrievers, None, RECOMMENDER)
    found: dict[str, list[IntArray]] = {name: [] for name in (*reversed(GRID), MERGED, FULL_SYSTEM)}
    tell, context = job.progress("stratified: users ranked"), RequestContext(part.stats())
    for low in range(0, len(users), BATCH):
        states = part.states(users[low : low + BATCH])
        for retriever in recommender.retrievers:
            found[retriever.name].append(retriever.answer(states).top(TOP)[0])
        for name, system in ((MERGED, merged), (FULL_SYSTEM, recommender)):
            found[name].append(job.catalogue.to_idx(system.recommend(states, context, TOP).item_ids))
        tell(min(low + BATCH, len(users)), len(users))
    return {name: np.concatenate(parts) for name, parts in found.items()}
