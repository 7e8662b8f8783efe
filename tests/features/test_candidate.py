"""Every ranking feature against plain loops.

The oracle reads Python lists and dictionaries, one (user, candidate) at a time, and shares no code with the function.
"""

import math
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from recsys.features.candidate import CandidateSignals, candidate_features, feature_names
from recsys.features.item_stats import ItemStats
from recsys.features.state import HISTORY_LENGTH, Event, StateBatch, UserState, fold, state_batch
from tests.planted import DAY, N_ITEMS, NAMELESS, START, planted_catalogue, planted_timeline

CATALOGUE = planted_catalogue()
RETRIEVERS = ("one", "two")
B, K, D = 3, 7, 6
NOW = START + 30 * DAY + 500
DAY_OF_NOW = 11_030

# (row number, stars, seconds before NOW); row 34 and NAMELESS have no year, NAMELESS no genre
BUSY = [
    (0, 5.0, 90 * DAY),
    (1, 2.0, 90 * DAY),
    (2, 4.0, 50 * DAY),
    (5, 3.5, 50 * DAY - 10),
    (34, 4.5, 20 * DAY),
    (10, 1.0, 20 * DAY),
    (12, 4.0, 20 * DAY),
    (NAMELESS, 3.0, 6_100 + 3_601),
    (4, 4.0, 2_500 + 3_600),
    (20, 3.0, 2_500),
    (15, 5.0, 2_000),
    (7, 4.5, 2_000),
]
ONCE = [(34, 3.0, 400 * DAY)]
CANDIDATES = [
    [3, 34, NAMELESS, 36, 10, -1, -1],
    [1, 35, 6, 7, 8, 9, 39],
    [11, NAMELESS, 13, 34, 15, 0, 2],
]


def histories() -> StateBatch:
    """Somebody busy, somebody with one rating, somebody cold."""
    states = []
    for user, events in enumerate((BUSY, ONCE, [])):
        state = UserState(user)
        for row, stars, ago in events:
            state = fold(state, [Event(int(CATALOGUE.item_ids[row]), stars, NOW - ago)])
        states.append(state)
    # the busy user has rated 80 items more, all before the window: only the sums know
    states[0] = replace(
        states[0],
        n_events=states[0].n_events + 80,
        n_liked=states[0].n_liked + 30,
        rating_sum=states[0].rating_sum + 250.0,
        rating_square_sum=states[0].rating_square_sum + 900.0,
    )
    return state_batch(CATALOGUE, states, NOW)


def signals() -> CandidateSignals:
    rng = np.random.default_rng(5)
    return CandidateSignals(
        RETRIEVERS,
        np.array(CANDIDATES),
        rng.random((B, K)).astype(np.float32),
        rng.standard_normal((B, K, 2)).astype(np.float32),
        rng.integers(0, 4, (B, K, 2)).astype(np.int32),
        rng.random((B, K)).astype(np.float32),
    )


