"""The one function that turns user states and candidates into the ranker's feature matrix.

Stage: features; both tracks. In: a `StateBatch`, the merged `CandidateSignals`, `ItemStats` of the day, and what the
bundle holds about movies. Out: (B, K, F) float32 in the order of `feature_names`. Absent: any other place that
computes a ranking feature; the training table, replay, batch and the service all call this.

Missing is NaN where the model should know that it is missing (a source's rank of a movie that it did not find, the
year of a movie without one) and a neutral value elsewhere. A cold user has zeros for habits.

Shapes: B users, K candidates, L history length, S sources, N movies, D dimensions, G genres, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.columns import LIKED_RATING
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import SECONDS_PER_DAY, ItemStats
from recsys.features.state import StateBatch

Float = npt.NDArray[np.float32]
Idx = npt.NDArray[np.int64]
Put = Callable[[str, npt.NDArray[Any]], None]  # writes one column, broadcast to (B, K)

PRIOR_RATINGS, PRIOR_MEAN = 5.0, 3.5  # a movie's mean rating is shrunk as if it had five ratings of 3.5
SESSION_GAP_S = 3_600
RECENT = 5  # "the last few movies"
LONGEST_GAP_S = 365 * SECONDS_PER_DAY

_SOURCE_FEATURES = ("score", "score_below_best", "rank")
_FEATURES = (
    # what retrieval thought of the candidate as a whole
    "merged_score",
    "merged_rank",
    # candidate against the last movies
    "similarity_last",
    "similarity_recent_mean",
    "similarity_recent_max",
    "similarity_history",
    "similarity_liked",
    "covisitation_last",
    # user x genre and user x time of release
    "genre_affinity",
    "genre_rating_affinity",
    "genre_share_last",
    "decade_distance",
    # movie, as of the day before
    "popularity_7d",
    "popularity_30d",
    "popularity_365d",
    "popularity_all",
    "popularity_trend",
    "mean_rating",
    "liked_share",
    "days_since_first_rated",
    "days_since_last_rated",
    "decade",
    "popularity_distance",
    # the user's habits
    "user_events",
    "user_mean_rating",
    "user_rating_std",
    "user_liked_share",
    "user_last_rating",
    "user_gap",
    "user_session_length",
    "user_same_second_share",
    "user_popularity",
    "user_decade",
)

# What the ablation leaves out together: every feature fits exactly one of these patterns, wholly.
FEATURE_GROUPS: Final = {
    "source scores": r"\w+_(score|score_below_best|rank)",
    "similarity": r"similarity_\w+|covisitation_last",
    "genres and decades": r"genre_\w+|decade|decade_distance|user_decade",
    "movie statistics": r"popularity_(?!score|rank)\w+|mean_rating|liked_share|days_since_\w+",
    "user habits": r"user_(?!decade)\w+",
}


def feature_names(source_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the F columns for the given sources, in the order of the matrix."""
    return (*(f"{s}_{f}" for s in source_names for f in _SOURCE_FEATURES), *_FEATURES)


@dataclass(frozen=True)
class CandidateSignals:
    """What retrieval says about K candidates of each of B users.

    item_idx      (B, K), -1 where there is no candidate
    merged_score  (B, K)
    scores        (B, K, S); ranks (B, K, S) int32, 0 where the source did not return the movie
    covisitation_last   (B, K) co-visitation of the candidate with the newest movie alone
    """

    source_names: tuple[str, ...]
    item_idx: Idx
    merged_score: Float
    scores: Float
    ranks: npt.NDArray[np.int32]
    covisitation_last: Float


def candidate_features(
    states: StateBatch,
    signals: CandidateSignals,
    stats: ItemStats,
    catalogue: Catalogue,
    unit_vectors: Float,
) -> Float:
    """(B, K, F) features. `unit_vectors` (N, D) are the movie vectors scaled to length 1. Rows of absent candidates
    (item_idx -1) hold numbers without meaning and must not be read."""
    b, k = signals.item_idx.shape
    names = feature_names(signals.source_names)
    out = np.empty((b, k, len(names)), dtype=np.float32)
    column = {name: i for i, name in enumerate(names)}

    def put(name: str, values: npt.NDArray[Any]) -> None:
        out[:, :, column[name]] = values

    safe = np.maximum(signals.item_idx, 0)
    present = signals.item_idx >= 0
    _put_sources(put, signals, present)
    history = np.maximum(states.item_idx, 0)  # (B, L)
    known = (states.item_idx >= 0).astype(np.float32)
    count = known.sum(axis=1)  # (B,)
    _put_similarity(put, states, safe, history, known, unit_vectors)
    put("covisitation_last", signals.covisitation_last)

    # genres and decades
    n = np.maximum(count, 1.0)[:, None]
    mean_rating = states.rating_sum / np.maximum(states.n_events, 1.0)  # (B,)
    genres = catalogue.genres[history] * known[:, :, None]  # (B, L, G)
    share = genres.sum(axis=1) / n  # (B, G)
    centred = np.where(states.item_idx >= 0, states.ratings - mean_rating[:, None], 0.0).astype(np.float32)
    liking = np.einsum("blg,bl->bg", genres, centred) / (genres.sum(axis=1) + 3.0)
    candidate_genres = catalogue.genres[safe]  # (B, K, G)
    n_genres = np.maximum(candidate_genres.sum(axis=2), 1.0)
    put("genre_affinity", np.einsum("bkg,bg->bk", candidate_genres, share) / n_genres)
    put("genre_rating_affinity", np.einsum("bkg,bg->bk", candidate_genres, liking) / n_genres)
    last_genres = genres[:, -1] / np.maximum(genres[:, -1].sum(axis=1, keepdims=True), 1.0)
    put("genre_share_last", np.einsum("bkg,bg->bk", candidate_genres, last_genres))
    decade = catalogue.decades
    user_decade = np.where(count > 0, (decade[history] * known).sum(axis=1) / n[:, 0], np.float32(np.mean(decade)))
    put("decade_distance", np.abs(decade[safe] - user_decade[:, None]))
    put("decade", np.where(np.isnan(catalogue.years[safe]), np.nan, decade[safe]))
    put("user_decade", user_decade[:, None])

    popularity = _put_movie(put, safe, stats)
    user_popularity = (popularity[history] * known)[:, -2 * RECENT :].sum(axis=1) / np.maximum(
        known[:, -2 * RECENT :].sum(axis=1), 1.0
    )
    put("popularity_distance", popularity[safe] - user_popularity[:, None])
    put("user_popularity", user_popularity[:, None])
    _put_habits(put, states, mean_rating)
    return out


