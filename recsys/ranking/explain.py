"""What each feature adds to a score: why an item stands where it stands.

Stage: ranking; on demand, when somebody asks. In: a fitted ranker and feature rows. Out: `Contributions`, which sum to
the score. Absent: words for people, and which retriever found an item (`recsys.recommender.Recommendations` says that).

For the trees these are Shapley values, exact for trees, as LightGBM computes them; for the logistic score, weight times
standardised value. Both are relative to their bias: what the trees give on average over the rows that they learnt from,
and what the logistic score gives for a row of mean values.

Source: S. Lundberg and others, From Local Explanations to Global Understanding with Explainable AI for Trees, Nature
Machine Intelligence 2020.

Shapes: R rows, F features.
"""

from dataclasses import dataclass

import numpy as np

from recsys.arrays import DoubleArray, FloatArray
from recsys.errors import ConfigError
from recsys.ranking.ranker import BoostedRanker, LogisticRanker, Ranker


@dataclass(frozen=True)
class Contributions:
    """names: the F features; values (R, F) what each one adds to the row's score; bias: what is the same for all rows.
    A row of `values` and the bias sum to the score, up to rounding in single precision."""

    names: tuple[str, ...]
    values: DoubleArray
    bias: float

    def strongest(self, row: int, n: int) -> list[tuple[str, float]]:
        """The n features that move this row's score most, up or down, strongest first; ties in the order of `names`."""
        best = np.argsort(-np.abs(self.values[row]), kind="stable")[:n]
        return [(self.names[feature], float(self.values[row, feature])) for feature in best]


def contributions(ranker: Ranker, rows: FloatArray) -> Contributions:
    """Of one or more feature rows (R, F). Shapley values of 300 trees take about a millisecond a row.

    Raises ValueError without a row, ConfigError for a ranker that is neither trees nor logistic.
    """
    if len(rows) == 0:
        raise ValueError("contributions need at least one row")
    if isinstance(ranker, LogisticRanker):
        return _of_logistic(ranker, rows)
    if not isinstance(ranker, BoostedRanker):
        raise ConfigError(f"the scores of a {type(ranker).__name__} cannot be taken apart; only trees and logistic can")
    shapley = np.asarray(ranker.booster.predict(rows, pred_contrib=True, num_threads=ranker.threads), dtype=np.float64)
    shapley = shapley.reshape(len(rows), len(ranker.feature_names) + 1)  # the last column is the same in all rows
    values, bias = shapley[:, :-1], float(shapley[0, -1])
    if ranker.base is not None:
        base = _of_logistic(ranker.base, rows)
        values, bias = values + base.values, bias + base.bias
    return Contributions(ranker.feature_names, values, bias)


def _of_logistic(ranker: LogisticRanker, rows: FloatArray) -> Contributions:
    values = ranker.standardised(rows).astype(np.float64) * ranker.weights
    return Contributions(ranker.feature_names, values, ranker.intercept)
