"""The rankers: LightGBM trees, and the logistic regression that they must beat; what each feature adds to a score.

A ranker turns rows of the feature matrix (`recsys.features.candidate`) into one score a row, higher is better.
Training is in `training`. Shapes: R rows, F features.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import lightgbm as lgb
import numpy as np

from recsys.arrays import DoubleArray, FloatArray
from recsys.atomic_io import read_json, write_json
from recsys.errors import BundleError
from recsys.ranking.tree_kernel import TreeKernel, UnknownTreesError

LOGISTIC, BASE, TREES = "logistic.json", "ranker_base.json", "ranker.txt"
ROWS_AT_ONCE = 2_048  # of the logistic score: what a slice needs stays in a core's cache
log = logging.getLogger(__name__)


class Ranker(Protocol):
    """A fitted ranker; `feature_names` says which columns, in which order, it was trained on."""

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    def score(self, rows: FloatArray) -> FloatArray:
        """(R, F) -> (R,)"""
        ...

    def contributions(self, rows: FloatArray) -> tuple[DoubleArray, float]:
        """(R, F) what each feature adds to the score of at least one row, and what is the same for all rows; their sum
        is the score, up to rounding in single precision.

        For trees these are Shapley values, relative to the mean over the rows that they learnt from; for the logistic
        score weight times standardised value, relative to a row of mean values. Source: S. Lundberg and others, From
        Local Explanations to Global Understanding with Explainable AI for Trees, Nature Machine Intelligence 2020.
        """
        ...


class BoostedRanker:
    """LightGBM trees, added to a logistic score where there is one to start from.

    Sources: G. Ke et al., LightGBM, NeurIPS 2017; for the objective "lambdarank", C. Burges, From RankNet to
    LambdaRank to LambdaMART, 2010.
    """

    def __init__(self, booster: lgb.Booster, base: "LogisticRanker | None" = None) -> None:
        self.booster = booster
        self.base = base
        self.feature_names: tuple[str, ...] = tuple(booster.feature_name())

    def score(self, rows: FloatArray) -> FloatArray:
        scores: FloatArray = self.tree_scores(rows).astype(np.float32)
        return scores if self.base is None else scores + self.base.score(rows)

    def tree_scores(self, rows: FloatArray) -> DoubleArray:
        """(R,) what the trees add up to, without the logistic score."""
        if self._kernel is not None:
            return self._kernel(rows)
        return np.asarray(self.booster.predict(rows, raw_score=True, num_threads=1), dtype=np.float64)

    @cached_property
    def _kernel(self) -> TreeKernel | None:
        """Made at the first score; checked there against LightGBM, which scores where the kernel cannot."""
        try:
            return TreeKernel(self.booster)
        except UnknownTreesError as error:
            log.warning("LightGBM scores instead of the tree kernel, some ten times slower: %s", error)
            return None

    def contributions(self, rows: FloatArray) -> tuple[DoubleArray, float]:
        """By LightGBM; 300 trees take about a millisecond a row."""
        shapley = np.asarray(self.booster.predict(rows, pred_contrib=True, num_threads=1), dtype=np.float64)
        shapley = shapley.reshape(len(rows), len(self.feature_names) + 1)  # the last column is the same in all rows
        values, bias = shapley[:, :-1], float(shapley[0, -1])
        if self.base is not None:
            base_values, base_bias = self.base.contributions(rows)
            values, bias = values + base_values, bias + base_bias
        return values, bias

    def importance(self) -> dict[str, float]:
        """Total gain of each feature."""
        gains = self.booster.feature_importance("gain").tolist()
        return dict(zip(self.feature_names, gains, strict=True))

    def save(self, folder: Path) -> None:
        self.booster.save_model(str(folder / TREES))
        if self.base is not None:
            self.base.save(folder, BASE)

    @classmethod
    def load(cls, folder: Path) -> "BoostedRanker":
        """Raises BundleError for a file that is missing or cut, or whose numbers are not finite."""
        path = folder / TREES
        if not path.exists():
            raise BundleError(f"{path} is missing; train again with `recsys train`")
        try:
            text = path.read_text(encoding="utf-8")
            _check_tree_text(text)
            booster = lgb.Booster(model_str=text)
        except (ValueError, lgb.basic.LightGBMError) as error:
            raise BundleError(f"{path} is damaged ({error}); train again with `recsys train`") from error
        return cls(booster, LogisticRanker.load(folder, BASE) if (folder / BASE).exists() else None)


def _check_tree_text(text: str) -> None:
    """Raise ValueError where LightGBM's parser, which trusts its input, could read past the end and end the process."""
    head, _, body = text.partition("\n\n")
    place = 0
    for number, size in enumerate(map(int, _fields(head).get("tree_sizes", "").split())):
        tree = body[place : place + size]
        if not tree.startswith(f"Tree={number}\n") or len(tree) != size:
            raise ValueError(f"tree {number} is not where it should be")
        fields = _fields(tree)
        leaves = int(fields.get("num_leaves", "0"))
        for name in ("leaf_value", "split_feature", "decision_type", "threshold", "left_child", "right_child"):
            values = np.array(fields.get(name, "").split(), dtype=np.float64)
            # a split of what is missing from all else has the threshold inf
            possible = ~np.isnan(values) if name == "threshold" else np.isfinite(values)
            if len(values) != leaves - (name != "leaf_value") or not possible.all():
                raise ValueError(f"tree {number} has other numbers of {name} than its {leaves} leaves need")
            if name.endswith("_child") and not ((values >= -leaves) & (values < leaves - 1)).all():
                raise ValueError(f"tree {number} has a branch that leads nowhere")
        place += size
    if not body[place:].startswith("end of trees") or "\nend of parameters\n" not in body[place:]:
        raise ValueError("the trees or their parameters have no end")