def _put_sources(put: Put, signals: CandidateSignals, present: npt.NDArray[np.bool_]) -> None:
    for s, name in enumerate(signals.source_names):
        scores = signals.scores[:, :, s]
        best = np.where(present, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
        put(f"{name}_score", scores)
        put(f"{name}_score_below_best", scores - np.where(np.isfinite(best), best, 0.0))
        put(f"{name}_rank", np.where(signals.ranks[:, :, s] > 0, signals.ranks[:, :, s], np.nan))
    put("merged_score", signals.merged_score)
    put("merged_rank", np.arange(1, present.shape[1] + 1)[None, :])


def _put_similarity(put: Put, states: StateBatch, safe: Idx, history: Idx, known: Float, unit_vectors: Float) -> None:
    candidates = unit_vectors[safe]  # (B, K, D)
    past = unit_vectors[history] * known[:, :, None]  # (B, L, D)
    similarity = np.matmul(candidates, past[:, -RECENT:].transpose(0, 2, 1))  # (B, K, RECENT)
    recent_known = known[:, -RECENT:]
    n_recent = np.maximum(recent_known.sum(axis=1), 1.0)[:, None]
    put("similarity_last", similarity[:, :, -1])
    put("similarity_recent_mean", similarity.sum(axis=2) / n_recent)
    put("similarity_recent_max", np.where(recent_known[:, None, :] > 0, similarity, -1.0).max(axis=2))
    whole = past.sum(axis=1) / np.maximum(known.sum(axis=1), 1.0)[:, None]  # (B, D)
    put("similarity_history", np.einsum("bkd,bd->bk", candidates, whole))
    liked = known * (states.ratings >= LIKED_RATING)
    liked_mean = np.einsum("bld,bl->bd", past, liked) / np.maximum(liked.sum(axis=1), 1.0)[:, None]
    put("similarity_liked", np.einsum("bkd,bd->bk", candidates, liked_mean))


def _put_movie(put: Put, safe: Idx, stats: ItemStats) -> Float:
    """Movie columns; returns log(1 + ratings so far) of every movie, (N,)."""
    decayed = np.log1p(stats.decayed)  # (N, H)
    everything: Float = np.log1p(stats.n_ratings)
    for i, name in enumerate(("popularity_7d", "popularity_30d", "popularity_365d")):
        put(name, decayed[safe, i])
    put("popularity_all", everything[safe])
    put("popularity_trend", (decayed[:, 0] - decayed[:, 1])[safe])
    mean = (stats.rating_sum + PRIOR_RATINGS * PRIOR_MEAN) / (stats.n_ratings + PRIOR_RATINGS)
    put("mean_rating", mean[safe])
    put("liked_share", ((stats.n_liked + 0.5 * PRIOR_RATINGS) / (stats.n_ratings + PRIOR_RATINGS))[safe])
    rated = stats.n_ratings > 0
    now = stats.day * SECONDS_PER_DAY
    for name, moment in (("days_since_first_rated", stats.first_rated), ("days_since_last_rated", stats.last_rated)):
        days = np.where(rated, (now - moment) / SECONDS_PER_DAY, np.nan)
        put(name, np.log1p(np.maximum(days, 0.0))[safe])
    return everything


def _put_habits(put: Put, states: StateBatch, mean_rating: npt.NDArray[np.float64]) -> None:
    n = np.maximum(states.n_events, 1.0)
    variance = np.maximum(states.rating_square_sum / n - mean_rating**2, 0.0)
    known = states.item_idx >= 0
    times = states.timestamps
    gap = np.diff(times, axis=1)
    both = known[:, 1:] & known[:, :-1]
    # events since the last pause: count back from the newest until a gap longer than SESSION_GAP_S
    pause = both & (gap > SESSION_GAP_S)
    length = known.shape[1]
    last_pause = np.where(pause.any(axis=1), length - 2 - pause[:, ::-1].argmax(axis=1), -1)
    session = np.minimum(length - 1 - last_pause, known.sum(axis=1))
    since_last = np.where(known[:, -1], np.clip(states.now - times[:, -1], 0, LONGEST_GAP_S), LONGEST_GAP_S)
    session = np.where(since_last > SESSION_GAP_S, 0, session)
    put("user_events", np.log1p(states.n_events)[:, None])
    put("user_mean_rating", mean_rating[:, None])
    put("user_rating_std", np.sqrt(variance)[:, None])
    put("user_liked_share", (states.n_liked / n)[:, None])
    put("user_last_rating", states.ratings[:, -1:])
    put("user_gap", np.log1p(since_last)[:, None])
    put("user_session_length", np.log1p(session)[:, None])
    put("user_same_second_share", ((both & (gap == 0)).sum(axis=1) / np.maximum(both.sum(axis=1), 1))[:, None])
