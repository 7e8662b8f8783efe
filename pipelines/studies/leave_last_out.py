"""The protocol `leave-last-out`: each user's last event is predicted from all others, every item ranked.

The recipe is that of the pipeline with "time" replaced by "place in the history". Retrievers fitted without the last
two events of each user retrieve candidates for the last but one: that event decides the epochs of the two-tower model
and labels what the ranker learns from. The retrievers are then fitted again without the last event, which is predicted.
States and statistics come from the events, not from Feast.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from pipelines.config import PipelineConfig
from pipelines.pipeline import Pipeline
from pipelines.retrievers import VALIDATION_CONTEXTS
from pipelines.training_set import TrainingSet
from recsys.arrays import IntArray
from recsys.columns import TIMESTAMP
from recsys.evaluation.metrics import LIST_LENGTH, rank_in
from recsys.evaluation.protocols import RANK_METRICS, ProtocolResult, leave_last_out, protocol_result, rank_values
from recsys.evaluation.replay import FULL_SYSTEM, answers_by_method
from recsys.evaluation.study import StudyRun
from recsys.features.item_stats import day_of
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.ranker import LogisticRanker
from recsys.ranking.training import fit_boosted, fit_logistic
from recsys.recommender import Recommender, RequestContext
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.retrievers import KnownEvents, fit_retriever
from recsys.retrieval.two_tower import TwoTower
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from recsys.retrieval.two_tower_training import Trainer, validation_ndcg
from recsys.training_table import build_training_table, retrieve_contexts


def measure(pipeline: Pipeline, run: StudyRun) -> ProtocolResult:
    """Raises DataError where there are too few users or events."""
    config, report = pipeline.config, pipeline.report
    parts = leave_last_out(pipeline.data.tables.events)
    known = pipeline.data.with_events(parts.known)

    # From candidates for the last but one events, by retrievers that know what came before them.
    sample = PredictionPoints.from_events(parts.validation, most=VALIDATION_CONTEXTS, seed=config.tower.seed)
    sample_states, target = states_of(known, sample), known.catalogue.to_idx(sample.event_item_id)
    trainer = _trainer(known, config)
    model = trainer.fit(
        lambda tower: validation_ndcg(tower, sample_states, sample.event_context, target), report=report
    )
    contexts = PredictionPoints.from_events(parts.validation, most=config.ranker.max_contexts, seed=config.ranker.seed)
    states = states_of(known, contexts)
    recommender = Recommender(known.catalogue, _retrievers(known, config, model), None, config.recommender)
    table = build_training_table(
        recommender,
        contexts,
        states,
        retrieve_contexts(recommender, contexts, states, pipeline.progress("leave-last-out: retrieving")),
        known.timeline.as_of,
        negatives=config.ranker.negatives,
        seed=config.ranker.seed,
    )
    ranker = fit_boosted(table, config.ranker, report=report)
    logistic = ranker.base or fit_logistic(table)

    all_but_last = pipeline.data.with_events(pd.concat([parts.known, parts.validation]))
    model = _trainer(all_but_last, config).fit(epochs=trainer.log.best_epoch, report=report)
    retrievers = _retrievers(all_but_last, config, model)
    recommender = Recommender(known.catalogue, retrievers, ranker, config.recommender)
    contexts = PredictionPoints.from_events(parts.test)
    ranks = _last_ranks(pipeline, all_but_last, recommender, logistic, contexts)
    return protocol_result(
        run,
        f"The last event of each of {len(contexts):,} users, predicted from all others; every item outside "
        f"the history is ranked, lists end at {LIST_LENGTH}.",
        contexts.user_id,
        {name: rank_values(rank) for name, rank in ranks.items()},
        RANK_METRICS,
        FULL_SYSTEM,
        {
            "n_train": len(all_but_last.tables.events),
            "n_test": len(contexts),
            "epochs": trainer.log.best_epoch,
            "found": table.found,
            "parameters": config.as_dict(),
        },
    )


def states_of(data: TrainingSet, contexts: PredictionPoints) -> StateBatch:
    """All events of each user that are known, those of the predicted second too: the last event is last by order, not
    by the clock."""
    return replace(data.histories.states_at(contexts.user_id, contexts.timestamp + 1), now=contexts.timestamp)


def _trainer(data: TrainingSet, config: PipelineConfig) -> Trainer:
    return Trainer(data.catalogue, data.histories, int(data.tables.events[TIMESTAMP].max()), config.tower)


def _retrievers(data: TrainingSet, config: PipelineConfig, model: TwoTower) -> list[Retriever]:
    last = int(data.tables.events[TIMESTAMP].max())
    known = KnownEvents.through(data.histories, len(data.catalogue), last)
    others = [fit_retriever(name, known, settings) for name, settings in config.retrievers.items()]
    return [TwoTowerRetriever.from_model(model, config.index), *others]


def _last_ranks(
    pipeline: Pipeline,
    data: TrainingSet,
    recommender: Recommender,
    logistic: LogisticRanker,
    contexts: PredictionPoints,
) -> dict[str, IntArray]:
    """(C,) rank of the one event of each context by method, 0 where it is not among the first LIST_LENGTH."""
    target = np.empty(len(contexts), dtype=np.int64)
    target[contexts.event_context] = data.catalogue.to_idx(contexts.event_item_id)
    ranks: dict[str, IntArray] = {}
    progress, done = pipeline.progress("leave-last-out: users ranked"), 0
    states = states_of(data, contexts)
    for rows in contexts.batches_by_day():
        stats = data.timeline.as_of(int(day_of(contexts.timestamp[rows[0]])))
        _, lists = answers_by_method(recommender, logistic, states.rows(rows), RequestContext(stats))
        for name, ranked in lists.items():
            ranks.setdefault(name, np.zeros(len(contexts), dtype=np.int64))[rows] = rank_in(ranked, target[rows])
        done += len(rows)
        progress(done, len(contexts))
    return ranks
