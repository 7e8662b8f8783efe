"""The contract that every retriever meets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.bundle import save_retrievers
from recsys.columns import COVISITATION, POPULARITY, RETRIEVERS, TWO_TOWER
from recsys.features.state import StateBatch
from recsys.retrieval.popularity import Popularity
from recsys.retrieval.retriever import HasItemVectors, Retriever, ScoresTransitions
from recsys.retrieval.retrievers import load_retrievers
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from tests.contracts.no_code import assert_no_pickle
from tests.planted import (
    DAY,
    N_ITEMS,
    SILENT_USER,
    START,
    planted_catalogue,
    planted_histories,
    planted_retriever,
    planted_retrievers,
)

LATE = START + 400 * DAY


def all_users(now: int = LATE) -> StateBatch:
    """Every planted user, the no_score one, and somebody whom nobody knows."""
    return planted_histories().states_at(np.append(planted_histories().user_ids, 123_456), now)


@pytest.fixture(params=RETRIEVERS)
def retriever(request: pytest.FixtureRequest) -> Retriever:
    return planted_retriever(request.param)


def with_seen(states: StateBatch, seen: list[np.ndarray]) -> StateBatch:
    return replace(states, seen_idx=seen)


def test_names_are_those_of_the_vocabulary_and_in_its_order() -> None:
    assert tuple(s.name for s in planted_retrievers()) == RETRIEVERS


@pytest.mark.parametrize("k", [1, 7, N_ITEMS, N_ITEMS + 9])
def test_top_is_best_first_unseen_and_padded(retriever: Retriever, k: int) -> None:
    states = all_users()
    item_idx, scores = retriever.answer(states).top(k)
    assert item_idx.shape == scores.shape == (len(states), k)
    assert item_idx.dtype == np.int64
    assert scores.dtype == np.float32
    missing = item_idx == -1
    np.testing.assert_array_equal(np.isneginf(scores), missing)
    assert not (missing[:, :-1] & ~missing[:, 1:]).any(), "padding stands at the end"
    for row, seen in enumerate(states.seen_idx):
        shown = item_idx[row][~missing[row]]
        assert len(set(shown)) == len(shown)
        assert not set(shown) & set(seen)
        assert ((shown >= 0) & (shown < N_ITEMS)).all()
        shown_scores = scores[row][~missing[row]]
        assert (shown_scores[1:] <= shown_scores[:-1]).all()
        tied = shown_scores[1:] == shown_scores[:-1]
        assert (shown[1:][tied] > shown[:-1][tied]).all(), "ties by the lower row number"


def test_top_is_the_brute_force_order_of_at(retriever: Retriever) -> None:
    states = all_users()
    answer = retriever.answer(states)
    every = answer.at(np.broadcast_to(np.arange(N_ITEMS), (len(states), N_ITEMS)))
    item_idx, scores = answer.top(N_ITEMS)
    for row, seen in enumerate(states.seen_idx):
        said = [i for i in range(N_ITEMS) if i not in set(seen)]
        if retriever.name != TWO_TOWER:  # a dense score of exactly 0 is "no opinion"
            said = [i for i in said if every[row, i] != 0]
        assert sorted(item_idx[row][item_idx[row] >= 0]) == said
        np.testing.assert_allclose(scores[row, : len(said)], np.sort(every[row, said])[::-1], rtol=1e-5, atol=1e-5)


def test_seen_items_can_be_scored_but_are_never_returned(retriever: Retriever) -> None:
    states = all_users()
    item_idx, scores = retriever.answer(states).top(1)
    best = item_idx[:, 0]
    seen = [np.union1d(s, [b]).astype(np.int64) if b >= 0 else s for s, b in zip(states.seen_idx, best, strict=True)]
    again = retriever.answer(with_seen(states, seen))
    for row, found in enumerate(again.top(N_ITEMS)[0]):
        assert best[row] == -1 or best[row] not in found
    np.testing.assert_allclose(again.at(item_idx), np.where(item_idx >= 0, scores, 0), rtol=1e-5, atol=1e-5)


def test_who_has_seen_everything_gets_padding(retriever: Retriever) -> None:
    states = all_users().rows(slice(0, 2))
    item_idx, scores = retriever.answer(with_seen(states, [np.arange(N_ITEMS)] * 2)).top(4)
    np.testing.assert_array_equal(item_idx, np.full((2, 4), -1))
    np.testing.assert_array_equal(scores, np.full((2, 4), -np.inf, dtype=np.float32))


def test_cold_users_get_the_same_answer_whoever_they_are(retriever: Retriever) -> None:
    cold = planted_histories().states_at(np.array([777, 888]), LATE)
    assert cold.cold.all()
    item_idx, _ = retriever.answer(cold).top(10)
    np.testing.assert_array_equal(item_idx[0], item_idx[1])
    if retriever.name in (TWO_TOWER, POPULARITY):
        assert (item_idx >= 0).all()
    else:
        assert (item_idx == -1).all(), "the others have nothing to say without a history"
    no_score = planted_histories().states_at(np.array([SILENT_USER]), LATE)
    assert no_score.cold.all()
    assert retriever.answer(no_score).top(10)[0].shape == (1, 10)


def test_one_user_gets_what_a_batch_gives_up_to_rounding(retriever: Retriever) -> None:
    """Sums of a batch run in another order, so scores that differ in the last digits may change places."""
    states = all_users()
    item_idx, scores = retriever.answer(states).top(12)
    for row in range(len(states)):
        one = retriever.answer(states.rows(slice(row, row + 1)))
        np.testing.assert_allclose(one.top(12)[1][0], scores[row], rtol=1e-4, atol=1e-5)
        found = item_idx[row][item_idx[row] >= 0]
        np.testing.assert_allclose(one.at(found[None])[0], scores[row, : len(found)], rtol=1e-4, atol=1e-5)


def test_an_empty_batch_gives_an_empty_answer(retriever: Retriever) -> None:
    answer = retriever.answer(all_users().rows(slice(0, 0)))
    assert answer.top(5)[0].shape == (0, 5)
    assert answer.at(np.zeros((0, 3), dtype=np.int64)).shape == (0, 3)


def test_the_future_changes_nothing_and_the_order_inside_a_batch_neither(retriever: Retriever) -> None:
    states = all_users()
    turned = np.arange(len(states))[::-1]
    item_idx, scores = retriever.answer(states).top(9)
    turned_idx, turned_scores = retriever.answer(states.rows(turned)).top(9)
    np.testing.assert_array_equal(turned_idx[::-1], item_idx)
    np.testing.assert_allclose(turned_scores[::-1], scores, rtol=1e-5, atol=1e-5)


def test_a_saved_retriever_answers_identically_and_holds_no_code(tmp_path: Path) -> None:
    save_retrievers(planted_retrievers(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(RETRIEVERS)
    assert_no_pickle(tmp_path)
    states = all_users()
    for before, after in zip(planted_retrievers(), load_retrievers(tmp_path, planted_catalogue()), strict=True):
        assert after.name == before.name
        first, second = before.answer(states), after.answer(states)
        idx, scores = first.top(N_ITEMS)
        loaded_idx, loaded_scores = second.top(N_ITEMS)
        np.testing.assert_array_equal(loaded_idx, idx)
        np.testing.assert_array_equal(loaded_scores, scores)
        np.testing.assert_array_equal(second.at(idx), first.at(idx))


def test_the_optional_abilities_are_found_by_what_a_retriever_can_do() -> None:
    assert [r.name for r in planted_retrievers() if isinstance(r, HasItemVectors)] == [TWO_TOWER]
    assert [r.name for r in planted_retrievers() if isinstance(r, ScoresTransitions)] == [COVISITATION]


def equal_vectors() -> Retriever:
    """A two-tower retriever whose items all have one vector: every score ties."""
    towers = planted_retriever(TWO_TOWER)
    assert isinstance(towers, TwoTowerRetriever)
    vectors = np.ones_like(towers.item_vectors)
    return TwoTowerRetriever(towers.model, vectors, type(towers.index).build(vectors, "exact"))


@pytest.mark.parametrize("make", [lambda: Popularity(np.ones(N_ITEMS, np.float32)), equal_vectors])
def test_ties_go_to_the_lower_row_number_inside_and_at_the_end_of_the_list(make: Callable[[], Retriever]) -> None:
    states = all_users()
    for k in (1, 3, 10, N_ITEMS):
        item_idx, _ = make().answer(states).top(k)
        for row, seen in enumerate(states.seen_idx):
            fresh = np.setdiff1d(np.arange(N_ITEMS), seen)[:k]
            np.testing.assert_array_equal(item_idx[row, : len(fresh)], fresh)
