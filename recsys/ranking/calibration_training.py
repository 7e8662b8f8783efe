"""Fitting the two probabilities on the later contexts of the ranker's windows.

P(watch) is fitted on whole candidate lists, found or not, so that the base rate is the true one: first the temperature,
by the likelihood of what happened within the lists; then the map. P(like) is fitted on what happened and was found: a
logistic score, or the item's or the user's share of liked ratings, on the earlier contexts; its map on the later ones.

Scores and maps are compared by log loss on the second half in time of the later contexts after a fit on their first
half. The winner's map is then fitted on all later contexts, with the scores of the early models. The models that serve
learn from all contexts, so their maps were made for models with half of their examples.

Shapes: R rows, C contexts, S contexts with whole lists, K candidates, F features, n examples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from recsys.arrays import BoolArray, DoubleArray, FloatArray
from recsys.columns import LIKED_RATING
from recsys.errors import ConfigError, DataError
from recsys.ranking.calibration import (
    COUNT,
    HABITS,
    Isotonic,
    Platt,
    Probabilities,
    ProbabilityMap,
    habits_known,
    log_shares,
)
from recsys.ranking.ranker import LogisticRanker, Ranker
from recsys.ranking.training import RankerSettings, TrainingTable, early_contexts, standardised

Fit = Callable[[DoubleArray, BoolArray], ProbabilityMap]

MOVIE_SHARE, USER_SHARE = "liked_share", "user_liked_share"
LIKE_FEATURES: Final = (
    *(COUNT, *HABITS),
    *(MOVIE_SHARE, "mean_rating", "popularity_all", "popularity_trend", "days_since_first_rated", "decade"),
    *("genre_rating_affinity", "genre_affinity", "similarity_liked", "similarity_history", "decade_distance"),
)
TEMPERATURES: Final = (0.02, 50.0)
STRENGTH: Final = 0.1  # C of the like score's L2 penalty, as for the ranker's baseline


def fit_platt(score: DoubleArray, happened: BoolArray) -> Platt:
    """(n,) scores, (n,) outcomes. Where the outcomes are all the same, or a higher score makes them rarer, the map is
    flat at (k + 1) / (n + 2), Laplace's estimate of k in n. Raises DataError without an example."""
    if len(score) == 0:
        raise DataError("a calibration map needs at least one example")
    rate = (happened.sum() + 1) / (len(happened) + 2)
    flat = Platt(0.0, float(np.log(rate / (1 - rate))))
    if happened.all() or not happened.any():
        return flat
    # Newton's method and a small tolerance: with one positive in 300, a gradient of 1e-4 is a rate that is 3 % off.
    model = LogisticRegression(C=1e4, solver="newton-cholesky", tol=1e-8, max_iter=200)
    model.fit(score[:, None], happened)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Platt(slope, intercept) if slope > 0 else flat


def fit_isotonic(score: DoubleArray, happened: BoolArray) -> Isotonic:
    """The non-decreasing map with the least log loss, kept off 0 and 1 by Laplace's estimate of none in n.

    Raises DataError without an example.
    """
    n = len(score)
    if n == 0:
        raise DataError("a calibration map needs at least one example")
    model = IsotonicRegression(y_min=1 / (n + 2), y_max=1 - 1 / (n + 2), out_of_bounds="clip")
    model.fit(score, happened.astype(np.float64))
    return Isotonic(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))


MAPS: Final[dict[str, Fit]] = {"platt": fit_platt, "isotonic": fit_isotonic}


def fit_temperature(scores: FloatArray, happened: BoolArray) -> float:
    """The temperature with the highest mean log share of what happened. `scores` (S, K), -inf where there is no
    candidate; `happened` (S, K). 1 where nothing happened within the lists."""
    found = happened.any(axis=1)
    if not found.any():
        return 1.0
    scores, happened = scores[found], happened[found]

    def loss(log_temperature: float) -> float:
        return -float(log_shares(scores, float(np.exp(log_temperature)))[happened].mean())

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(best.x))


@dataclass(frozen=True)
class _Examples:
    """(n,) scores and outcomes in time order; `later` (n,) True in the half that maps are compared on."""

    score: DoubleArray
    happened: BoolArray
    later: BoolArray

    def losses(self) -> dict[str, float]:
        """Log loss on the later half of each map fitted on the earlier one; empty where a half is empty."""
        if self.later.all() or not self.later.any():
            return {}
        early, late = ~self.later, self.later
        fitted = {name: fit(self.score[early], self.happened[early]) for name, fit in MAPS.items()}
        return {name: _log_loss(of(self.score[late]), self.happened[late]) for name, of in fitted.items()}

    def constant_loss(self) -> float:
        """Log loss of the earlier half's share, by Laplace's estimate, as the probability of each later one."""
        early, late = self.happened[~self.later], self.happened[self.later]
        return _log_loss(np.full(len(late), (early.sum() + 1) / (len(early) + 2)), late)


def fit_probabilities(
    table: TrainingTable, settings: RankerSettings, early: Ranker, *, report: Callable[[str], None] = lambda _: None
) -> tuple[Probabilities, dict[str, Any]]:
    """`early` is what `fit_early` gave for this table and these settings. Also returns the losses that decided, and
    how many examples they stand on. Raises DataError where no whole list is later than what the early ranker saw, and
    ConfigError where a feature that P(like) reads is missing."""
    missing = [name for name in LIKE_FEATURES if name not in table.feature_names]
    if missing:
        raise ConfigError(f"P(like) reads the feature {missing[0]!r}, which the ranker's table does not have")
    temperature, watch_map, watch_facts = _fit_watch(table, settings, early)
    like_score, like_map, like_facts = _fit_like(table, early_contexts(table, settings))
    for name, facts in (("P(watch)", watch_facts), ("P(like)", like_facts)):
        losses = ", ".join(f"{option} {loss:.5f}" for option, loss in facts["log_loss"].items())
        report(f"{name}: {facts['chosen']}; log loss on {facts['n_compared']:,} later examples: {losses}")
    return Probabilities(temperature, watch_map, like_score, like_map), {"watch": watch_facts, "like": like_facts}


