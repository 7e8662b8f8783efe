"""The rankers: LightGBM LambdaRank, and the logistic regression that it must beat.

Stage: ranking; scoring on both tracks. In: rows of the feature matrix. Out: one score a row, higher is better.
Absent: training (`training`), the features (`recsys.features.candidate`).

Shapes: R rows, F features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from recsys.artefacts import read_json, write_json
from recsys.errors import BundleError

Float = npt.NDArray[np.float32]


class Ranker(Protocol):
    """A fitted ranker; `feature_names` says which columns, in which order, it was trained on."""

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    def score(self, rows: Float) -> Float:
        """(R, F) -> (R,)"""
        ...


class LambdaRanker:
    """LightGBM trees. Source of the objective: C. Burges, From RankNet to LambdaRank to LambdaMART, 2010."""

    def __init__(self, booster: lgb.Booster, threads: int = 1) -> None:
        self.booster = booster
        self.threads = threads
        self.feature_names: tuple[str, ...] = tuple(booster.feature_name())

    def score(self, rows: Float) -> Float:
        scores = self.booster.predict(rows, num_threads=self.threads)
        return np.asarray(scores, dtype=np.float32)

    def importance(self) -> dict[str, float]:
        """Total gain of each feature."""
        gains = self.booster.feature_importance("gain").tolist()
        return dict(zip(self.feature_names, gains, strict=True))

    def save(self, folder: Path) -> None:
        self.booster.save_model(str(folder / "ranker.txt"))

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> "LambdaRanker":
        path = folder / "ranker.txt"
        if not path.exists():
            raise BundleError(f"{path} is missing; train again with `recsys train`")
        return cls(lgb.Booster(model_file=str(path)), threads)


class LogisticRanker:
    """A logistic regression over standardised features; missing values become the column's mean."""

    def __init__(self, names: Sequence[str], mean: Float, scale: Float, weights: Float, intercept: float) -> None:
        """`mean`, `scale`, `weights` (F,)"""
        self.feature_names = tuple(names)
        self.mean, self.scale, self.weights, self.intercept = mean, scale, weights, intercept

    def score(self, rows: Float) -> Float:
        standard = np.nan_to_num((rows - self.mean) / self.scale, nan=0.0)
        return np.asarray(standard @ self.weights + self.intercept, dtype=np.float32)

    def save(self, folder: Path) -> None:
        write_json(
            folder / "logistic.json",
            {
                "feature_names": self.feature_names,
                "mean": self.mean.tolist(),
                "scale": self.scale.tolist(),
                "weights": self.weights.tolist(),
                "intercept": self.intercept,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "LogisticRanker":
        stored = read_json(folder / "logistic.json")
        mean, scale, weights = (np.asarray(stored[name], dtype=np.float32) for name in ("mean", "scale", "weights"))
        return cls(stored["feature_names"], mean, scale, weights, float(stored["intercept"]))
