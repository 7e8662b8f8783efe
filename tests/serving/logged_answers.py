"""Made-up answers for the tests of the prediction log. Stage: tests of serving. In: nothing. Out: what
`PredictionLog.offer` takes, and `Prediction`s as it makes them. Absent: models.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from recsys.features.state import HISTORY_LENGTH, StateBatch
from recsys.monitoring.prediction_log import Prediction, read_predictions
from recsys.recommender import Filters, Recommendations
from recsys.retrieval.merge import Candidates
from serving.prediction_log import PredictionLog

NOON = 1_795_262_400.0  # 2026-11-21T12:00 UTC
HOUR = 3_600
K, RANK, N_RETRIEVERS, N_FEATURES = 3, 4, 2, 5
NAMES = ("a_score", "b_rank", "popularity_7d", "mean_rating", "user_gap")


@dataclass
class AskedFor:
    k: int = K
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0
    length: int = K


@dataclass
class FakeCall:
    request_id: str
    degraded: list[str] = field(default_factory=list)

    def elapsed_ms(self) -> float:
        return 250.0


MODEL: Any = SimpleNamespace(
    version=3,
    bundle=SimpleNamespace(facts=SimpleNamespace(bundle_id="b-1")),
    stats=SimpleNamespace(day=20_000),
    recommender=SimpleNamespace(feature_names=NAMES),
    catalogue=SimpleNamespace(item_ids=np.arange(8) * 10),  # row i is item 10 i
)


def states(size: int = 1, *, cold: bool = False) -> StateBatch:
    item_idx = np.full((size, HISTORY_LENGTH), -1, dtype=np.int64)
    timestamps = np.zeros((size, HISTORY_LENGTH), dtype=np.int64)
    if not cold:
        item_idx[:, -1], timestamps[:, -1] = 8, 777
    n = np.zeros(size) if cold else np.full(size, 41.0)
    profile = np.zeros((size, 3), dtype=np.int64)
    nobody = [np.empty(0, dtype=np.int64)] * size
    now = np.full(size, 778)
    return StateBatch(now, item_idx, item_idx.astype(np.float32), timestamps, n, n, n, n, profile, nobody)


def found(size: int = 1, seed: int = 0) -> Recommendations:
    """Six candidates, the last one absent; the ranker saw RANK of them."""
    rng = np.random.default_rng(seed)
    item_idx = np.tile(np.array([4, 2, 7, 1, 5, -1]), (size, 1))
    scores = rng.normal(size=(size, 6, N_RETRIEVERS)).astype(np.float32)
    ranks = rng.integers(0, 9, (size, 6, N_RETRIEVERS)).astype(np.int32)
    features = rng.normal(size=(size, RANK, N_FEATURES)).astype(np.float32)
    features[:, 1, 2] = np.nan
    position = np.tile(np.array([2, 0, 4]), (size, 1))  # the third is further down than the ranker looks
    return Recommendations(
        item_ids=np.take_along_axis(item_idx, position, axis=1) * 10,
        scores=rng.normal(size=(size, K)).astype(np.float32),
        candidates=Candidates(("a", "b"), item_idx, scores[:, :, 0], scores, ranks),
        position=position,
        features=features,
        degraded=(),
        timings_ms={},
        watch_probability=rng.random((size, K)).astype(np.float32),
        like_probability=np.full((size, K), np.nan, dtype=np.float32),
    )


SHOWN = [np.array([7, 4, 5])]


def offer(log: PredictionLog, request_id: str, **asked: Any) -> bool:
    return log.offer(FakeCall(request_id), MODEL, [42], states(), found(), SHOWN, AskedFor(**asked))


def logged(folder: Path) -> list[Prediction]:
    return [p for batch in read_predictions(folder) for p in batch]


def one(request_id: str, received: float = NOON) -> Prediction:
    """As the log gives it back."""
    made: list[Prediction] = []
    collecting: Any = SimpleNamespace(_share=1.0, _put=lambda p, _f: made.append(p) or True)
    collecting._received_us = lambda _call: int(received * 1e6)
    PredictionLog.offer(collecting, FakeCall(request_id), MODEL, [42], states(), found(), SHOWN, AskedFor())
    return made[0]
