"""What a new version would show at the start of visits in the newest window: the reference of `recsys monitor`, which a
production bundle carries. The retrievers are those fitted before the window, so that what they return is honest."""

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from pipelines.config import PipelineConfig
from pipelines.training_set import TrainingSet
from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file
from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.features.candidate import SESSION_GAP_S
from recsys.features.item_stats import day_of
from recsys.features.prediction_points import PredictionPoints
from recsys.monitoring.prediction_log import SCORES
from recsys.ranking.calibration import Probabilities
from recsys.ranking.ranker import BoostedRanker
from recsys.recommender import Recommendations, Recommender, RequestContext
from recsys.retrieval.retrievers import load_retrievers
from recsys.workspace import DatasetWorkspace

REFERENCE_FILE: Final = "reference.parquet"
MOST_VISITS: Final = 1_000
K: Final = 10  # items of each


def write_reference(data: TrainingSet, config: PipelineConfig, home: DatasetWorkspace, ranker: str) -> Path:
    """A row a shown item, in the columns of the prediction log; `ranker` is the folder of the fitted one in `work`."""
    fitted, folder = home.work / ranker, home.work / "retrievers_t2"
    recommender = Recommender(
        data.catalogue,
        load_retrievers(folder, data.catalogue),
        BoostedRanker.load(fitted),
        config.recommender,
        Probabilities.load(fitted),
    )
    points = PredictionPoints.from_events(_visit_starts(data), most=MOST_VISITS)
    states = data.histories.states_at(points.user_id, points.timestamp)
    parts = []
    for rows in points.batches_by_day():
        context = RequestContext(data.timeline.as_of(int(day_of(points.timestamp[rows[0]]))))
        made = recommender.recommend(states.rows(rows), context, K)
        parts.append(_shown(made, recommender.feature_names, points.user_id[rows], points.timestamp[rows]))
    target = home.work / REFERENCE_FILE
    with replacing_file(target) as beside:
        pd.concat(parts, ignore_index=True).to_parquet(beside, index=False, compression="zstd")
    return target


def _visit_starts(data: TrainingSet) -> pd.DataFrame:
    """Events after T2 that follow none of their user within SESSION_GAP_S."""
    events = data.tables.events.sort_values([USER_ID, TIMESTAMP], kind="stable")
    gap = events.groupby(USER_ID)[TIMESTAMP].diff()
    return events[(events[TIMESTAMP] > data.split.t2) & ~(gap <= SESSION_GAP_S)]


def _shown(made: Recommendations, feature_names: tuple[str, ...], user_id: IntArray, now: IntArray) -> pd.DataFrame:
    """user_id, now: (B,)"""
    assert made.features is not None
    shown = (made.item_ids >= 0) & (made.position < made.features.shape[1])
    user, place = np.nonzero(shown)
    columns = {USER_ID: user_id[user], "now": now[user], ITEM_ID: made.item_ids[shown], "position": place + 1}
    for name, values in zip(SCORES, (made.scores, made.watch_probability, made.like_probability), strict=True):
        columns[name] = values[shown].astype(np.float32)
    features = made.features[user, made.position[shown]]  # (rows, F)
    return pd.DataFrame(columns | dict(zip(feature_names, features.T, strict=True)))
