"""Fitting the rankers on the training table.

The trees start from the score of the logistic regression and learn what that cannot say: with few contexts, trees
alone only reach what the regression reaches (docs/adr/0011). Their objective is the likelihood of each row, not of the
order (docs/adr/0015). Training stops early on the later contexts in time, then is
fitted again on all of them with the number of trees found. A context's weight falls with the square root of how many
its user has, so that no single user writes the order.

Shapes: R rows, C contexts, F features, S contexts with whole lists, K candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from recsys.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from recsys.errors import ConfigError, DataError
from recsys.ranking.ranker import BoostedRanker, LogisticRanker

STOPPING_DEPTH = 50  # NDCG@10 of a few hundred contexts is so noisy that it stopped after 1 to 50 trees
FEWEST_CONTEXTS = 20  # below this there is nothing to learn an order from


@dataclass(frozen=True)
class UnsampledCandidates:
    """All ranked candidates of a uniform sample of contexts, whatever happened in them, in time order. Probabilities
    are fitted on these: the table leaves out the contexts of which nothing was found, and most negatives of the others.

    features (S, K, F) float32; present (S, K) where there is a candidate; happened (S, K); timestamp (S,)
    """

    features: FloatArray
    present: BoolArray
    happened: BoolArray
    timestamp: IntArray

    def __len__(self) -> int:
        return len(self.timestamp)


@dataclass(frozen=True)
class TrainingTable:
    """features (R, F) float32; labels (R,) 1 for what happened, 0 otherwise; item_id (R,); rating (R,) float32, NaN for
    what did not happen; group_sizes (C,) rows a context, contexts in time order; timestamp, user_id (C,); found: share
    of positives that retrieval returned; unsampled: a sample of contexts with all of their candidates."""

    feature_names: tuple[str, ...]
    features: FloatArray
    labels: npt.NDArray[np.int32]
    item_id: IntArray
    rating: FloatArray
    group_sizes: IntArray
    timestamp: IntArray
    user_id: IntArray
    found: float
    unsampled: UnsampledCandidates

    def __len__(self) -> int:
        return len(self.labels)


OF_ROWS, OF_CONTEXTS = ("features", "labels", "item_id", "rating"), ("group_sizes", "timestamp", "user_id")


def _concatenated(parts: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def joined(tables: Sequence[TrainingTable]) -> TrainingTable:
    """Several windows as one table, in the order given (earlier windows first). `found` is that of the last."""
    if any(t.feature_names != tables[0].feature_names for t in tables):
        raise ConfigError("the ranker's windows have different features; run the pipeline again with --force")
    lists = _concatenated([t.unsampled for t in tables], ("features", "present", "happened", "timestamp"))
    arrays = _concatenated(tables, OF_ROWS + OF_CONTEXTS)
    return replace(tables[-1], **arrays, unsampled=UnsampledCandidates(**lists))


@dataclass(frozen=True)
class RankerSettings:
    """Settings of the trees. objective: "binary" is the log loss of each row, "lambdarank" the order of each context
    (then `truncation` counts); negatives: most non-positive candidates kept a context, drawn uniformly; holdout: share
    of contexts, the last in time, that early stopping looks at;
    unsampled_candidates: contexts a window that are kept with all of their candidates, for the probabilities."""

    objective: Literal["binary", "lambdarank"] = "binary"
    max_trees: int = 300
    learning_rate: float = 0.05
    leaves: int = 15
    min_rows_in_leaf: int = 200
    feature_fraction: float = 0.5
    row_fraction: float = 0.8
    l2: float = 10.0
    truncation: int = 20
    early_stopping: int = 100
    holdout: float = 0.5
    start_from_logistic: bool = True
    negatives: int = 80
    max_contexts: int = 7_000
    unsampled_candidates: int = 2_000
    user_weight_power: float = 0.5
    seed: int = 7
    threads: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise ConfigError(f"ranker: holdout must lie between 0 and 1, got {self.holdout}")


def context_weights(user_id: IntArray, power: float) -> DoubleArray:
    """(C,) weight of each context: (contexts of its user)^-power, scaled to mean 1.

    >>> context_weights(np.array([1, 1, 1, 1, 2]), 0.5).round(3).tolist()
    [0.833, 0.833, 0.833, 0.833, 1.667]
    """
    _, inverse, counts = np.unique(user_id, return_inverse=True, return_counts=True)
    weights = counts[inverse].astype(np.float64) ** -power
    return np.asarray(weights / weights.mean())


def early_contexts(table: TrainingTable, settings: RankerSettings) -> int:
    """How many contexts, the first in time, the ranker that stops early learns from."""
    return max(1, int(len(table.group_sizes) * (1 - settings.holdout)))


def fit_early(
    table: TrainingTable, settings: RankerSettings, *, report: Callable[[str], None] = lambda _: None
) -> BoostedRanker:
    """The ranker of the first `early_contexts`, stopped where the later ones are ordered best.

    Raises DataError where the table holds too few contexts to learn from.
    """
    contexts = len(table.group_sizes)
    if contexts < FEWEST_CONTEXTS:
        raise DataError(
            f"only {contexts} contexts of the ranker's window have an item that retrieval found; at least "
            f"{FEWEST_CONTEXTS} are needed. The data set is too small, or its last tenth has too few events."
        )
    bounds = _bounds(table)
    split = early_contexts(table, settings)
    base = fit_logistic(_first_contexts(table, split)) if settings.start_from_logistic else None
    early = _dataset(table, slice(0, split), bounds, settings, base)
    late = _dataset(table, slice(split, contexts), bounds, settings, base, reference=early)
    history: dict[str, dict[str, list[float]]] = {}
    booster = lgb.train(
        _parameters(table, settings),
        early,
        settings.max_trees,
        valid_sets=[late],
        valid_names=["late"],
        callbacks=[lgb.early_stopping(settings.early_stopping, verbose=False), lgb.record_evaluation(history)],
    )
    best = max(history["late"][f"ndcg@{STOPPING_DEPTH}"])
    report(f"ranker: {_trees(booster)} trees on the first contexts, NDCG@{STOPPING_DEPTH} {best:.4f} on the last")
    return BoostedRanker(booster, base)


def fit_boosted(
    table: TrainingTable,
    settings: RankerSettings,
    *,
    early: BoostedRanker | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> BoostedRanker:
    """The ranker of all contexts, with more trees than the early one kept in the proportion in which it has more
    contexts (at most `max_trees`). `early` is what `fit_early` gave for this table and these settings; without it, that
    is fitted first. Raises DataError as it does."""
    early = early or fit_early(table, settings, report=report)
    base = fit_logistic(table) if settings.start_from_logistic else None
    whole = _dataset(table, slice(0, len(table.group_sizes)), _bounds(table), settings, base)
    trees = round(_trees(early.booster) * len(table.group_sizes) / early_contexts(table, settings))
    booster = lgb.train(_parameters(table, settings), whole, min(trees, settings.max_trees))
    return BoostedRanker(booster, base)


def _trees(booster: lgb.Booster) -> int:
    return max(int(booster.best_iteration), 1)


def _bounds(table: TrainingTable) -> IntArray:
    """(C + 1,) first row of each context, and the end."""
    return np.append(0, np.cumsum(table.group_sizes))


def _parameters(table: TrainingTable, settings: RankerSettings) -> dict[str, Any]:
    early_rows = int(_bounds(table)[early_contexts(table, settings)])
    return {
        "objective": settings.objective,
        "metric": "ndcg",
        "eval_at": [STOPPING_DEPTH],
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": min(settings.min_rows_in_leaf, max(1, early_rows // 50)),
        "feature_fraction": settings.feature_fraction,
        "bagging_fraction": settings.row_fraction,
        "bagging_freq": 1,
        "lambda_l2": settings.l2,
        "lambdarank_truncation_level": settings.truncation,
        "num_threads": settings.threads,
        "seed": settings.seed,
        "deterministic": True,
        "force_row_wise": True,
        "max_bin": 127,
        "verbosity": -1,
    }


def _first_contexts(table: TrainingTable, contexts: int) -> TrainingTable:
    rows = int(table.group_sizes[:contexts].sum())
    of_rows = {name: getattr(table, name)[:rows] for name in OF_ROWS}
    return replace(table, **of_rows, **{name: getattr(table, name)[:contexts] for name in OF_CONTEXTS})


def _dataset(
    table: TrainingTable,
    contexts: slice,
    bounds: IntArray,
    settings: RankerSettings,
    base: LogisticRanker | None,
    reference: lgb.Dataset | None = None,
) -> lgb.Dataset:
    rows = slice(int(bounds[contexts.start]), int(bounds[contexts.stop]))
    groups, features = table.group_sizes[contexts], table.features[rows]
    return lgb.Dataset(
        features,
        table.labels[rows],
        group=groups,
        weight=np.repeat(context_weights(table.user_id[contexts], settings.user_weight_power), groups),
        init_score=None if base is None else base.score(features),
        feature_name=list(table.feature_names),
        reference=reference,
    )


def standardised(features: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """(F,) mean and (F,) scale of the known values, and (R, F) standard values, 0 where unknown."""
    known = ~np.isnan(features)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, 0.0).sum(axis=0) / count
    scale = np.sqrt((np.where(known, features - mean, 0.0) ** 2).sum(axis=0) / count)
    scale = np.where(scale > 1e-6, scale, 1.0)
    return mean, scale, np.nan_to_num((features - mean) / scale, nan=0.0)


def fit_logistic(table: TrainingTable) -> LogisticRanker:
    """The baseline: standardised features, missing values at the mean, L2. Raises DataError without both labels, and
    where the fit does not end in numbers."""
    if len(np.unique(table.labels)) < 2:
        raise DataError("The ranker cannot be trained: its rows are all watched or all unwatched. Add more ratings.")
    mean, scale, standard = standardised(table.features)
    model = LogisticRegression(C=0.1, max_iter=300)
    # a BLAS product of these finite numbers once raised the processor's "invalid" flag; what counts is looked at below
    with np.errstate(invalid="ignore"):
        model.fit(standard.astype(np.float32), table.labels)
    if not (np.isfinite(model.coef_).all() and np.isfinite(model.intercept_).all()):
        raise DataError("the logistic regression ended in no finite weights; look for extreme values in the features")
    weights = mean.astype(np.float32), scale.astype(np.float32), model.coef_[0].astype(np.float32)
    return LogisticRanker(table.feature_names, *weights, float(model.intercept_[0]))