def unit_vectors() -> np.ndarray:
    vectors = np.random.default_rng(6).standard_normal((N_ITEMS, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def stats() -> ItemStats:
    return planted_timeline().as_of(DAY_OF_NOW)


def computed(states: StateBatch | None = None, given: CandidateSignals | None = None) -> np.ndarray:
    return candidate_features(states or histories(), given or signals(), stats(), CATALOGUE, unit_vectors())


def part_of(s: CandidateSignals, *index: Any) -> CandidateSignals:
    """Some users or candidates of it."""
    arrays = {f.name: getattr(s, f.name)[index] for f in fields(s) if f.name != "retriever_names"}
    return replace(s, **arrays)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def oracle(states: StateBatch, s: CandidateSignals, b: int, k: int) -> dict[str, float]:
    """All features of candidate k of user b."""
    st, vectors = stats(), unit_vectors().astype(np.float64)
    at = [j for j in range(HISTORY_LENGTH) if states.item_idx[b, j] >= 0]
    past = [int(states.item_idx[b, j]) for j in at]
    stars = [float(states.ratings[b, j]) for j in at]
    times = [int(states.timestamps[b, j]) for j in at]
    item = int(s.item_idx[b, k])
    out: dict[str, float] = {}

    for i, name in enumerate(s.retriever_names):
        best = max(float(s.scores[b, j, i]) for j in range(K) if s.item_idx[b, j] >= 0)
        out[f"{name}_score"] = float(s.scores[b, k, i])
        out[f"{name}_score_below_best"] = float(s.scores[b, k, i]) - best
        out[f"{name}_rank"] = float(s.ranks[b, k, i]) or math.nan
    out["merged_score"] = float(s.merged_score[b, k])
    out["merged_rank"] = k + 1
    out["covisitation_last"] = float(s.covisitation_last[b, k])

    similar = [float(vectors[item] @ vectors[m]) for m in past]
    out["similarity_last"] = similar[-1] if similar else 0.0
    out["similarity_recent_mean"] = mean(similar[-5:])
    out["similarity_recent_max"] = max(similar[-5:], default=-1.0)
    out["similarity_history"] = mean(similar)
    out["similarity_liked"] = mean([x for x, r in zip(similar, stars, strict=True) if r >= 4.0])

    mine = set(CATALOGUE.genres_of(item))
    user_mean = states.rating_sum[b] / max(states.n_events[b], 1)
    affinity, liking = [], []
    for genre in mine:
        having = [r - user_mean for m, r in zip(past, stars, strict=True) if genre in CATALOGUE.genres_of(m)]
        affinity.append(len(having) / max(len(past), 1))
        liking.append(sum(having) / (len(having) + 3.0))
    out["genre_affinity"] = mean(affinity)
    out["genre_rating_affinity"] = mean(liking)
    last_genres = CATALOGUE.genres_of(past[-1]) if past else []
    out["genre_share_last"] = len(mine & set(last_genres)) / max(len(last_genres), 1)

    known_years = sorted(float(y) for y in CATALOGUE.years if not math.isnan(y))
    half = len(known_years) // 2
    median = known_years[half] if len(known_years) % 2 else (known_years[half - 1] + known_years[half]) / 2
    decades = [(median if math.isnan(y) else float(y)) / 10 for y in CATALOGUE.years]
    out["user_decade"] = mean([decades[m] for m in past]) if past else mean(decades)
    out["decade_distance"] = abs(decades[item] - out["user_decade"])
    out["decade"] = math.nan if math.isnan(CATALOGUE.years[item]) else decades[item]

    popularity = [math.log(1 + float(x)) for x in st.n_ratings]
    out["popularity_7d"], out["popularity_30d"], out["popularity_365d"] = (
        math.log(1 + float(x)) for x in st.decayed[item]
    )
    out["popularity_all"] = popularity[item]
    out["popularity_trend"] = out["popularity_7d"] - out["popularity_30d"]
    n = float(st.n_ratings[item])
    out["mean_rating"] = (float(st.rating_sum[item]) + 5 * 3.5) / (n + 5)
    out["liked_share"] = (float(st.n_liked[item]) + 2.5) / (n + 5)
    for name, moment in (("first", st.first_rated[item]), ("last", st.last_rated[item])):
        out[f"days_since_{name}_rated"] = math.log(1 + DAY_OF_NOW - int(moment) / DAY) if n else math.nan
    out["user_popularity"] = mean([popularity[m] for m in past[-10:]])
    out["popularity_distance"] = popularity[item] - out["user_popularity"]

    events = float(states.n_events[b])
    out["user_events"] = math.log(1 + events)
    out["user_mean_rating"] = user_mean
    out["user_rating_std"] = math.sqrt(max(states.rating_square_sum[b] / max(events, 1) - user_mean**2, 0))
    out["user_liked_share"] = states.n_liked[b] / max(events, 1)
    out["user_last_rating"] = stars[-1] if stars else 0.0
    since = min(NOW - times[-1], 365 * DAY) if times else 365 * DAY
    out["user_gap"] = math.log(1 + since)
    session, later = 0, NOW
    for t in reversed(times):
        if later - t > 3_600:
            break
        session, later = session + 1, t
    out["user_session_length"] = math.log(1 + session)
    pairs = list(pairwise(times))
    out["user_same_second_share"] = mean([float(a == c) for a, c in pairs])
    return out


def test_every_feature_equals_the_loop() -> None:
    got = computed()
    assert got.shape == (B, K, len(feature_names(RETRIEVERS)))
    assert got.dtype == np.float32
    for b, k in ((b, k) for b in range(B) for k in range(K) if CANDIDATES[b][k] >= 0):
        expected = oracle(histories(), signals(), b, k)
        assert set(expected) == set(feature_names(RETRIEVERS))
        for i, name in enumerate(feature_names(RETRIEVERS)):
            assert got[b, k, i] == pytest.approx(expected[name], rel=1e-5, abs=1e-5, nan_ok=True), (b, k, name)


def test_a_session_that_has_ended_counts_nothing() -> None:
    states = replace(histories(), now=np.full(B, NOW + 3_600))
    got = computed(states)
    column = feature_names(RETRIEVERS).index("user_session_length")
    assert got[:, 0, column].tolist() == [0.0, 0.0, 0.0]


def test_a_candidate_does_not_see_its_neighbours_but_for_the_best_score_and_its_place() -> None:
    """The same items in another order: only `merged_rank` follows the place."""
    turned = np.array([2, 0, 1, 4, 3, 5, 6])
    other = part_of(signals(), slice(None), turned)
    before, after = computed()[:, turned], computed(given=other)
    keep = [i for i, n in enumerate(feature_names(RETRIEVERS)) if n != "merged_rank"]
    present = other.item_idx >= 0
    np.testing.assert_allclose(after[present][:, keep], before[present][:, keep], rtol=1e-6, atol=1e-6)


def test_one_user_alone_equals_the_rows_of_the_batch() -> None:
    """Bit for bit, but for the columns of matrix products, whose order of summing may follow the size of the batch."""
    together = computed()
    exact = [i for i, n in enumerate(feature_names(RETRIEVERS)) if not n.startswith(("similarity_", "genre_"))]
    for b in range(B):
        alone = computed(histories().rows(slice(b, b + 1)), part_of(signals(), slice(b, b + 1)))
        present = signals().item_idx[b] >= 0
        np.testing.assert_array_equal(alone[0, present][:, exact], together[b, present][:, exact])
        np.testing.assert_allclose(alone[0, present], together[b, present], rtol=1e-6, atol=1e-6)


def test_rows_of_absent_candidates_alone_and_no_rows_at_all() -> None:
    absent = replace(signals(), item_idx=np.full((B, K), -1))
    assert computed(given=absent).shape[:2] == (B, K)
    assert computed(given=part_of(signals(), slice(None), slice(0, 0))).shape[:2] == (B, 0)
