"""Stages `ranker_t2` and `ranker_all`: fitting the ranker on what retrieval returned in the next time window.

Two windows are used, each with the retrievers fitted just before it: twice the examples, and no retriever has seen the
events that it is judged by.

In: retrievers fitted before the window, states and statistics through Feast's point-in-time joins. Out: `work/<stage>/`
with the LightGBM trees, the logistic baseline, the probabilities and a few facts. Absent: evaluation.
"""

import numpy as np
import pandas as pd

from pipelines import retrievers
from pipelines.features import ranker_contexts
from pipelines.job import Job
from recsys.atomic_io import replacing_folder, write_json
from recsys.errors import StoreError
from recsys.features.item_stats import ItemStats
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch, state_batch
from recsys.ranking.calibration_training import fit_probabilities
from recsys.ranking.training import TrainingTable, fit_boosted, fit_early, fit_logistic, joined
from recsys.recommender import Recommender
from recsys.training_table import build_training_table, item_days, retrieve_contexts

CHECKED = 200  # contexts whose Feast state is compared with the one computed from events


def fit_t2(job: Job) -> None:
    _fit(job, "ranker_t2", windows_t2(job))


def windows_t2(job: Job) -> list[tuple[str, int, int]]:
    """What the evaluated ranker learns from: retrievers, and the window after them."""
    split = job.split
    return [("retrievers_t0", split.t0, split.t1), ("retrievers_t1", split.t1, split.t2)]


def fit_all(job: Job) -> None:
    split = job.split
    _fit(job, "ranker_all", [("retrievers_t1", split.t1, split.t2), ("retrievers_t2", split.t2, split.end)])


def _fit(job: Job, stage: str, windows: list[tuple[str, int, int]]) -> None:
    """Fit on the tables of all windows, each retrieved by the retrievers that were fitted before it."""
    table = joined([window_table(job, stage, *window) for window in windows])
    settings = job.config.ranker
    early = fit_early(table, settings, report=job.report)
    ranker = fit_boosted(table, settings, early=early)
    logistic = ranker.base or fit_logistic(table)
    probabilities, calibration = fit_probabilities(table, settings, early, report=job.report)
    with replacing_folder(job.work(stage)) as beside:
        ranker.save(beside)
        logistic.save(beside)
        probabilities.save(beside)
        write_json(
            beside / "facts.json",
            {
                "rows": len(table),
                "contexts": len(table.group_sizes),
                "found": table.found,
                "trees": ranker.booster.num_trees(),
                "importance": ranker.importance(),
                "calibration": calibration,
            },
        )


def window_table(
    job: Job, stage: str, retrievers_stage: str, after: int, through: int, *, without: str | None = None
) -> TrainingTable:
    """The table of one window (after, through], retrieved by the stage's retrievers, or by all but the one named."""
    contexts = ranker_contexts(job, after, through)
    states = _states_from_feast(job, contexts)
    fitted = [retriever for retriever in retrievers.load(job, retrievers_stage) if retriever.name != without]
    recommender = Recommender(job.catalogue, fitted, None, job.config.recommender)
    retrieved = retrieve_contexts(recommender, contexts, states, job.progress(f"{stage}: retrieving"))
    stats = _stats_from_feast(job, item_days(recommender, states, retrieved))
    table = build_training_table(
        recommender,
        contexts,
        states,
        retrieved,
        lambda day: ItemStats.from_rows(job.catalogue, stats[day], day),
        negatives=job.config.ranker.negatives,
        unsampled_candidates=job.config.ranker.unsampled_candidates,
        seed=job.config.ranker.seed,
    )
    job.report(
        f"{stage}: {len(table):,} rows from {len(table.group_sizes):,} of {len(contexts):,} contexts after "
        f"{retrievers_stage}; retrieval found {table.found:.1%} of what happened"
    )
    return table


def _states_from_feast(job: Job, contexts: PredictionPoints) -> StateBatch:
    """States just before each context. What a user has seen by then is not a feature and comes from the events."""
    stored = job.store.historical_states(contexts.user_id, contexts.timestamp)
    from_events = job.histories.states_at(contexts.user_id, contexts.timestamp)
    seen = [job.catalogue.to_ids(idx) for idx in from_events.seen_idx]
    states = state_batch(job.catalogue, stored, seen, contexts.timestamp)
    rows = np.linspace(0, len(contexts) - 1, min(CHECKED, len(contexts))).astype(np.int64)
    for name in ("item_idx", "ratings", "timestamps", "n_events", "n_liked", "rating_sum", "profile"):
        if not np.array_equal(getattr(states, name)[rows], getattr(from_events, name)[rows]):
            raise StoreError(f"Feast's past states differ from the events in {name}. Run `recsys train --force`.")
    return states


def _stats_from_feast(job: Job, pairs: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Statistics rows by day."""
    rows = job.store.historical_item_stats(pairs)
    return {int(day): part for day, part in rows.groupby("day")}
