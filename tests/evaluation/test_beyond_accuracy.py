"""Novelty, diversity, popularity and Gini against plain Python, pair by pair and item by item."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, TITLE, USER_ID, YEAR
from recsys.evaluation.beyond_accuracy import (
    BeyondAccuracy,
    Items,
    Shown,
    gini,
    list_diversity,
)
from recsys.features.catalogue import Catalogue

GENRES_OF = [["Drama"], ["Drama", "War"], ["Comedy"], [], ["Comedy", "Drama", "War"], ["War"], []]
RATERS, N_USERS = np.array([15, 7, 3, 1, 0, 3, 0]), 15


def catalogue(genres: list[list[str]]) -> Catalogue:
    n = len(genres)
    items = pd.DataFrame({ITEM_ID: range(n), TITLE: ["x"] * n, YEAR: np.full(n, np.nan), GENRES: genres})
    return Catalogue.from_tables(items, pd.DataFrame({c: [] for c in (USER_ID, GENDER, AGE, OCCUPATION)}))


@pytest.fixture
def items() -> Items:
    return Items(catalogue(GENRES_OF), RATERS, N_USERS)


def diversity_by_pairs(ranked: list[int]) -> float:
    """Mean of 1 - |common genres| / sqrt(|a| |b|) over pairs that both have genres."""
    with_genres = [set(GENRES_OF[i]) for i in ranked if i >= 0 and GENRES_OF[i]]
    pairs = [1 - len(a & b) / math.sqrt(len(a) * len(b)) for a, b in combinations(with_genres, 2)]
    return sum(pairs) / len(pairs) if pairs else math.nan


def test_diversity_equals_all_pairs_with_holes_and_items_without_genres(items: Items) -> None:
    rng = np.random.default_rng(2)
    lists = np.array([rng.permutation(7)[:5] for _ in range(60)])
    lists[::4, 3:] = -1
    lists[::12, 1:] = -1
    expected = [diversity_by_pairs(row) for row in lists.tolist()]
    assert any(math.isnan(e) for e in expected)
    np.testing.assert_allclose(list_diversity(lists, items.genres), expected, atol=1e-12)


def test_gini_is_half_the_relative_mean_difference() -> None:
    rng = np.random.default_rng(3)
    shown = rng.poisson(1.5, 70)
    difference = np.abs(shown[:, None] - shown[None, :]).mean()
    assert gini(shown) == pytest.approx(difference / (2 * shown.mean()), rel=1e-12)


def test_what_was_shown_adds_up_over_batches(items: Items) -> None:
    lists = [[0, 1, 2], [3, 6, -1], [4, 5, 0], [0, -1, -1]]
    shown = Shown(items)
    shown.add(np.array(lists[:3]))
    shown.add(np.array(lists[3:]))
    flat = [i for row in lists for i in row if i >= 0]
    diverse = [d for d in map(diversity_by_pairs, lists) if not math.isnan(d)]
    assert len(diverse) == 2, "a list of items without genres and one of a single item have no pair"
    assert shown.measure() == BeyondAccuracy(
        coverage=1.0,
        novelty=pytest.approx(sum(math.log2(16 / (RATERS[i] + 1)) for i in flat) / len(flat)),
        diversity=pytest.approx(sum(diverse) / 2),
        popularity=pytest.approx(np.mean([100 * (rankdata(RATERS)[i] - 0.5) / 7 for i in flat])),
        gini=gini(np.bincount(flat, minlength=7)),
    )


def test_nothing_shown_and_no_genres_have_no_measures(items: Items) -> None:
    shown = Shown(items)
    shown.add(np.array([[-1, -1]]))
    assert shown.measure() == BeyondAccuracy(0.0, None, None, None, None)
    shown = Shown(Items(catalogue([[], [], [], []]), np.array([1, 0, 0, 0]), 1))
    shown.add(np.array([[0, 1, 2]]))
    assert (shown.measure().diversity, shown.measure().coverage) == (None, 0.75)