def _fields(text: str) -> dict[str, str]:
    """The `name=value` lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


class LogisticRanker:
    """A logistic regression over standardised features; missing values become the column's mean."""

    def __init__(
        self, names: Sequence[str], mean: FloatArray, scale: FloatArray, weights: FloatArray, intercept: float
    ) -> None:
        """`mean`, `scale`, `weights` (F,)"""
        self.feature_names = tuple(names)
        self.mean, self.scale, self.weights, self.intercept = mean, scale, weights, intercept

    def score(self, rows: FloatArray) -> FloatArray:
        out = np.empty(len(rows), dtype=np.float32)
        for low in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(low, low + ROWS_AT_ONCE)
            out[part] = self._standardised(rows[part]) @ self.weights + self.intercept
        return out

    def contributions(self, rows: FloatArray) -> tuple[DoubleArray, float]:
        return self._standardised(rows).astype(np.float64) * self.weights, self.intercept

    def _standardised(self, rows: FloatArray) -> FloatArray:
        """(R, F) in standard deviations from the mean; 0 where the value is missing."""
        standard = rows - self.mean
        standard /= self.scale
        np.copyto(standard, 0.0, where=np.isnan(standard))
        return standard

    def save(self, folder: Path, name: str = LOGISTIC) -> None:
        arrays = {part: getattr(self, part).tolist() for part in ("mean", "scale", "weights")}
        write_json(folder / name, {"feature_names": self.feature_names, **arrays, "intercept": self.intercept})

    @classmethod
    def load(cls, folder: Path, name: str = LOGISTIC) -> "LogisticRanker":
        """Raises BundleError where the file is unreadable, or holds another number of numbers, or not finite ones."""
        try:
            stored = read_json(folder / name)
            names, intercept = stored["feature_names"], float(stored["intercept"])
            mean, scale, weights = (np.asarray(stored[part], dtype=np.float32) for part in ("mean", "scale", "weights"))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder / name} cannot be read ({error!r}); train again with `recsys train`") from error
        whole = all(c.shape == (len(names),) and np.isfinite(c).all() for c in (mean, scale, weights))
        if not (whole and np.isfinite(intercept)):
            raise BundleError(f"{folder / name} does not hold {len(names)} finite weights; train again")
        return cls(names, mean, scale, weights, intercept)
