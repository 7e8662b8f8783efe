"""The one function that turns user states and candidates into the ranker's feature matrix.

Training, evaluation and the service all call it. Missing is NaN where the model should know that it is missing (a
retriever's rank of an item that it did not find, the year of an item without one) and a neutral value elsewhere. A cold
user has zeros for habits.

Shapes: B users, K candidates, L history length, S retrievers, N items, D dimensions, G genres, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
from recsys.columns import LIKED_RATING
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import ITEM_FEATURES, POPULARITY_ALL, SECONDS_PER_DAY, ItemStats
from recsys.features.state import StateBatch

ONE: Final = np.float32(1)  # keeps divisors and bounds in single precision
SESSION_GAP_S = 3_600
RECENT = 5  # "the last few items"
LONGEST_GAP_S = 365 * SECONDS_PER_DAY

_SOURCE_FEATURES = ("score", "score_below_best", "rank")
_FEATURES = (
    *("merged_score", "merged_rank"),
    # candidate against the last items
    *("similarity_last", "similarity_recent_mean", "similarity_recent_max", "similarity_history", "similarity_liked"),
    "covisitation_last",
    # user x genre and user x time of release
    *("genre_affinity", "genre_rating_affinity", "genre_share_last", "decade_distance"),
    # item, as of the day before
    *(*ITEM_FEATURES, "decade", "popularity_distance"),
    # the user's habits
    *("user_events", "user_mean_rating", "user_rating_std", "user_liked_share", "user_last_rating", "user_gap"),
    *("user_session_length", "user_same_second_share", "user_popularity", "user_decade"),
)

# What the ablation leaves out together: every feature fits exactly one of these patterns, wholly.
FEATURE_GROUPS: Final = {
    "retriever scores": r"\w+_(score|score_below_best|rank)",
    "similarity": r"similarity_\w+|covisitation_last",
    "genres and decades": r"genre_\w+|decade|decade_distance|user_decade",
    "item statistics": r"popularity_(?!score|rank)\w+|mean_rating|liked_share|days_since_\w+",
    "user habits": r"user_(?!decade)\w+",
}

_PLACE: Final = {name: place for place, name in enumerate(_FEATURES)}


def feature_names(retriever_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the F columns for the given retrievers, in the order of the matrix."""
    return (*(f"{s}_{f}" for s in retriever_names for f in _SOURCE_FEATURES), *_FEATURES)


@dataclass(frozen=True)
class CandidateSignals:
    """What retrieval says about K candidates of each of B users."""

    retriever_names: tuple[str, ...]
    item_idx: IntArray  # (B, K) -1 where there is no candidate
    merged_score: FloatArray  # (B, K)
    scores: FloatArray  # (B, K, S)
    ranks: npt.NDArray[np.int32]  # (B, K, S) 0 where the retriever did not return the item
    covisitation_last: FloatArray  # (B, K) with the newest item alone


def candidate_features(
    states: StateBatch, signals: CandidateSignals, stats: ItemStats, catalogue: Catalogue, unit_vectors: FloatArray
) -> FloatArray:
    """(B, K, F) features. `unit_vectors` (N, D) are the item vectors scaled to length 1. Rows of absent candidates
    (item_idx -1) hold numbers without meaning.

    For one user the number of NumPy calls decides the time: columns side by side are written together, and what depends
    on the item alone is only gathered here.
    """
    n_users, k = signals.item_idx.shape
    first = len(signals.retriever_names) * len(_SOURCE_FEATURES)
    out = np.empty((n_users, k, first + len(_FEATURES)), dtype=np.float32)
    rest = out[:, :, first:]
    safe = np.maximum(signals.item_idx, 0)
    past = _Past(states)
    _put_retrievers(out[:, :, :first], signals)
    rest[:, :, _PLACE["merged_score"]] = signals.merged_score
    rest[:, :, _PLACE["merged_rank"]] = np.arange(1, k + 1)
    _put_similarity(rest, past, safe, unit_vectors)
    rest[:, :, _PLACE["covisitation_last"]] = signals.covisitation_last
    _put_genres(rest, past, safe, catalogue)

    # items, and how far they are from the user's: user columns (B,)
    known_decades = np.where(past.known, catalogue.decades[past.item_idx], np.float32(0))
    user_decade = np.where(past.count > 0, known_decades.sum(axis=1) / past.n[:, 0], catalogue.mean_decade)
    rest[:, :, _PLACE["decade_distance"]] = np.abs(catalogue.decades[safe] - user_decade[:, None])
    rest[:, :, _PLACE["decade"]] = catalogue.known_decades[safe]
    columns = stats.columns
    rest[:, :, _PLACE[ITEM_FEATURES[0]] : _PLACE[ITEM_FEATURES[-1]] + 1] = columns.take(safe, axis=0)
    lately = slice(-2 * RECENT, None)
    seen_popularity = columns[past.item_idx[:, lately], POPULARITY_ALL] * past.known[:, lately]
    user_popularity = seen_popularity.sum(axis=1) / np.maximum(past.known[:, lately].sum(axis=1), ONE)
    popularity = rest[:, :, _PLACE["popularity_all"]]
    rest[:, :, _PLACE["popularity_distance"]] = popularity - user_popularity[:, None]
    habits = np.stack([*_habits(past), user_popularity, user_decade], axis=1)  # (B, columns to the end)
    rest[:, :, _PLACE["user_events"] :] = habits[:, None, :]
    return out


