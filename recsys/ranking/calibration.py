"""Scores as probabilities: of being the next item, and of being liked if watched.

P(watch) is the probability that the item is among the events of the user's next second with events, given that there
is such a second and that it passes the request's filters. A ranker's score becomes a share: the softmax, at a fitted
temperature, over all candidates that the ranker saw. The share's logarithm goes through a map fitted on later contexts.
The probabilities need not sum to 1: the next item may be no candidate, and one second may hold several.

P(like) is the probability of a rating of at least `columns.LIKED_RATING`, given that the user watches the item: a
logistic score of the feature row through a map of its own, learnt from items that retrieval had found.

Sources: C. Guo and others, On Calibration of Modern Neural Networks, ICML 2017 (temperature); J. Platt, Probabilistic
Outputs for Support Vector Machines, 1999; B. Zadrozny, C. Elkan, Transforming Classifier Scores into Accurate
Multiclass Probability Estimates, KDD 2002 (isotonic regression).

Shapes: B users, K candidates, k answers, F features, R rows, M knots.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.atomic_io import read_json, write_json
from recsys.errors import BundleError, ConfigError
from recsys.ranking.ranker import LogisticRanker

MAPS, LIKE = "calibration.json", "like.json"
COUNT = "user_events"
HABITS = ("user_mean_rating", "user_rating_std", "user_liked_share", "user_last_rating")  # without events: unknown


@dataclass(frozen=True)
class Platt:
    """1 / (1 + exp(-(slope * score + intercept))). Raises ConfigError for a falling slope.

    >>> Platt(2.0, -1.0)([0.5, 1.0]).round(4).tolist()
    [0.5, 0.7311]
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (self.slope >= 0 and np.isfinite(self.slope) and np.isfinite(self.intercept)):
            raise ConfigError(f"a Platt map needs a finite slope of at least 0 and a finite intercept, got {self}")

    def __call__(self, score: npt.ArrayLike) -> DoubleArray:
        return np.asarray(expit(self.slope * np.asarray(score, dtype=np.float64) + self.intercept))

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "platt", **asdict(self)}


@dataclass(frozen=True)
class Isotonic:
    """Straight lines between knots (M,), flat beyond the first and the last.

    Raises ConfigError where there is no knot, where `score` does not rise or `probability` falls or leaves [0, 1].

    >>> Isotonic((0.0, 1.0), (0.2, 0.6))([-3.0, 0.5, 9.0]).round(4).tolist()
    [0.2, 0.4, 0.6]
    """

    score: tuple[float, ...]
    probability: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = np.asarray(self.score), np.asarray(self.probability)
        rises = len(x) == len(y) > 0 and bool((np.diff(x) > 0).all() and (np.diff(y) >= 0).all())
        if not (rises and np.isfinite(x).all() and y[0] >= 0 and y[-1] <= 1):
            raise ConfigError("an isotonic map needs knots: rising scores, and probabilities in [0, 1] that never fall")

    @cached_property
    def _knots(self) -> tuple[DoubleArray, DoubleArray]:
        return np.asarray(self.score, dtype=np.float64), np.asarray(self.probability, dtype=np.float64)

    def __call__(self, score: npt.ArrayLike) -> DoubleArray:
        return np.asarray(np.interp(np.asarray(score, dtype=np.float64), *self._knots))

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "isotonic", **asdict(self)}


ProbabilityMap = Platt | Isotonic  # from a score to a probability that never falls as the score rises; NaN stays NaN


def map_of(stored: dict[str, Any]) -> ProbabilityMap:
    """The map that `as_dict` described. Raises BundleError for any other dict."""
    try:
        if stored["kind"] == "platt":
            return Platt(float(stored["slope"]), float(stored["intercept"]))
        if stored["kind"] == "isotonic":
            return Isotonic(tuple(stored["score"]), tuple(stored["probability"]))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"{MAPS} holds a map that cannot be read ({error}); train again") from error
    raise BundleError(f"{MAPS} holds a map of the unknown kind {stored['kind']!r}; train again")


