"""The objectives of a hyper-parameter search: measures over the validation window (T1, T2].

Every event of the window is predicted from what its user had done before that moment, by retrievers fitted on events
<= T1: the replay protocol, one window earlier. `data` never holds an event after T2. Where the window has more than
MOST_CONTEXTS moments, a uniform sample of them with their events stands for it.

Shapes: B contexts of a batch, E events, N items, k items of a list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.stage_runner import Report
from pipelines.training_set import TrainingSet
from recsys.arrays import IntArray
from recsys.evaluation.metrics import hit_at, ndcg_at, rank_in
from recsys.features.item_stats import day_of
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.training import RankerSettings, fit_boosted
from recsys.recommender import Recommender, RecommenderSettings, order
from recsys.retrieval.merge import RRF_OFFSET
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.two_tower_training import TowerSettings, Trainer, validation_ndcg
from recsys.training_table import build_training_table, retrieve_contexts

TOP = 10
MOST_CONTEXTS = 6_000
RANKED_CONTEXTS = 2_000  # of the window, for the ranker: whole lists with all features are kept for them
RECALL_WEIGHT = 0.1  # of Recall@100 in the objective of the merge: what the merged list lacks, no ranker brings back
SEED = 7


@dataclass(frozen=True)
class Batch:
    """Contexts of one day. row, target: (E,) row of each event's context in `states`, and its item's row number."""

    states: StateBatch
    day: int
    row: IntArray
    target: IntArray

    def ranks(self, ranked: IntArray) -> IntArray:
        """(E,) rank of each event's item in its context's list of (B, k); 0 where it is not in it."""
        return rank_in(ranked[self.row], self.target)


def validation_contexts(data: TrainingSet, most: int = MOST_CONTEXTS) -> PredictionPoints:
    return PredictionPoints.from_events(data.window(data.split.t1, data.split.t2), most=most, seed=SEED)


def validation_batches(data: TrainingSet, most: int = MOST_CONTEXTS) -> list[Batch]:
    contexts = validation_contexts(data, most)
    target = data.catalogue.to_idx(contexts.event_item_id)
    batches = []
    for rows in contexts.batches_by_day():
        mine = np.flatnonzero(np.isin(contexts.event_context, rows))
        states = data.histories.states_at(contexts.user_id[rows], contexts.timestamp[rows])
        row = np.searchsorted(rows, contexts.event_context[mine])
        batches.append(Batch(states, int(day_of(contexts.timestamp[rows[0]])), row, target[mine]))
    return batches


def mean_ndcg(ranks: Sequence[IntArray]) -> float:
    return float(ndcg_at(np.concatenate(ranks), TOP).mean())


def retriever_ndcg(retriever: Retriever, batches: Sequence[Batch]) -> float:
    """NDCG@10 of one retriever alone."""
    return mean_ndcg([batch.ranks(retriever.answer(batch.states).top(TOP)[0]) for batch in batches])


def tower_ndcg(data: TrainingSet, settings: TowerSettings, report: Report) -> float:
    """NDCG@10 of the two-tower model alone, at its best epoch. That epoch is chosen on the same window."""
    contexts = validation_contexts(data)
    states = data.histories.states_at(contexts.user_id, contexts.timestamp)
    target = data.catalogue.to_idx(contexts.event_item_id)
    trainer = Trainer(data.catalogue, data.histories, data.split.t1, settings)
    trainer.fit(lambda model: validation_ndcg(model, states, contexts.event_context, target), report=report)
    return max(trainer.log.validation)


class MergeTrials:
    """The retrievers' lists of every validation context, so that weights are tried without asking a retriever again.
    Equals `recsys.retrieval.merge` except that an item which only retrievers of weight 0 name counts as missed."""

    def __init__(self, retrievers: Sequence[Retriever], batches: Sequence[Batch], n_items: int, fetch: int) -> None:
        """fetch: how many items each retriever returns."""
        self.names = tuple(retriever.name for retriever in retrievers)
        self._n_items = n_items
        depth = min(fetch, n_items)
        self._share = (1 / (RRF_OFFSET + 1 + np.arange(depth))).astype(np.float32)  # (k,) of each place
        self._lists = [(batch, [r.answer(batch.states).top(depth)[0] for r in retrievers]) for batch in batches]

    def ranks(self, weights: Sequence[float]) -> IntArray:
        """(E,) rank of each event's item in the merged order, 0 where it has none; ties by row number. `weights` are
        in the order of `names`, none below 0."""
        return np.concatenate([self._ranks(batch, lists, weights) for batch, lists in self._lists])

    def _ranks(self, batch: Batch, lists: Sequence[IntArray], weights: Sequence[float]) -> IntArray:
        scores = np.zeros((len(batch.states), self._n_items + 1), np.float32)  # the last column takes the ends of lists
        for ranked, weight in zip(lists, weights, strict=True):
            scores[np.arange(len(scores))[:, None], ranked] += np.float32(weight) * self._share
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
        data: TrainingSet,
        before: Sequence[Retriever],
        after: Sequence[Retriever],
        ranker: RankerSettings,
        recommender: RecommenderSettings,
        progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> None:
        """before, after: retrievers fitted through T0 and T1. Of `ranker` the size of the table is read."""
        split = data.split
        learns = Recommender(data.catalogue, before, None, recommender)
        contexts = PredictionPoints.from_events(
            data.window(split.t0, split.t1), most=ranker.max_contexts, seed=ranker.seed
        )
        states = data.histories.states_at(contexts.user_id, contexts.timestamp)
        retrieved = retrieve_contexts(learns, contexts, states, progress)
        as_of = data.timeline.as_of
        self.table = build_training_table(
            learns, contexts, states, retrieved, as_of, negatives=ranker.negatives, seed=ranker.seed
        )
        self._judge = Recommender(data.catalogue, after, None, recommender)
        self._shown = []
        for batch in validation_batches(data, RANKED_CONTEXTS):
            candidates = self._judge.retrieve(batch.states)
            features = self._judge.features(batch.states, candidates, as_of(batch.day))
            self._shown.append((batch, candidates, features))

    def ndcg(self, settings: RankerSettings) -> float:
        """NDCG@10 of the order that a ranker with these settings gives; what retrieval did not find is a miss."""
        ranker = fit_boosted(self.table, settings)
        ranks = []
        for batch, candidates, features in self._shown:
            scores = self._judge.ranked_scores(candidates, features, ranker)
            ranks.append(batch.ranks(order(candidates, scores, TOP)[0]))
        return mean_ndcg(ranks)
