"""Reciprocal rank fusion against loops."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from recsys.recommender import Recommender, RecommenderSettings
from recsys.retrieval.merge import RRF_OFFSET, Candidates, merge
from recsys.retrieval.retriever import DenseScores, RetrieverScores
from tests.planted import DAY, N_ITEMS, START, planted_catalogue, planted_histories, planted_retrievers

B, N = 4, 30
WEIGHTS = {"a": 2.0, "b": 0.5}  # c has none and weighs 1


def answers(seen: list[np.ndarray]) -> dict[str, RetrieverScores]:
    """Retriever a knows half the items, b a few, c none for the first user."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((3, B, N)).astype(np.float32)
    scores[0][rng.random((B, N)) < 0.5] = 0.0
    scores[1][rng.random((B, N)) < 0.9] = 0.0
    scores[2, 0] = 0.0
    return {name: DenseScores(scores[i], seen) for i, name in enumerate("abc")}


def seen_lists() -> list[np.ndarray]:
    return [np.array([], dtype=int), np.array([0, 5, 7]), np.arange(20), np.arange(N)]


def oracle(
    given: Mapping[str, RetrieverScores], b: int, seen: np.ndarray, fetch: int, keep: int, allowed: np.ndarray
) -> list[tuple[int, float, list[int]]]:
    """(item, rrf_score, rank in each retriever) best first."""
    ranks: dict[str, dict[int, int]] = {}
    for name, answer in given.items():
        top = answer.top(min(fetch, N))[0][b]
        ranks[name] = {int(m): r for r, m in enumerate(top, 1) if m >= 0}
    rows = []
    for item in range(N):
        if item in seen or not allowed[item]:
            continue
        rrf_score = 0.0
        for name, of in ranks.items():
            if item in of:
                rrf_score += WEIGHTS.get(name, 1.0) / (RRF_OFFSET + of[item])
        rows.append((item, rrf_score, [of.get(item, 0) for of in ranks.values()]))
    return sorted(rows, key=lambda r: (-np.float32(r[1]), r[0]))[:keep]


@pytest.mark.parametrize("restricted", ["everything", "shared", "per user"])
@pytest.mark.parametrize(("fetch", "keep"), [(5, 8), (10, 3), (100, 30), (3, 45)])
def test_fusion_equals_the_loop(fetch: int, keep: int, restricted: str) -> None:
    seen = seen_lists()
    given = answers(seen)
    rng = np.random.default_rng(9)
    allowed = {"everything": None, "shared": rng.random(N) < 0.6, "per user": rng.random((B, N)) < 0.6}[restricted]
    open_to = np.broadcast_to(np.ones(N, bool) if allowed is None else allowed, (B, N))
    blocked = [np.union1d(s, np.flatnonzero(~row)) for s, row in zip(seen, open_to, strict=True)]
    got = merge(given, WEIGHTS, blocked, N, fetch=fetch, keep=keep)
    assert got.retriever_names == ("a", "b", "c")
    assert got.item_idx.shape == got.rrf_score.shape == (B, keep)
    assert got.retriever_scores.shape == got.retriever_ranks.shape == (B, keep, 3)
    mask = np.broadcast_to(np.ones(N, bool) if allowed is None else allowed, (B, N))
    for b in range(B):
        expected = oracle(given, b, seen[b], fetch, keep, mask[b])
        n = len(expected)
        assert got.item_idx[b, :n].tolist() == [r[0] for r in expected]
        np.testing.assert_allclose(got.rrf_score[b, :n], [r[1] for r in expected], rtol=1e-6)
        assert got.retriever_ranks[b, :n].tolist() == [r[2] for r in expected]
        for s, name in enumerate(given):
            scores = given[name].at(got.item_idx[b : b + 1].repeat(B, 0))[b]
            np.testing.assert_array_equal(got.retriever_scores[b, :, s], scores)
        assert (got.item_idx[b, n:] == -1).all()
        assert np.isneginf(got.rrf_score[b, n:]).all()
        assert not got.retriever_ranks[b, n:].any()
        assert not got.retriever_scores[b, n:].any()


def test_best_is_the_start_of_every_list() -> None:
    got = merge(answers(seen_lists()), WEIGHTS, seen_lists(), N, fetch=5, keep=9)
    best = got.best(4)
    for name in Candidates.__dataclass_fields__:
        if name != "retriever_names":
            np.testing.assert_array_equal(getattr(best, name), getattr(got, name)[:, :4])
    assert best.retriever_names == got.retriever_names
    assert got.best(99).item_idx.shape == (B, 9)


FIELDS = ("item_idx", "rrf_score", "retriever_scores", "retriever_ranks")


def recommender(fetch: int, keep: int) -> Recommender:
    settings = RecommenderSettings(fetch, keep, rank=1, rrf_weights={"ease": 0.5})
    return Recommender(planted_catalogue(), planted_retrievers(), None, settings)


@pytest.mark.parametrize("restricted", [False, True])
def test_a_batch_gives_the_lists_of_its_rows_one_by_one(restricted: bool) -> None:
    """What was measured on batches of replay is what one request gets, up to rounding: sums of a batch run in another
    order, and where that changes two places in a retriever's list, the merged order follows."""
    h = planted_histories()
    states = h.states_at(np.append(h.user_ids, 123_456), START + 30 * DAY)
    allowed = np.random.default_rng(2).random(N_ITEMS) < 0.4 if restricted else None
    together = recommender(15, 25).retrieve(states, allowed=allowed)
    assert together.retriever_names == tuple(r.name for r in planted_retrievers())
    same = 0
    for row in range(len(states)):
        alone = recommender(15, 25).retrieve(states.rows([row]), allowed=allowed)
        same += np.array_equal(alone.item_idx[0], together.item_idx[row])
        np.testing.assert_allclose(alone.rrf_score[0], together.rrf_score[row], rtol=0.02)
    assert same >= 0.95 * len(states)


def test_a_filter_hides_what_it_forbids_beside_what_was_seen() -> None:
    """As if the forbidden items had been seen, whether they were or not; retrievers fill their lists from the rest."""
    h = planted_histories()
    states = h.states_at(h.user_ids[:8], START + 400 * DAY)
    allowed = np.random.default_rng(4).random(N_ITEMS) < 0.3
    got = recommender(6, 20).retrieve(states, allowed=allowed)
    assert any(allowed[seen].any() and (~allowed[seen]).any() for seen in states.seen_idx)
    union = [np.union1d(seen, np.flatnonzero(~allowed)) for seen in states.seen_idx]
    expected = recommender(6, 20).retrieve(replace(states, seen_idx=union))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    for row, seen in enumerate(states.seen_idx):
        assert set(got.item_idx[row].tolist()) - {-1} == set(np.flatnonzero(allowed).tolist()) - set(seen.tolist())
    nothing = recommender(6, 4).retrieve(states, allowed=np.zeros(N_ITEMS, bool))
    assert (nothing.item_idx == -1).all()