def _fit_watch(
    table: TrainingTable, settings: RankerSettings, early: Ranker
) -> tuple[float, ProbabilityMap, dict[str, Any]]:
    lists = table.unsampled
    split = early_contexts(table, settings)
    unseen = np.flatnonzero(lists.timestamp > table.timestamp[split - 1])
    if len(unseen) == 0:
        raise DataError(
            "no context with a whole candidate list is later than those that the early ranker learnt from, so no "
            "probability can be fitted. Keep more of them (unsampled_candidates), or use a larger data set."
        )
    present, happened = lists.present[unseen], lists.happened[unseen]
    scores = np.full(present.shape, -np.inf, dtype=np.float32)
    for row, context in enumerate(unseen):
        scores[row, present[row]] = early.score(lists.features[context, present[row]])
    later = np.arange(len(unseen)) >= len(unseen) // 2

    def examples(temperature: float) -> _Examples:
        shares = log_shares(scores, temperature)[present]
        halves = np.broadcast_to(later[:, None], present.shape)[present]
        return _Examples(shares, happened[present], halves)

    compared = examples(fit_temperature(scores[~later], happened[~later]))
    losses = compared.losses()
    chosen = min(losses, key=lambda name: losses[name]) if losses else "platt"
    temperature = fit_temperature(scores, happened)
    every = examples(temperature)
    facts = {
        "chosen": chosen,
        "log_loss": {**losses, "constant": compared.constant_loss()} if losses else {},
        "n_compared": int(compared.later.sum()),
        "contexts": len(unseen),
        "contexts_found": int(happened.any(axis=1).sum()),
        "base_rate": float(every.happened.mean()),
        "temperature": temperature,
    }
    return temperature, MAPS[chosen](every.score, every.happened), facts


def _fit_like(table: TrainingTable, split: int) -> tuple[LogisticRanker, ProbabilityMap, dict[str, Any]]:
    positive = table.labels == 1
    context = np.repeat(np.arange(len(table.group_sizes)), table.group_sizes)[positive]
    rows = habits_known(table.features[positive], table.feature_names)
    liked = table.rating[positive] >= LIKED_RATING
    early, late = context < split, context >= split
    later = (context > np.median(context[late]))[late]
    names = table.feature_names
    scorers: dict[str, Callable[[BoolArray], LogisticRanker]] = {
        "item's liked share": lambda chosen: _column(names, rows[chosen], MOVIE_SHARE),
        "user's liked share": lambda chosen: _column(names, rows[chosen], USER_SHARE),
    }
    if 0 < liked[early].sum() < early.sum():
        scorers["logistic"] = lambda chosen: _fit_like_score(names, rows[chosen], liked[chosen])
    held_out: dict[str, _Examples] = {}
    losses: dict[str, float] = {}
    auc: dict[str, float] = {}
    for name, fit in scorers.items():
        score = fit(early).score(rows[late]).astype(np.float64)
        held_out[name] = _Examples(score, liked[late], later)
        losses |= {f"{name}, {kind}": loss for kind, loss in held_out[name].losses().items()}
        if 0 < liked[late][later].sum() < later.sum():
            auc[name] = float(roc_auc_score(liked[late][later], score[later]))
    best = min(losses, key=lambda option: losses[option]) if losses else "item's liked share, platt"
    scorer, kind = best.split(", ")
    every = held_out[scorer]
    facts = {
        "chosen": best,
        "log_loss": {**losses, "constant": every.constant_loss()} if losses else {},
        "auc": auc,
        "n_compared": int(later.sum()),
        "examples": int(late.sum()),
        "base_rate": float(liked[late].mean()),
    }
    return scorers[scorer](np.ones(len(rows), dtype=bool)), MAPS[kind](every.score, every.happened), facts


def _fit_like_score(names: tuple[str, ...], rows: FloatArray, liked: BoolArray) -> LogisticRanker:
    """Logistic regression on LIKE_FEATURES, standardised, unknown values at the mean, L2; other columns weigh 0."""
    columns = np.array([names.index(name) for name in LIKE_FEATURES])
    mean, scale, standard = standardised(rows[:, columns].astype(np.float64))
    model = LogisticRegression(C=STRENGTH, max_iter=500).fit(standard, liked)
    full = np.zeros((3, len(names)), dtype=np.float32)
    full[1] = 1.0
    full[:, columns] = mean, scale, model.coef_[0]
    return LogisticRanker(names, full[0], full[1], full[2], float(model.intercept_[0]))


def _column(names: tuple[str, ...], rows: FloatArray, name: str) -> LogisticRanker:
    """One column less its mean, which stands for unknown values."""
    mean, weights = np.zeros((2, len(names)), dtype=np.float32)
    at = names.index(name)
    known = rows[~np.isnan(rows[:, at]), at]
    mean[at], weights[at] = known.mean() if len(known) else 0.0, 1.0
    return LogisticRanker(names, mean, np.ones(len(names), dtype=np.float32), weights, 0.0)


def _log_loss(probability: DoubleArray, happened: BoolArray) -> float:
    return float(log_loss(happened, probability, labels=[False, True]))
