"""The objectives of a hyper-parameter search: measures over the validation window (T1, T2].

Every event of the window is predicted from what its user had done before that moment, by retrievers fitted on events
<= T1: the replay protocol, one window earlier. Everything after T2 is dropped first. Where the window has more than
MOST_CONTEXTS moments, a uniform sample of them with their events stands for it.

Shapes: B contexts of a batch, E events, N items, k items of a list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from recsys.arrays import IntArray
from recsys.columns import TIMESTAMP
from recsys.data.split import Split, split_by_time
from recsys.data.tables import Tables
from recsys.evaluation.metrics import hit_at, ndcg_at, rank_in
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.training import RankerSettings, fit_boosted
from recsys.recommender import Recommender, RecommenderSettings, order
from recsys.retrieval.merge import RRF_OFFSET
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.retrievers import KnownEvents
from recsys.retrieval.two_tower import TwoTower
from recsys.retrieval.two_tower_training import TowerSettings, Trainer, validation_ndcg
from recsys.training_table import build_training_table, retrieve_contexts

TOP = 10
MOST_CONTEXTS = 6_000
RANKED_CONTEXTS = 2_000  # of the window, for the ranker: whole lists with all features are kept for them
RECALL_WEIGHT = 0.1  # of Recall@100 in the objective of the merge: what the merged list lacks, no ranker brings back
SEED = 7


@dataclass(frozen=True)
class Batch:
    """PredictionPoints of one day. row, target: (E,) row of each event's context in `states`, and its item's row
    number."""

    states: StateBatch
    day: int
    row: IntArray
    target: IntArray


@dataclass(frozen=True)
class Past:
    """What a search may know: events up to T2. The cutoffs are those of the whole table, as everywhere else."""

    split: Split
    catalogue: Catalogue
    events: pd.DataFrame
    histories: Histories

    @classmethod
    def of(cls, tables: Tables) -> "Past":
        split = split_by_time(tables.events[TIMESTAMP].to_numpy())
        events = tables.events[tables.events[TIMESTAMP] <= split.t2]
        catalogue = Catalogue.from_tables(tables.items, tables.users)
        return cls(split, catalogue, events, Histories.from_tables(catalogue, events, tables.users))

    @cached_property
    def known(self) -> KnownEvents:
        """What a retriever that is judged on the validation window is fitted on."""
        return KnownEvents.through(self.histories, len(self.catalogue), self.split.t1)

    @cached_property
    def validation(self) -> list[Batch]:
        return self.batches(self.contexts(self.split.t1, self.split.t2, MOST_CONTEXTS, SEED))

    def contexts(self, after: int, through: int, most: int, seed: int) -> PredictionPoints:
        """PredictionPoints of the events with after < timestamp <= through."""
        times = self.events[TIMESTAMP]
        return PredictionPoints.from_events(self.events[(times > after) & (times <= through)], most=most, seed=seed)

    def batches(self, contexts: PredictionPoints) -> list[Batch]:
        target = self.catalogue.to_idx(contexts.event_item_id)
        out = []
        for rows in contexts.batches_by_day():
            mine = np.flatnonzero(np.isin(contexts.event_context, rows))
            states = self.histories.states_at(contexts.user_id[rows], contexts.timestamp[rows])
            day = int(day_of(contexts.timestamp[rows[0]]))
            out.append(Batch(states, day, np.searchsorted(rows, contexts.event_context[mine]), target[mine]))
        return out


def ranks_in(ranked: IntArray, batch: Batch) -> IntArray:
    """(E,) rank of each event's item in its context's list of (B, k); 0 where it is not in it."""
    return rank_in(ranked[batch.row], batch.target)


def mean_ndcg(ranks: Sequence[IntArray]) -> float:
    return float(ndcg_at(np.concatenate(ranks), TOP).mean())


def retriever_ndcg(retriever: Retriever, batches: Sequence[Batch]) -> float:
    """NDCG@10 of one retriever alone."""
    return mean_ndcg([ranks_in(retriever.answer(batch.states).top(TOP)[0], batch) for batch in batches])


def tower_ndcg(past: Past, settings: TowerSettings, report: Callable[[str], None] = lambda _: None) -> float:
    """NDCG@10 of the two-tower model alone, at its best epoch. That epoch is chosen on the same window."""
    contexts = past.contexts(past.split.t1, past.split.t2, MOST_CONTEXTS, SEED)
    states = past.histories.states_at(contexts.user_id, contexts.timestamp)
    target = past.catalogue.to_idx(contexts.event_item_id)

    def validate(model: TwoTower) -> float:
        return validation_ndcg(model, states, contexts.event_context, target)

    trainer = Trainer(past.catalogue, past.histories, past.split.t1, settings)
    trainer.fit(validate, report=report)
    return max(trainer.log.validation)


class Fusion:
    """The retrievers' lists of every validation context, so that weights are tried without asking a retriever again.
    Equals `recsys.retrieval.merge` except that an item which only retrievers of weight 0 name counts as missed."""

    def __init__(self, retrievers: Sequence[Retriever], batches: Sequence[Batch], n_items: int, fetch: int) -> None:
        """fetch: how many items each retriever returns."""
        self.names = tuple(retriever.name for retriever in retrievers)
        self._n_items = n_items
        self._share = 1 / (RRF_OFFSET + 1 + np.arange(min(fetch, n_items)))  # (k,) of the first place, the second, ..
        self._lists = [
            (batch, [retriever.answer(batch.states).top(len(self._share))[0] for retriever in retrievers])
            for batch in batches
        ]

    def ranks(self, weights: Sequence[float]) -> IntArray:
        """(E,) rank of each event's item in the merged order, 0 where it has none; ties by row number. `weights` are
        in the order of `names`, none below 0."""
        return np.concatenate([self._ranks(batch, lists, weights) for batch, lists in self._lists])

    def _ranks(self, batch: Batch, lists: Sequence[IntArray], weights: Sequence[float]) -> IntArray:
        scores = np.zeros((len(batch.states), self._n_items + 1), np.float32)  # the last column takes the ends of lists
        row = np.arange(len(scores))[:, None]
        for ranked, weight in zip(lists, weights, strict=True):
            scores[row, ranked] += np.float32(weight) * self._share.astype(np.float32)
        scores[:, -1] = 0.0
        of_event = scores[batch.row]  # (E, N + 1); an item outside the catalogue is in the last column as well
        mine = of_event[np.arange(len(of_event)), batch.target][:, None]
        before = np.arange(self._n_items + 1) < batch.target[:, None]
        rank = 1 + ((of_event > mine) | ((of_event == mine) & before)).sum(axis=1)
        return np.where(mine[:, 0] > 0, rank, 0)

    def value(self, weights: Sequence[float]) -> float:
        """NDCG@10 + RECALL_WEIGHT * Recall@100 of the merged order."""
        ranks = self.ranks(weights)
        return float(ndcg_at(ranks, TOP).mean() + RECALL_WEIGHT * hit_at(ranks, 100).mean())


class RankerTrials:
    """The table of (T0, T1] that a ranker learns from, and the features of a sample of (T1, T2] that it orders; built
    once. States and statistics come from the events up to T2, which Feast's point-in-time joins are held equal to."""

    def __init__(
        self,
        past: Past,
        before: Sequence[Retriever],
        after: Sequence[Retriever],
        ranker: RankerSettings,
        recommender: RecommenderSettings,
        progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> None:
        """before, after: retrievers fitted through T0 and T1. Of `ranker` the size of the table is read."""
        split = past.split
        timeline = ItemStatsTimeline(past.catalogue, snapshots(past.events))
        learns = Recommender(past.catalogue, before, None, recommender)
        contexts = past.contexts(split.t0, split.t1, ranker.max_contexts, ranker.seed)
        states = past.histories.states_at(contexts.user_id, contexts.timestamp)
        self.table = build_training_table(
            learns,
            contexts,
            states,
            retrieve_contexts(learns, contexts, states, progress),
            timeline.as_of,
            negatives=ranker.negatives,
            seed=ranker.seed,
        )
        self._judge = Recommender(past.catalogue, after, None, recommender)
        self._batches = past.batches(past.contexts(split.t1, split.t2, RANKED_CONTEXTS, SEED))
        self._shown = []
        for batch in self._batches:
            candidates = self._judge.retrieve(batch.states)
            features = self._judge.features(batch.states, candidates, timeline.as_of(batch.day))
            self._shown.append((candidates, features))

    def ndcg(self, settings: RankerSettings) -> float:
        """NDCG@10 of the order that a ranker with these settings gives; what retrieval did not find is a miss."""
        ranker = fit_boosted(self.table, settings)
        ranks = []
        for batch, (candidates, features) in zip(self._batches, self._shown, strict=True):
            scores = self._judge.ranked_scores(candidates, features, ranker)
            ranks.append(ranks_in(order(candidates, scores, TOP)[0], batch))
        return mean_ndcg(ranks)
