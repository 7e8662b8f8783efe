"""The rankers: LightGBM trees, and the logistic regression that it must beat.

Stage: ranking; scoring on both tracks. In: rows of the feature matrix. Out: one score a row, higher is better.
Absent: training (`training`), the features (`recsys.features.candidate`).

Shapes: R rows, F features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import lightgbm as lgb
import numpy as np

from recsys.arrays import DoubleArray, FloatArray
from recsys.atomic_io import read_json, write_json
from recsys.errors import BundleError

LOGISTIC, BASE = "logistic.json", "ranker_base.json"


class Ranker(Protocol):
    """A fitted ranker; `feature_names` says which columns, in which order, it was trained on."""

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    def score(self, rows: FloatArray) -> FloatArray:
        """(R, F) -> (R,)"""
        ...


class BoostedRanker:
    """LightGBM trees, added to a logistic score where there is one to start from.

    Retrievers: G. Ke et al., LightGBM, NeurIPS 2017; for the objective "lambdarank", C. Burges, From RankNet to
    LambdaRank to LambdaMART, 2010.
    """

    def __init__(self, booster: lgb.Booster, threads: int = 1, base: "LogisticRanker | None" = None) -> None:
        self.booster = booster
        self.threads = threads
        self.base = base
        self.feature_names: tuple[str, ...] = tuple(booster.feature_name())

    def score(self, rows: FloatArray) -> FloatArray:
        scores: FloatArray = self.tree_scores(rows).astype(np.float32)
        return scores if self.base is None else scores + self.base.score(rows)

    def tree_scores(self, rows: FloatArray) -> DoubleArray:
        """(R,) what the trees add up to, without the logistic score."""
        return np.asarray(self.booster.predict(rows, raw_score=True, num_threads=self.threads), dtype=np.float64)

    def importance(self) -> dict[str, float]:
        """Total gain of each feature."""
        gains = self.booster.feature_importance("gain").tolist()
        return dict(zip(self.feature_names, gains, strict=True))

    def save(self, folder: Path) -> None:
        self.booster.save_model(str(folder / "ranker.txt"))
        if self.base is not None:
            self.base.save(folder, BASE)

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> "BoostedRanker":
        path = folder / "ranker.txt"
        if not path.exists():
            raise BundleError(f"{path} is missing; train again with `recsys train`")
        base = LogisticRanker.load(folder, BASE) if (folder / BASE).exists() else None
        return cls(lgb.Booster(model_file=str(path)), threads, base)


class LogisticRanker:
    """A logistic regression over standardised features; missing values become the column's mean."""

    def __init__(
        self, names: Sequence[str], mean: FloatArray, scale: FloatArray, weights: FloatArray, intercept: float
    ) -> None:
        """`mean`, `scale`, `weights` (F,)"""
        self.feature_names = tuple(names)
        self.mean, self.scale, self.weights, self.intercept = mean, scale, weights, intercept

    def score(self, rows: FloatArray) -> FloatArray:
        return np.asarray(self.standardised(rows) @ self.weights + self.intercept, dtype=np.float32)

    def standardised(self, rows: FloatArray) -> FloatArray:
        """(R, F) in standard deviations from the mean; 0 where the value is missing."""
        standard = rows - self.mean
        standard /= self.scale
        np.copyto(standard, 0.0, where=np.isnan(standard))
        return standard

    def save(self, folder: Path, name: str = LOGISTIC) -> None:
        write_json(
            folder / name,
            {
                "feature_names": self.feature_names,
                "mean": self.mean.tolist(),
                "scale": self.scale.tolist(),
                "weights": self.weights.tolist(),
                "intercept": self.intercept,
            },
        )

    @classmethod
    def load(cls, folder: Path, name: str = LOGISTIC) -> "LogisticRanker":
        stored = read_json(folder / name)
        mean, scale, weights = (np.asarray(stored[name], dtype=np.float32) for name in ("mean", "scale", "weights"))
        return cls(stored["feature_names"], mean, scale, weights, float(stored["intercept"]))
