"""What each feature adds to a score: why an item stands where it stands.

For the trees these are Shapley values, for the logistic score weight times standardised value. Both are relative to
their bias: what the trees give on average over the rows that they learnt from, and what the logistic score gives for a
row of mean values.

Source: S. Lundberg and others, From Local Explanations to Global Understanding with Explainable AI for Trees, Nature
Machine Intelligence 2020. Shapes: R rows, F features.
"""

from dataclasses import dataclass

import numpy as np

from recsys.arrays import DoubleArray, FloatArray
from recsys.errors import ConfigError
from recsys.ranking.ranker import Explains, Ranker


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
    """Of one or more feature rows (R, F). Raises ValueError without a row, ConfigError where the ranker cannot tell."""
    if len(rows) == 0:
        raise ValueError("contributions need at least one row")
    if not isinstance(ranker, Explains):
        raise ConfigError(f"the scores of a {type(ranker).__name__} cannot be taken apart")
    values, bias = ranker.contributions(rows)
    return Contributions(ranker.feature_names, values, bias)