def log_shares(scores: npt.NDArray[Any], temperature: float) -> DoubleArray:
    """(B, K) logarithm of the softmax over each row's finite scores; -inf where the score is -inf.

    >>> np.exp(log_shares(np.array([[1.0, 1.0, -np.inf], [np.log(9.0), 0.0, -np.inf]]), 2.0)).round(4).tolist()
    [[0.5, 0.5, 0.0], [0.75, 0.25, 0.0]]
    """
    logits = np.asarray(scores, dtype=np.float64) / temperature
    best = logits.max(axis=1, keepdims=True, initial=-np.inf)
    best = np.where(np.isfinite(best), best, 0.0)
    total = np.exp(logits - best).sum(axis=1, keepdims=True)
    return np.asarray(logits - best - np.log(np.where(total > 0, total, 1.0)))


@dataclass(frozen=True)
class Probabilities:
    """The fitted parts.

    temperature   the ranker's scores are divided by it before the softmax
    watch_map     from the log share to P(watch)
    like_score    over all F columns of the ranker's features, 0 for those that it does not use
    like_map      from its score to P(like)
    """

    temperature: float
    watch_map: ProbabilityMap
    like_score: LogisticRanker
    like_map: ProbabilityMap

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"the temperature must be above 0, got {self.temperature}")

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self.like_score.feature_names

    def watch(self, ranked: FloatArray, position: IntArray) -> FloatArray:
        """(B, k) P(watch). `ranked` (B, K): scores of everything that the ranker saw, -inf where there was no
        candidate; `position` (B, k): places in it. NaN where the place is negative or beyond K, not ranked, and
        where there is no candidate."""
        known = (position >= 0) & (position < ranked.shape[1])
        shares = np.take_along_axis(log_shares(ranked, self.temperature), np.where(known, position, 0), axis=1)
        shares = np.where(known & np.isfinite(shares), shares, np.nan)
        return self.watch_map(shares).astype(np.float32)

    def like(self, features: FloatArray, position: IntArray) -> FloatArray:
        """(B, k) P(like). `features` (B, K, F); places and NaN as for `watch`."""
        known = (position >= 0) & (position < features.shape[1])
        used, model = self._like_columns
        place = np.where(known, position, 0)[:, :, None]
        rows = features[np.arange(len(features))[:, None, None], place, used]  # (B, k, columns in use)
        score = like_scores(model, rows.reshape(-1, len(used))).reshape(position.shape)
        return np.where(known, self.like_map(score), np.nan).astype(np.float32)

    @cached_property
    def _like_columns(self) -> tuple[IntArray, LogisticRanker]:
        """The columns that the like score reads, and the score over these alone."""
        full = self.like_score
        used = np.flatnonzero((full.weights != 0) | (np.array(full.feature_names) == COUNT))
        names = [full.feature_names[i] for i in used]
        return used, LogisticRanker(names, full.mean[used], full.scale[used], full.weights[used], full.intercept)

    def save(self, folder: Path) -> None:
        maps = {"watch": self.watch_map.as_dict(), "like": self.like_map.as_dict(), "temperature": self.temperature}
        write_json(folder / MAPS, maps)
        self.like_score.save(folder, LIKE)

    @classmethod
    def load(cls, folder: Path) -> "Probabilities":
        """Raises BundleError where a file is missing or a map cannot be read."""
        for name in (MAPS, LIKE):
            if not (folder / name).exists():
                raise BundleError(f"{folder / name} is missing; train again with `recsys train`")
        stored = read_json(folder / MAPS)
        watch_map, like_map = map_of(stored["watch"]), map_of(stored["like"])
        return cls(float(stored["temperature"]), watch_map, LogisticRanker.load(folder, LIKE), like_map)


def like_scores(model: LogisticRanker, rows: FloatArray) -> FloatArray:
    """(R,) logistic scores of feature rows (R, F); unknown values count as the column's mean."""
    return model.score(habits_known(rows, model.feature_names))


def habits_known(rows: FloatArray, names: tuple[str, ...]) -> FloatArray:
    """Feature rows (R, F) with NaN for a newcomer's habits: they are unknown, not 0 as the features say."""
    newcomer = np.flatnonzero(rows[:, names.index(COUNT)] == 0)
    if len(newcomer) == 0:
        return rows
    known = rows.copy()
    known[newcomer[:, None], np.flatnonzero(np.isin(names, HABITS))] = np.nan
    return known
