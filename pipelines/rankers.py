"""Stages `ranker_t2` and `ranker_all`: fitting the ranker on what retrieval returned in the next time window.

Two windows are used, each with the retrievers fitted just before it: twice the examples, and no retriever has seen the
events that it is judged by. States and statistics come through Feast's point-in-time joins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.config import PipelineConfig
from pipelines.features import ranker_contexts
from pipelines.stage_runner import Report, progress
from pipelines.training_set import TrainingSet
from recsys.atomic_io import replacing_folder, write_json
from recsys.data.split import Split
from recsys.errors import StoreError
from recsys.feature_store import FeatureStore
from recsys.features.item_stats import ItemStats
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch, state_batch
from recsys.ranking.calibration_training import fit_probabilities
from recsys.ranking.training import TrainingTable, fit_boosted, fit_early, fit_logistic, joined
from recsys.recommender import Recommender
from recsys.retrieval.retrievers import load_retrievers
from recsys.training_table import build_training_table, item_days, retrieve_contexts

CHECKED = 200  # contexts whose Feast state is compared with the one computed from events


@dataclass(frozen=True)
class RankerWindow:
    """Events with after < timestamp <= through, and the folder of the retrievers that were fitted up to `after`."""

    retrievers: Path
    after: int
    through: int


def windows_t2(work: Path, split: Split) -> list[RankerWindow]:
    """What the evaluated ranker learns from."""
    return [
        RankerWindow(work / "retrievers_t0", split.t0, split.t1),
        RankerWindow(work / "retrievers_t1", split.t1, split.t2),
    ]


def windows_all(work: Path, split: Split) -> list[RankerWindow]:
    """What the production ranker learns from."""
    return [
        RankerWindow(work / "retrievers_t1", split.t1, split.t2),
        RankerWindow(work / "retrievers_t2", split.t2, split.end),
    ]


def fit(
    data: TrainingSet,
    config: PipelineConfig,
    windows: Sequence[RankerWindow],
    store: FeatureStore,
    folder: Path,
    report: Report,
) -> None:
    """Fit on the tables of all windows; write trees, logistic baseline, probabilities and a few facts."""
    store.apply()  # a copied home's registry still names the files of the first one
    ranker = config.ranker
    table = joined([window_table(data, config, window, store, report) for window in windows])
    early = fit_early(table, ranker, report=report)
    boosted = fit_boosted(table, ranker, early=early)
    logistic = boosted.base or fit_logistic(table)
    probabilities, calibration = fit_probabilities(table, ranker, early, report=report)
    facts = {
        "rows": len(table),
        "contexts": len(table.group_sizes),
        "found": table.found,
        "trees": boosted.booster.num_trees(),
        "importance": boosted.importance(),
        "calibration": calibration,
    }
    with replacing_folder(folder) as beside:
        for fitted in (boosted, logistic, probabilities):
            fitted.save(beside)
        write_json(beside / "facts.json", facts)


def window_table(
    data: TrainingSet,
    config: PipelineConfig,
    window: RankerWindow,
    store: FeatureStore,
    report: Report,
    without: str | None = None,
) -> TrainingTable:
    """The table of one window, retrieved by the window's retrievers, or by all but the one named `without`."""
    ranker, name = config.ranker, window.retrievers.name
    contexts = ranker_contexts(data, window.after, window.through, ranker)
    states = _states_from_feast(data, store, contexts)
    retrievers = [r for r in load_retrievers(window.retrievers, data.catalogue) if r.name != without]
    recommender = Recommender(data.catalogue, retrievers, None, config.recommender)
    retrieved = retrieve_contexts(recommender, contexts, states, progress(report, f"ranker: retrieving with {name}"))
    stats = dict(iter(store.historical_item_stats(item_days(recommender, states, retrieved)).groupby("day")))
    table = build_training_table(
        recommender,
        contexts,
        states,
        retrieved,
        lambda day: ItemStats.from_rows(data.catalogue, stats[day], day),
        negatives=ranker.negatives,
        unsampled_candidates=ranker.unsampled_candidates,
        seed=ranker.seed,
    )
    report(
        f"ranker: {len(table):,} rows from {len(table.group_sizes):,} of {len(contexts):,} contexts after {name}; "
        f"retrieval found {table.found:.1%} of what happened"
    )
    return table


def _states_from_feast(data: TrainingSet, store: FeatureStore, contexts: PredictionPoints) -> StateBatch:
    """States just before each context. What a user has seen by then is not a feature and comes from the events."""
    stored = store.historical_states(contexts.user_id, contexts.timestamp)
    from_events = data.histories.states_at(contexts.user_id, contexts.timestamp)
    states = replace(state_batch(data.catalogue, stored, contexts.timestamp), seen_idx=from_events.seen_idx)
    rows = np.linspace(0, len(contexts) - 1, min(CHECKED, len(contexts))).astype(np.int64)
    for name in ("item_idx", "ratings", "timestamps", "n_events", "n_liked", "rating_sum", "profile"):
        if not np.array_equal(getattr(states, name)[rows], getattr(from_events, name)[rows]):
            raise StoreError(f"Feast's past states differ from the events in {name}. Run `recsys train --force`.")
    return states
