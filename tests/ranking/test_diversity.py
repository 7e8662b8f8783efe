"""Maximal marginal relevance against a loop over sets; what a re-rank may not change; its price."""

import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.ranking.diversity import most_diverse, pool_size, relevance, unit_genres
from recsys.recommender import RequestContext
from tests.planted import (
    DAY,
    N_ITEMS,
    RECOMMENDER,
    planted_histories,
    planted_recommender,
    planted_split,
    planted_timeline,
)

NOW = planted_split().t2 + 1
STEPS = (0.05, 0.1, 0.3, 0.5, 0.7, 1.0)


def pool(rng: np.random.Generator, absent: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 4 users and 12 items, best first, and genre vectors of 5 genres; one item has none."""
    scores = -np.sort(-rng.normal(0.0, 2.0, (4, 12)).astype(np.float32), axis=1)
    genres = (rng.random((4, 12, 5)) < 0.4).astype(np.float32)
    genres[:, 3] = 0.0
    scores[:, 12 - absent :] = -np.inf
    return scores, np.stack([unit_genres(g) for g in genres])


def assert_by_hand(got: list[int], scores: list[float], vectors: list[list[float]], k: int, d: float) -> None:
    """Every place holds an item of the largest value by the definition, one set at a time, in double precision."""
    there = [j for j, s in enumerate(scores) if s != -np.inf]
    low, high = min(scores[j] for j in there), max(scores[j] for j in there)
    assert len(got) == k
    for place, choice in enumerate(got[: len(there)]):
        chosen = got[:place]

        def value(j: int, chosen: list[int] = chosen) -> float:
            fit = (scores[j] - low) / (high - low)
            alike = [sum(x * y for x, y in zip(vectors[j], vectors[c], strict=True)) for c in chosen]
            return (1 - d) * fit - d * max(alike, default=0.0)

        left = [j for j in there if j not in chosen]
        assert choice in left
        assert value(choice) >= max(map(value, left)) - 1e-6


@pytest.mark.parametrize("absent", [0, 5])
@pytest.mark.parametrize("diversity", STEPS)
def test_the_order_is_that_of_the_definition(diversity: float, absent: int) -> None:
    for seed in range(8):
        scores, vectors = pool(np.random.default_rng(seed), absent)
        got = most_diverse(scores, vectors, 9, diversity)
        for b in range(len(scores)):
            assert_by_hand(got[b].tolist(), scores[b].tolist(), vectors[b].tolist(), 9, diversity)


def test_absent_candidates_come_last_and_nothing_is_chosen_twice() -> None:
    scores, vectors = pool(np.random.default_rng(1), absent=5)
    for diversity in STEPS:
        chosen = most_diverse(scores, vectors, 50, diversity)
        assert chosen.shape == (4, 12)
        assert (np.sort(chosen, axis=1) == np.arange(12)).all()
        assert (chosen[:, :7] < 7).all()
    nothing = np.full((2, 3), -np.inf, np.float32)
    assert most_diverse(nothing, np.zeros((2, 3, 5), np.float32), 2, 0.5).shape == (2, 2)
    assert not relevance(nothing).any()


@pytest.mark.parametrize("diversity", [-0.01, 1.01, float("nan")])
def test_a_diversity_outside_0_to_1_is_refused(diversity: float) -> None:
    with pytest.raises(ConfigError, match="diversity must lie between 0"):
        planted_recommender().recommend(states(), context(), 3, diversity=diversity)
    with pytest.raises(ConfigError, match="diversity must lie between 0"):
        most_diverse(*pool(np.random.default_rng(0)), 3, diversity)


# ---- through the one path


def context() -> RequestContext:
    return RequestContext(planted_timeline().as_of(NOW // DAY))


def states():
    return planted_histories().states_at(planted_histories().user_ids, NOW)


def test_diversity_0_is_the_answer_of_before_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a re-rank was paid for")

    before = planted_recommender().recommend(states(), context(), 10)
    monkeypatch.setattr("recsys.recommender.most_diverse", refuse)
    got = planted_recommender().recommend(states(), context(), 10, diversity=0.0)
    for name in ("item_ids", "scores", "position"):
        np.testing.assert_array_equal(getattr(got, name), getattr(before, name))


@pytest.mark.parametrize("k", [1, 5, N_ITEMS])
@pytest.mark.parametrize("diversity", [0.3, 1.0])
def test_an_answer_holds_what_the_ranker_said_of_each_item(k: int, diversity: float) -> None:
    """Scores and places belong to their items; the first is the ranker's first; who needs more than the ranker saw
    gets the rest in the order in which it was."""
    plain = planted_recommender().recommend(states(), context(), N_ITEMS)
    got = planted_recommender().recommend(states(), context(), k, diversity=diversity)
    assert got.item_ids.shape == got.scores.shape == got.position.shape == (len(states()), k)
    np.testing.assert_array_equal(got.item_ids[:, 0], plain.item_ids[:, 0])
    seen = min(pool_size(k), RECOMMENDER.rank)
    for b in range(len(states())):
        there = got.item_ids[b] >= 0
        assert len(set(got.item_ids[b][there])) == there.sum()
        of = {int(i): (s, p) for i, s, p in zip(plain.item_ids[b], plain.scores[b], plain.position[b], strict=True)}
        assert [of[int(i)] for i in got.item_ids[b]] == list(zip(got.scores[b], got.position[b], strict=True))
        assert set(got.item_ids[b]) <= set(plain.item_ids[b, : max(seen, k)])
        np.testing.assert_array_equal(got.item_ids[b, seen:], plain.item_ids[b, seen:k])
