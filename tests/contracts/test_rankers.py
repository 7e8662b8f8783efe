"""The contract that every ranker meets."""

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import BundleError, ConfigError
from recsys.ranking.ranker import BoostedRanker, LogisticRanker, Ranker
from recsys.recommender import Recommender
from tests.contracts.no_code import assert_no_pickle
from tests.planted import RECOMMENDER, planted_catalogue, planted_rankers, planted_retrievers, planted_training_table


@pytest.fixture(params=["trees", "logistic"])
def ranker(request: pytest.FixtureRequest) -> Ranker:
    trees, logistic = planted_rankers()
    return trees if request.param == "trees" else logistic


def test_one_finite_score_a_row_whatever_is_missing(ranker: Ranker) -> None:
    rows = planted_training_table().features
    scores = ranker.score(rows)
    assert scores.shape == (len(rows),)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    nothing = ranker.score(np.full((3, rows.shape[1]), np.nan, dtype=np.float32))
    assert np.isfinite(nothing).all()
    assert len(set(nothing.tolist())) == 1


def test_rows_are_scored_one_by_one_or_together(ranker: Ranker) -> None:
    rows = planted_training_table().features[:40]
    together = ranker.score(rows)
    alone = np.concatenate([ranker.score(rows[i : i + 1]) for i in range(len(rows))])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ranker.score(rows), together)


@pytest.mark.parametrize("n", [1, 40])
def test_contributions_sum_to_the_score(ranker: Ranker, n: int) -> None:
    rows = planted_training_table().features[:n]
    values, bias = ranker.contributions(rows)
    assert values.shape == rows.shape
    np.testing.assert_allclose(values.sum(axis=1) + bias, ranker.score(rows), atol=1e-4, rtol=0)


def test_a_logistic_contribution_by_hand() -> None:
    """(3 - 1) / 2 * 0.5 = 0.5; a missing value is at the mean and adds nothing; bias -1."""
    ranker = LogisticRanker(("a", "b"), np.array([1, 9], "f4"), np.array([2, 3], "f4"), np.array([0.5, 4], "f4"), -1.0)
    rows = np.array([[3, np.nan], [1, 12]], dtype=np.float32)
    values, bias = ranker.contributions(rows)
    assert (values.tolist(), bias) == ([[0.5, 0.0], [0.0, 4.0]], -1.0)
    assert ranker.score(rows).tolist() == [-0.5, 3.0]


def test_saved_and_loaded_it_scores_identically(ranker: Ranker, tmp_path: Path) -> None:
    rows = planted_training_table().features
    assert isinstance(ranker, BoostedRanker | LogisticRanker)
    ranker.save(tmp_path)
    assert_no_pickle(tmp_path)
    loaded = (LogisticRanker if isinstance(ranker, LogisticRanker) else BoostedRanker).load(tmp_path)
    assert loaded.feature_names == ranker.feature_names
    np.testing.assert_array_equal(loaded.score(rows), ranker.score(rows))


def test_a_missing_file_of_trees_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"ranker\.txt is missing; train again with `recsys train`"):
        BoostedRanker.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_trees_that_were_cut_off_are_refused_before_the_parser_sees_them(share: float, tmp_path: Path) -> None:
    planted_rankers()[0].save(tmp_path)
    path = tmp_path / "ranker.txt"
    path.write_text(path.read_text()[: int(share * path.stat().st_size)])
    with pytest.raises(BundleError, match=r"ranker\.txt is damaged"):
        BoostedRanker.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("\nleaf_value=", "\nleaf_value=nan "), ("\nleft_child=", "\nleft_child=9"), ("\nTree=1\n", "\nTree=2\n")],
)
def test_trees_that_were_edited_are_refused(old: str, new: str, tmp_path: Path) -> None:
    planted_rankers()[0].save(tmp_path)
    path = tmp_path / "ranker.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BundleError, match=r"ranker\.txt is damaged"):
        BoostedRanker.load(tmp_path)


@pytest.mark.parametrize("change", [{"weights": [1.0]}, {"mean": None}, {"intercept": float("nan")}, {"scale": ["a"]}])
def test_a_logistic_score_that_is_none_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    logistic = planted_rankers()[1]
    logistic.save(tmp_path)
    path = tmp_path / "logistic.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match="train again"):
        LogisticRanker.load(tmp_path)


def test_a_ranker_of_other_features_is_refused(ranker: Ranker) -> None:
    retrievers = planted_retrievers()
    with pytest.raises(ConfigError, match="trained on other features"):
        Recommender(planted_catalogue(), retrievers[:3], ranker, RECOMMENDER)
    with pytest.raises(ConfigError, match="trained on other features"):
        Recommender(planted_catalogue(), retrievers[::-1], ranker, RECOMMENDER)


def test_gain_is_given_by_feature_name() -> None:
    ranker, _ = planted_rankers()
    gains = ranker.importance()
    assert tuple(gains) == ranker.feature_names
    assert min(gains.values()) >= 0.0
    assert sum(gains.values()) > 0.0
