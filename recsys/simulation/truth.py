"""What is true of items and people: how likely somebody is to watch what they look at, and how they would rate it.

A truth is that of the synthetic data set itself, `from_synthetic`, or one that a fitted model suggests for any other,
`from_vectors`. Opinions follow the constants of the synthetic data set, which are roughly those of MovieLens.

Shapes: N items, D latent dimensions, P people, U of them known, B people of one call, K items of each, E events.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, ndtr

from recsys.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from recsys.atomic_io import read_json
from recsys.columns import ITEM_ID, LIKED_RATING, RATING, TIMESTAMP, USER_ID
from recsys.data.layouts import SYNTHETIC_MARK
from recsys.data.synthetic import people as synthetic
from recsys.data.synthetic import writer
from recsys.data.synthetic.movies import make_movies
from recsys.data.synthetic.size import DAY_S, START_UTC, WorldSize
from recsys.data.synthetic.writer import stream
from recsys.errors import ConfigError, DataError
from recsys.features.catalogue import positions_of

DRIFT_DAYS: Final = 365.0  # as in the synthetic data set
# Logits of P(watch | looked at). `_calibrated` chooses the intercept that gives RANDOM_WATCH.
TASTE_LOGITS: Final = 1.2  # for a unit of affinity, which is about its standard deviation over people and items
APPEAL_LOGITS: Final = 0.7  # for one standard deviation of an item's fame
NOVELTY_LOGITS, NOVELTY_DAYS = 0.8, 75.0  # on the day of release, and how slowly it fades
TREND_DAYS: Final = 3.0  # a trend has 63 % of its strength by then
RANDOM_WATCH: Final = 0.15  # mean P(watch | looked at) over people and items
SAMPLE: Final = 400  # people that `_calibrated` asks
VISITS_PER_DAY: Final = 0.4  # mean over people
# Of `from_vectors`.
DRIFT_SHARE: Final = 0.8  # variance of long-run drifts, as a share of that of tastes
SHRINK_TASTE, SHRINK_STARS = 20, 10  # with so many events, half of what they say is believed


@dataclass(frozen=True)
class People:
    """user_ids      (P,) int64
    taste, drift     (P, D) float32: the taste at `arrived_at_s`, and the way that it goes from there in the long run
    bias             (P,) float32 stars that this person gives above the others
    visits_per_day   (P,) float32, of somebody neither pleased nor disappointed
    arrived_at_s     (P,) int64 seconds UTC
    drift_days       63 % of the drift has happened by then
    """

    user_ids: IntArray
    taste: FloatArray
    drift: FloatArray
    bias: FloatArray
    visits_per_day: FloatArray
    arrived_at_s: IntArray
    drift_days: float = DRIFT_DAYS

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, rows: IntArray | BoolArray) -> "People":
        """Those of the rows, in their order; a row may be named more than once."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "drift_days"})

    def taste_at(self, moment_s: IntArray) -> FloatArray:
        """(P, D) at the moment (P,) or (1,); before the arrival, that of the arrival."""
        age_days = np.maximum(moment_s - self.arrived_at_s, 0) / DAY_S
        return np.asarray(self.taste - np.expm1(-age_days / self.drift_days)[:, None] * self.drift, np.float32)


@dataclass(frozen=True)
class Utility:
    """All (B, K). logits: latent utility, whose sigmoid is `watch` = P(watch | looked at) once the item is released;
    stars: mean opinion, before it is rounded to 1..5; like: P(4 stars or more | watched)."""

    logits: DoubleArray
    watch: DoubleArray
    stars: DoubleArray
    like: DoubleArray


@dataclass(frozen=True)
class Truth:
    """Hidden from every model.

    item_ids       (N,) int64, ascending
    factors        (N, D) float32; affinity is taste . factor
    quality        (N,) float32, standardised; raises every opinion
    appeal         (N,) float32, standardised fame; raises every P(watch)
    released_at_s  (N,) int64 seconds UTC; nobody can watch it before
    people         the `n_known` of the data set, then those who are still to come
    intercept      of the logits
    trend          (N,) float32 logits that items gain for everybody from `trend_at_s` on; None for no trend
    """

    item_ids: IntArray
    factors: FloatArray
    quality: FloatArray
    appeal: FloatArray
    released_at_s: IntArray
    people: People
    n_known: int
    intercept: float = 0.0
    trend: FloatArray | None = None
    trend_at_s: int = 0

    def utility(self, people: People, item_idx: IntArray | None, moment_s: IntArray) -> Utility:
        """Of B people at their moment (B,): the items (B, K) named by row, or all N of them where None."""
        taste = people.taste_at(moment_s)  # (B, D)
        item = np.arange(len(self.item_ids))[None] if item_idx is None else item_idx
        # Named items not by BLAS, whose sums depend on how many threads it has: outcomes must not.
        rows = None if item_idx is None else self.factors[item_idx]  # (B, K, D)
        affinity = taste @ self.factors.T if rows is None else np.einsum("bd,bkd->bk", taste, rows)
        age_days = (moment_s[:, None] - self.released_at_s[item]) / DAY_S  # (B, K)
        novelty = NOVELTY_LOGITS * np.exp(-np.maximum(age_days, 0) / NOVELTY_DAYS)
        logits = self.intercept + TASTE_LOGITS * affinity + APPEAL_LOGITS * self.appeal[item] + novelty
        if self.trend is not None:
            risen = -np.expm1(-np.maximum(moment_s - self.trend_at_s, 0) / DAY_S / TREND_DAYS)  # (B,)
            logits += risen[:, None] * self.trend[item]
        stars = synthetic.MEAN_STARS + people.bias[:, None] + synthetic.QUALITY_STARS * self.quality[item]
        stars = stars + synthetic.TASTE_STARS * affinity.astype(np.float64)
        watch = np.where(age_days >= 0, expit(logits), 0.0)
        return Utility(logits, watch, stars, ndtr((stars - (LIKED_RATING - 0.5)) / synthetic.NOISE_STARS))


