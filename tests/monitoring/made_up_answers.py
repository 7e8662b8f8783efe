"""Made-up answers for the prediction log: three of six candidates shown, one of them out of the ranker's depth."""

from dataclasses import replace
from typing import Any

import numpy as np

from recsys.monitoring.prediction_log import AnsweredRequest
from recsys.recommender import Recommendations
from recsys.retrieval.merge import Candidates

NOON = 1_795_262_400.0  # 2026-11-21T12:00 UTC
HOUR = 3_600
RANK = 4
NAMES = ("a_score", "b_rank", "popularity_7d", "mean_rating", "user_gap")


def found(seed: int = 0) -> Recommendations:
    rng = np.random.default_rng(seed)
    item_idx = np.array([[4, 2, 7, 1, 5, -1]])
    scores = rng.normal(size=(1, 6, 2)).astype(np.float32)
    features = rng.normal(size=(1, RANK, len(NAMES))).astype(np.float32)
    features[:, 1, 2] = np.nan
    position = np.array([[2, 0, 4]])
    return Recommendations(
        item_ids=np.take_along_axis(item_idx, position, axis=1) * 10,
        scores=rng.normal(size=(1, 3)).astype(np.float32),
        candidates=Candidates(("a", "b"), item_idx, scores[:, :, 0], scores, np.ones((1, 6, 2), dtype=np.int32)),
        position=position,
        features=features,
        degraded=(),
        timings_ms={},
        watch_probability=rng.random((1, 3)).astype(np.float32),
        like_probability=np.full((1, 3), np.nan, dtype=np.float32),
    )


def answered(request_id: str = "call-1", received_at: float = NOON, **changed: Any) -> AnsweredRequest:
    whole = AnsweredRequest(
        request_id=request_id,
        user_id=42,
        state_seq=7,
        received_at=received_at,
        now=int(received_at),
        bundle_id="b-1",
        version=3,
        statistics_day=20_000,
        item_ids=np.array([70, 40, 50]),
        k=3,
        list_length=3,
        recommendations=found(),
        feature_names=NAMES,
    )
    return replace(whole, **changed)