class _Past:
    """What several groups of features read of the users' histories."""

    def __init__(self, states: StateBatch) -> None:
        self.states = states
        self.present = states.item_idx >= 0  # (B, L)
        self.item_idx = np.maximum(states.item_idx, 0)
        self.known = self.present.astype(np.float32)
        self.count = self.known.sum(axis=1)  # (B,) events in the window
        self.n = np.maximum(self.count, ONE)[:, None]
        self.n_events = np.maximum(states.n_events, 1.0)  # (B,) of the whole history, as is the mean
        self.mean_rating = states.rating_sum / self.n_events


def _put_retrievers(out: FloatArray, signals: CandidateSignals) -> None:
    """`out` (B, K, 3 S)"""
    columns = out.reshape(*out.shape[:2], len(signals.retriever_names), len(_SOURCE_FEATURES))  # a view of it
    present = (signals.item_idx >= 0)[:, None, :]
    best = np.where(present, signals.scores.transpose(0, 2, 1), np.float32(-np.inf)).max(axis=2, initial=-np.inf)
    columns[:, :, :, 0] = signals.scores
    columns[:, :, :, 1] = signals.scores - np.where(np.isfinite(best), best, np.float32(0))[:, None, :]
    columns[:, :, :, 2] = np.where(signals.ranks > 0, signals.ranks, np.float32(np.nan))


def _put_similarity(rest: FloatArray, past: _Past, safe: IntArray, unit_vectors: FloatArray) -> None:
    """Cosines with the newest items, and with means over the history."""
    candidates = unit_vectors.take(safe, axis=0)  # (B, K, D)
    vectors = unit_vectors.take(past.item_idx, axis=0)  # (B, L, D)
    vectors *= past.known[:, :, None]
    similarity = np.matmul(vectors[:, -RECENT:], candidates.transpose(0, 2, 1))  # (B, RECENT, K)
    recent = past.known[:, -RECENT:, None]
    rest[:, :, _PLACE["similarity_last"]] = similarity[:, -1]
    rest[:, :, _PLACE["similarity_recent_mean"]] = similarity.sum(axis=1) / np.maximum(recent.sum(axis=1), ONE)
    rest[:, :, _PLACE["similarity_recent_max"]] = np.where(recent > 0, similarity, -ONE).max(axis=1)
    mean = vectors.sum(axis=1) / past.n  # (B, D)
    rest[:, :, _PLACE["similarity_history"]] = np.einsum("bkd,bd->bk", candidates, mean)
    liked = past.known * (past.states.ratings >= LIKED_RATING)
    liked_mean = np.einsum("bld,bl->bd", vectors, liked) / np.maximum(liked.sum(axis=1, keepdims=True), ONE)
    rest[:, :, _PLACE["similarity_liked"]] = np.einsum("bkd,bd->bk", candidates, liked_mean)


def _put_genres(rest: FloatArray, past: _Past, safe: IntArray, catalogue: Catalogue) -> None:
    """The candidate's genres against how often the user meets them, how they are rated, and the newest item's."""
    candidates = catalogue.genres.take(safe, axis=0)  # (B, K, G)
    n_genres = catalogue.genre_counts[safe]
    seen = catalogue.genres.take(past.item_idx, axis=0)  # (B, L, G)
    seen *= past.known[:, :, None]
    times_seen = seen.sum(axis=1)  # (B, G)
    centred = np.where(past.present, past.states.ratings - past.mean_rating[:, None], 0.0).astype(np.float32)
    liking = np.einsum("blg,bl->bg", seen, centred) / (times_seen + np.float32(3))
    last = seen[:, -1] / np.maximum(seen[:, -1].sum(axis=1, keepdims=True), ONE)
    rest[:, :, _PLACE["genre_affinity"]] = np.einsum("bkg,bg->bk", candidates, times_seen / past.n) / n_genres
    rest[:, :, _PLACE["genre_rating_affinity"]] = np.einsum("bkg,bg->bk", candidates, liking) / n_genres
    rest[:, :, _PLACE["genre_share_last"]] = np.einsum("bkg,bg->bk", candidates, last)


def _habits(past: _Past) -> tuple[npt.NDArray[np.floating], ...]:
    """The user's columns (B,), in their order from user_events to user_same_second_share."""
    states, known, n = past.states, past.present, past.n_events
    variance = np.maximum(states.rating_square_sum / n - past.mean_rating**2, 0.0)
    times = states.timestamps
    gap = times[:, 1:] - times[:, :-1]
    both = known[:, 1:] & known[:, :-1]
    # events since the last pause: count back from the newest until a gap longer than SESSION_GAP_S
    pause = both & (gap > SESSION_GAP_S)
    length = known.shape[1]
    last_pause = np.where(pause.any(axis=1), length - 2 - pause[:, ::-1].argmax(axis=1), -1)
    since_last = np.maximum(np.where(known[:, -1], states.now - times[:, -1], LONGEST_GAP_S), 0)
    since_last = np.minimum(since_last, LONGEST_GAP_S)
    session = np.minimum(length - 1 - last_pause, known.sum(axis=1))
    session = np.where(since_last > SESSION_GAP_S, 0, session)
    return (
        np.log1p(states.n_events),
        past.mean_rating,
        np.sqrt(variance),
        states.n_liked / n,
        states.ratings[:, -1],
        np.log1p(since_last),
        np.log1p(session),
        (both & (gap == 0)).sum(axis=1) / np.maximum(both.sum(axis=1), 1),
    )
