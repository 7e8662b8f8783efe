"""The features of what is shown today against those of what the same ranker shows where it learnt.

The reference is a sample of the prediction points of the window that the last ranker learnt from, retrieved by the
retrievers that it learnt with, of each the items that it puts first. All rows of its training table would be no
reference: nobody is shown rank 200.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from pipelines.monitoring.skew import SMALLEST_SAMPLE, FeatureDrift, Sample, SkewReport
from pipelines.training_set import TrainingSet
from recsys.errors import RecsysError
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.monitoring.drift import drift_by_feature
from recsys.ranking.ranker import Ranker
from recsys.recommender import Recommender
from recsys.retrieval.retrievers import load_retrievers
from recsys.training_table import retrieve_contexts

REFERENCE_POINTS: Final = 400


def with_drift(
    report: SkewReport,
    sample: Sample,
    recommender_of: Callable[[str], Recommender | None],
    data: TrainingSet,
    retrievers: Path,
) -> SkewReport:
    """The report with the drift of each feature, or why there is none. `retrievers`: the folder of those that the last
    ranker learnt with."""
    shown = sample.of_the_most_used()
    if shown is None:
        return replace(report, no_drift="no answer was ranked")
    bundle_id, rows = shown
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
    columns = {name: rows[name].to_numpy(np.float32) for name in recommender.feature_names if name in rows}
    found = drift_by_feature({name: reference[name].to_numpy(np.float32) for name in reference}, columns)
    return replace(report, drift=tuple(FeatureDrift(name=name, **asdict(d)) for name, d in found.items()))


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