def from_synthetic(folder: Path, n_new: int = 0) -> Truth:
    """The movies and people behind the synthetic files in a folder, with the ids they have there, and `n_new` more whom
    a larger world would have had. Raises ConfigError for files of another generator."""
    made = read_json(folder / SYNTHETIC_MARK)
    if made.get("generator_version") != writer.GENERATOR_VERSION:
        raise ConfigError(f"Another version of the generator made the data in {folder}. Generate them again.")
    size, seed = WorldSize(*(made[name] for name in ("n_users", "n_items", "n_events"))), made["seed"]
    movies = make_movies(stream(seed, writer.CATALOGUE), size)
    society = synthetic.make_society(stream(seed, writer.SOCIETY))
    rows = range(size.n_users + n_new)
    persons = [synthetic.make_person(stream(seed, writer.FIRST_USER + row), society, size) for row in rows]
    counts = synthetic.make_counts(stream(seed, writer.COUNTS), size)
    people = People(
        user_ids=np.arange(1, len(persons) + 1),
        taste=np.stack([p.taste for p in persons]),
        drift=np.stack([p.drift for p in persons]),
        bias=np.array([p.bias for p in persons], np.float32),
        visits_per_day=_visits_per_day(counts, n_new, np.random.default_rng(seed)),
        arrived_at_s=np.array([p.arrival_utc for p in persons]),
    )
    appeal = _standardised(movies.log_base)
    truth = Truth(movies.item_id, movies.factors, movies.quality, appeal, movies.release_utc, people, size.n_users)
    return _calibrated(truth, START_UTC + size.days * DAY_S)


def from_vectors(item_ids: IntArray, vectors: FloatArray, events: pd.DataFrame, seed: int, n_new: int = 0) -> Truth:
    """A truth that events and a fitted model's item vectors (N, D) suggest; `item_ids` (N,) ascending.

    A known taste is the mean direction of what the person rated, less everybody's, shrunk where they rated little. The
    tastes of newcomers and all drifts are normal draws with the covariance of known tastes. Every item counts as
    released long ago: a first rating is no release. In such a world a model with these vectors is at an advantage over
    other kinds. Raises DataError where no event is about these items, or the vectors tell no two users apart.
    """
    rng = np.random.default_rng(seed)
    events = events[positions_of(item_ids, events[ITEM_ID]) >= 0]
    item = positions_of(item_ids, events[ITEM_ID])  # (E,)
    user_ids, user = np.unique(events[USER_ID].to_numpy(np.int64), return_inverse=True)
    n, known = len(item_ids), len(user_ids)
    of_user, of_item = np.bincount(user, minlength=known), np.bincount(item, minlength=n)

    factors = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    rows = factors[item] - (of_item @ factors) / max(len(item), 1)  # (E, D)
    sums = np.stack([np.bincount(user, column, known) for column in rows.T], axis=1)
    taste = sums / (of_user + SHRINK_TASTE)[:, None]  # (U, D)
    spread = float((taste @ factors.T).std()) if known else 0.0
    if spread < 1e-9:
        raise DataError("These item vectors tell no two users apart. Pass the vectors and events of one fitted model.")
    taste = taste / spread
    draws = rng.multivariate_normal(np.zeros(taste.shape[1]), np.atleast_2d(np.cov(taste.T)), known + 2 * n_new)

    above = (events[RATING] - events[RATING].mean()).to_numpy(np.float64)  # (E,)
    item_stars = np.bincount(item, above, n) / (of_item + SHRINK_STARS)
    bias = np.bincount(user, above - item_stars[item], known) / (of_user + SHRINK_STARS)
    end_s = int(events[TIMESTAMP].max())
    people = People(
        user_ids=np.concatenate([user_ids, user_ids[-1] + 1 + np.arange(n_new)]),
        taste=np.concatenate([taste, draws[known + n_new :]]).astype(np.float32),
        drift=(np.sqrt(DRIFT_SHARE) * draws[: known + n_new]).astype(np.float32),
        bias=np.concatenate([bias, rng.choice(bias, n_new)]).astype(np.float32),
        visits_per_day=_visits_per_day(of_user, n_new, rng),
        arrived_at_s=np.full(known + n_new, end_s),  # known tastes are those of the end
    )
    quality, appeal = _standardised(item_stars), _standardised(np.log1p(of_item))
    return _calibrated(Truth(item_ids, factors, quality, appeal, np.zeros(n, np.int64), people, known), end_s)


def _calibrated(truth: Truth, moment_s: int) -> Truth:
    """With the intercept that gives RANDOM_WATCH at a moment, over known people and released items."""
    people = truth.people.take(np.arange(min(SAMPLE, truth.n_known)))
    logits = truth.utility(people, None, np.array([moment_s])).logits[:, truth.released_at_s <= moment_s]
    return replace(truth, intercept=float(brentq(lambda x: expit(logits + x).mean() - RANDOM_WATCH, -30, 30)))


def _visits_per_day(n_events: IntArray, n_new: int, rng: np.random.Generator) -> FloatArray:
    """By the root of the events: the busiest come a few times as often as others; newcomers as some known person."""
    rate = np.sqrt(np.concatenate([n_events, rng.choice(n_events, n_new)]))
    return np.asarray(rate * VISITS_PER_DAY / rate.mean(), np.float32)


def _standardised(values: np.ndarray) -> FloatArray:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12), np.float32)
