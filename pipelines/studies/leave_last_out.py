"""The protocol `leave-last-out`: each user's last event is predicted from all others, every item ranked.

The recipe is that of the pipeline with "time" replaced by "place in the history". Retrievers fitted without the last
two events of each user retrieve candidates for the last but one: that event decides the epochs of the two-tower model
and labels what the ranker learns from. The retrievers are then fitted again without the last event, which is predicted.
States and statistics come from the events, not from Feast.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipelines.pipeline import Pipeline
from pipelines.retrievers import VALIDATION_CONTEXTS
from recsys.arrays import IntArray
from recsys.columns import TIMESTAMP
from recsys.evaluation.metrics import LIST_LENGTH, rank_in
from recsys.evaluation.protocols import RANK_METRICS, ProtocolResult, leave_last_out, protocol_result, rank_values
from recsys.evaluation.replay import FULL_SYSTEM, answers_by_method
from recsys.evaluation.study import StudyRun
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.ranking.training import fit_boosted, fit_logistic
from recsys.recommender import Recommender, RequestContext
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.retrievers import KnownEvents, fit_retriever
from recsys.retrieval.two_tower import TwoTower
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from recsys.retrieval.two_tower_training import Trainer, validation_ndcg
from recsys.training_table import build_training_table, retrieve_contexts


class Known:
    """Some events as everything that retrievers and states may read."""

    def __init__(self, pipeline: Pipeline, events: pd.DataFrame) -> None:
        self.catalogue, self.config = pipeline.data.catalogue, pipeline.config
        self.histories = Histories.from_tables(self.catalogue, events, pipeline.data.tables.users)
        self.last = int(events[TIMESTAMP].max())
        self.timeline = ItemStatsTimeline(self.catalogue, snapshots(events))

    def states(self, contexts: PredictionPoints) -> StateBatch:
        """All events of each user that are known, those of the predicted second too: the last event is last by order,
        not by the clock."""
        states = self.histories.states_at(contexts.user_id, contexts.timestamp + 1)
        return replace(states, now=contexts.timestamp)

    def trainer(self) -> Trainer:
        return Trainer(self.catalogue, self.histories, self.last, self.config.tower)

    def retrievers(self, model: TwoTower) -> list[Retriever]:
        known = KnownEvents.through(self.histories, len(self.catalogue), self.last)
        others = [fit_retriever(name, known, settings) for name, settings in self.config.retrievers.items()]
        return [TwoTowerRetriever.from_model(model, self.config.index), *others]


@dataclass(frozen=True)
class Learned:
    """The rankers, the best number of epochs, and the share of the last but one events that retrieval found."""

    ranker: BoostedRanker
    logistic: LogisticRanker
    epochs: int
    found: float


def measure(pipeline: Pipeline, run: StudyRun) -> ProtocolResult:
    """Raises DataError where there are too few users or events."""
    parts = leave_last_out(pipeline.data.tables.events)
    learned = learn(pipeline, Known(pipeline, parts.known), parts.validation)
    known = Known(pipeline, pd.concat([parts.known, parts.validation]))
    model = known.trainer().fit(epochs=learned.epochs, report=pipeline.report)
    recommender = Recommender(known.catalogue, known.retrievers(model), learned.ranker, known.config.recommender)
    contexts = PredictionPoints.from_events(parts.test)
    ranks = last_ranks(pipeline, known, recommender, learned.logistic, contexts)
    return protocol_result(
        run,
        f"The last event of each of {len(contexts):,} users, predicted from all others; every item outside "
        f"the history is ranked, lists end at {LIST_LENGTH}.",
        contexts.user_id,
        {name: rank_values(rank) for name, rank in ranks.items()},
        RANK_METRICS,
        FULL_SYSTEM,
        {
            "n_train": len(parts.known) + len(parts.validation),
            "n_test": len(contexts),
            "epochs": learned.epochs,
            "found": learned.found,
            "parameters": pipeline.config.as_dict(),
        },
    )


def learn(pipeline: Pipeline, known: Known, validation: pd.DataFrame) -> Learned:
    """From candidates for the last but one events, by retrievers that know what came before them."""
    config = known.config
    sample = PredictionPoints.from_events(validation, most=VALIDATION_CONTEXTS, seed=config.tower.seed)
    sample_states, target = known.states(sample), known.catalogue.to_idx(sample.event_item_id)
    trainer = known.trainer()
    model = trainer.fit(
        lambda tower: validation_ndcg(tower, sample_states, sample.event_context, target), report=pipeline.report
    )
    contexts = PredictionPoints.from_events(validation, most=config.ranker.max_contexts, seed=config.ranker.seed)
    states = known.states(contexts)
    recommender = Recommender(known.catalogue, known.retrievers(model), None, config.recommender)
    table = build_training_table(
        recommender,
        contexts,
        states,
        retrieve_contexts(recommender, contexts, states, pipeline.progress("leave-last-out: retrieving")),
        known.timeline.as_of,
        negatives=config.ranker.negatives,
        seed=config.ranker.seed,
    )
    ranker = fit_boosted(table, config.ranker, report=pipeline.report)
    return Learned(ranker, ranker.base or fit_logistic(table), trainer.log.best_epoch, table.found)


def last_ranks(
    pipeline: Pipeline, known: Known, recommender: Recommender, logistic: LogisticRanker, contexts: PredictionPoints
) -> dict[str, IntArray]:
    """(C,) rank of the one event of each context by method, 0 where it is not among the first LIST_LENGTH."""
    target = np.empty(len(contexts), dtype=np.int64)
    target[contexts.event_context] = known.catalogue.to_idx(contexts.event_item_id)
    ranks: dict[str, IntArray] = {}
    progress, done = pipeline.progress("leave-last-out: users ranked"), 0
    all_states = known.states(contexts)
    for rows in contexts.batches_by_day():
        stats = known.timeline.as_of(int(day_of(contexts.timestamp[rows[0]])))
        _, lists = answers_by_method(recommender, logistic, all_states.rows(rows), RequestContext(stats))
        for name, ranked in lists.items():
            ranks.setdefault(name, np.zeros(len(contexts), dtype=np.int64))[rows] = rank_in(ranked, target[rows])
        done += len(rows)
        progress(done, len(contexts))
    return ranks
