"""Settings of every stage, and how their defaults follow the size of the data.

Stage: all of the offline track. In: counts of the data set and what the user set. Out: `PipelineConfig`, whose parts
are handed to the library. Absent: the environment (`recsys.settings`) and paths.

The rules below were found on validation windows (docs/experiments.md), never on the test window.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from recsys.columns import POPULARITY, TIMESTAMP
from recsys.ranking.training import RankerSettings
from recsys.recommender import RecommenderSettings
from recsys.retrieval.index import Kind
from recsys.retrieval.two_tower_training import TowerSettings


@dataclass(frozen=True)
class SourceSettings:
    """Settings of the sources other than the two-tower model."""

    ease_regularisation: float
    ease_power: float
    covisitation_decay: float
    covisitation_damping: float
    covisitation_history_decay: float
    popularity_half_life_days: float


@dataclass(frozen=True)
class PipelineConfig:
    tower: TowerSettings
    sources: SourceSettings
    ranker: RankerSettings
    recommender: RecommenderSettings
    index: Kind = "auto"
    latency_budget_ms: float = 50.0
    refit: bool = True
    feature_store: str = "sqlite"  # which store the features were written to

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_for(
    events: pd.DataFrame,
    *,
    device: str = "cpu",
    epochs: int | None = None,
    index: Kind = "auto",
    seed: int = 7,
    refit: bool = True,
    latency_budget_ms: float = 50.0,
    feature_store: str = "sqlite",
) -> PipelineConfig:
    """Defaults for a data set. Larger data: fewer passes of the two-tower model, stronger EASE regularisation.

    Only the first seven tenths in time are looked at, so that nothing of the later windows enters by way of a setting.
    The half-life of popularity is the time that the last fifth of those events took.
    """
    times = np.sort(events[TIMESTAMP].to_numpy(np.int64))
    times = times[: len(times) * 7 // 10]
    n = len(times)
    large = n > 200_000
    recent_days = (times[-1] - times[n * 4 // 5]) / 86_400 if n else 30.0
    tower = TowerSettings(
        epochs=epochs or (9 if large else 20),
        batch_events=4_096 if large else 2_560,
        max_events_per_epoch=250_000,
        patience=2 if large else 4,
        learning_rate=4e-3,
        device=device,
        seed=seed,
    )
    return PipelineConfig(
        tower=tower,
        sources=SourceSettings(
            ease_regularisation=float(np.clip(0.007 * n, 300, 2_000)),
            ease_power=1.0,
            covisitation_decay=0.9,
            covisitation_damping=0.5,
            covisitation_history_decay=0.8,
            popularity_half_life_days=float(np.clip(recent_days, 7, 365)),
        ),
        ranker=replace(RankerSettings(), seed=seed),
        recommender=RecommenderSettings(fusion={POPULARITY: 0.25}),
        index=index,
        latency_budget_ms=latency_budget_ms,
        refit=refit,
        feature_store=feature_store,
    )
