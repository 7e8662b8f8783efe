"""Fitting the rankers on planted tables."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from recsys.errors import DataError
from recsys.ranking.training import (
    FEWEST_CONTEXTS,
    STOPPING_DEPTH,
    RankerSettings,
    TrainingTable,
    UnsampledCandidates,
    early_contexts,
    fit_boosted,
    fit_early,
    fit_logistic,
)

SETTINGS = RankerSettings(max_trees=30, learning_rate=0.2, min_rows_in_leaf=5, early_stopping=10, threads=1)
NAMES = ("a", "b", "c", "d", "e")
TELLING = 3
NO_LISTS = UnsampledCandidates(
    np.zeros((0, 10, 5), dtype=np.float32), *np.zeros((2, 0, 10), dtype=bool), np.zeros(0, dtype=np.int64)
)


def table(contexts: int = 60, rows: int = 10, seed: int = 0) -> TrainingTable:
    """One positive a context, and column 3 says which; column 4 is mostly missing; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((contexts, rows), dtype=np.int32)
    labels[np.arange(contexts), rng.integers(0, rows, contexts)] = 1
    features = rng.standard_normal((contexts * rows, 5)).astype(np.float32)
    features[:, TELLING] = labels.ravel()
    features[rng.random(len(features)) < 0.9, 4] = np.nan
    return TrainingTable(
        NAMES,
        features,
        labels.ravel(),
        np.arange(contexts * rows),
        np.where(labels.ravel() == 1, 4.0, np.nan).astype(np.float32),
        np.full(contexts, rows),
        np.arange(contexts) * 100,
        rng.integers(0, 7, contexts),
        1.0,
        NO_LISTS,
    )


def first_in_every_context(ranker_scores: np.ndarray, of: TrainingTable) -> bool:
    bounds = np.append(0, np.cumsum(of.group_sizes))
    return all(of.labels[a + ranker_scores[a:b].argmax()] == 1 for a, b in pairwise(bounds))


def test_the_trees_put_the_planted_positives_first_also_where_they_have_not_learnt() -> None:
    said: list[str] = []
    ranker = fit_boosted(table(), SETTINGS, report=said.append)
    assert first_in_every_context(ranker.score(table().features), table())
    unseen = table(seed=1)
    assert first_in_every_context(ranker.score(unseen.features), unseen)
    gains = ranker.importance()
    assert max(gains, key=lambda name: gains[name]) == NAMES[TELLING]
    assert ranker.feature_names == NAMES
    assert said == [f"ranker: 1 trees on the first contexts, NDCG@{STOPPING_DEPTH} 1.0000 on the last"]


@pytest.mark.parametrize(("kept", "expected"), [(7, 9), (6, 8), (23, 30), (0, 1)])
def test_the_whole_fit_takes_more_trees_in_proportion_up_to_the_most(kept: int, expected: int) -> None:
    """45 of 60 contexts come early, so 7 trees become 9.3 and 6 become 8; 23 would become 30.7, and 30 are the most."""
    settings = replace(SETTINGS, holdout=0.25)
    early = fit_early(table(), settings)
    early.booster.best_iteration = kept
    assert fit_boosted(table(), settings, early=early).booster.num_trees() == expected


def test_the_early_ranker_learns_from_the_first_contexts_alone() -> None:
    """In the last ones another column tells, and the early ranker does not know it; the final one does."""
    plain = table(80)
    assert early_contexts(plain, SETTINGS) == 40
    moved = replace(plain, features=plain.features.copy())
    moved.features[400:, 0] = moved.features[400:, TELLING]
    early = fit_early(moved, SETTINGS)
    assert early.base is not None
    np.testing.assert_array_equal(early.base.weights, fit_early(plain, SETTINGS).base.weights)  # type: ignore[union-attr]
    final = fit_boosted(moved, SETTINGS, early=early)
    assert final.base is not None
    assert final.base.weights[0] > early.base.weights[0] + 0.1
    assert final.booster.num_trees() == 2 * early.booster.best_iteration
    alone = fit_boosted(moved, SETTINGS)
    assert alone.booster.model_to_string() == final.booster.model_to_string(), "the same with or without it at hand"


def test_too_few_contexts_are_refused_and_just_enough_are_not() -> None:
    with pytest.raises(DataError, match=f"only {FEWEST_CONTEXTS - 1} contexts of the ranker's window .* too small"):
        fit_boosted(table(FEWEST_CONTEXTS - 1), SETTINGS)
    fit_boosted(table(FEWEST_CONTEXTS), SETTINGS)


def test_a_column_without_any_value_and_one_that_never_changes_do_no_harm() -> None:
    odd = table()
    odd.features[:, 0] = np.nan
    odd.features[:, 1] = 0.0
    ranker = fit_logistic(odd)
    assert np.isfinite(ranker.score(odd.features)).all()
    assert ranker.weights[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_label_are_refused(label: int) -> None:
    whole = table()
    with pytest.raises(DataError, match="all watched or all unwatched"):
        fit_logistic(replace(whole, labels=np.full_like(whole.labels, label)))


def test_a_regression_that_does_not_end_in_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(model: LogisticRegression, x: np.ndarray, _y: np.ndarray) -> LogisticRegression:
        np.inf * np.zeros(1)  # raises the flag, which alone is no failure
        model.coef_, model.intercept_ = np.full((1, x.shape[1]), np.nan), np.zeros(1)
        return model

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    with pytest.raises(DataError, match="finite weights"):
        fit_logistic(table())
