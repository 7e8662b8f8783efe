"""The features of what is shown today against those of what the same ranker shows where it learnt.

The reference is a sample of the prediction points that the last ranker learnt from, with the retrievers that it learnt
with, of each the items that it puts first: nobody is shown rank 200 of the training table.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from pipelines.monitoring.skew import SMALLEST_SAMPLE, SkewReport
from pipelines.training_set import TrainingSet
from recsys.errors import RecsysError
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.monitoring.drift import drift
from recsys.ranking.ranker import Ranker
from recsys.recommender import Recommender
from recsys.retrieval.retrievers import load_retrievers
from recsys.training_table import retrieve_contexts

REFERENCE_POINTS: Final = 400


def with_drift(
    report: SkewReport,
    shown: dict[str, list[pd.DataFrame]],
    recommender_of: Callable[[str], Recommender | None],
    data: TrainingSet,
    retrievers: Path,
) -> SkewReport:
    """The report with the drift of each feature, for the bundle that showed most, or why there is none.

    `retrievers`: the folder of those that the last ranker learnt with.
    """
    if not shown:
        return replace(report, no_drift="no answer was ranked")
    bundle_id = max(shown, key=lambda name: sum(map(len, shown[name])))
    rows = pd.concat(shown[bundle_id], ignore_index=True)
    answers = rows[["request_id", "user_id", "received"]].drop_duplicates()
    if len(answers) < SMALLEST_SAMPLE:
        why = f"{len(answers)} ranked answers of {bundle_id} are too few, {SMALLEST_SAMPLE} are needed"
        return replace(report, no_drift=why)
    recommender = recommender_of(bundle_id)
    if recommender is None or recommender.ranker is None:
        return replace(report, no_drift=f"the bundle {bundle_id} is gone")
    try:
        learnt_with = Recommender(
            recommender.catalogue, load_retrievers(retrievers, recommender.catalogue), None, recommender.settings
        )
    except RecsysError as error:
        return replace(report, no_drift=str(error))
    if learnt_with.feature_names != recommender.feature_names:
        return replace(report, no_drift="the last ranker learnt with other retrievers than those of this bundle")
    reference = _reference(learnt_with, recommender.ranker, data, int(rows["position"].max()))
    found = {name: drift(reference[name], rows[name]) for name in reference if name in rows}
    return replace(report, drift=dict(sorted(found.items(), key=lambda pair: (-pair[1].psi, pair[0]))))


def _reference(recommender: Recommender, ranker: Ranker, data: TrainingSet, k: int) -> pd.DataFrame:
    """Features of the k items that the ranker puts first at each point."""
    window = data.window(data.split.t2, data.split.end)
    points = PredictionPoints.from_events(window, most=REFERENCE_POINTS, seed=0)
    states = data.histories.states_at(points.user_id, points.timestamp)
    timeline = ItemStatsTimeline(data.catalogue, snapshots(data.tables.events))
    parts = []
    for part in retrieve_contexts(recommender, points, states):
        features = recommender.features(states.rows(part.rows), part.candidates, timeline.as_of(part.day))
        for rows, idx in zip(features, part.candidates.item_idx, strict=True):
            present = rows[idx[: len(rows)] >= 0]
            parts.append(present[np.argsort(-ranker.score(present), kind="stable")[:k]])
    return pd.DataFrame(np.concatenate(parts), columns=list(recommender.feature_names))
