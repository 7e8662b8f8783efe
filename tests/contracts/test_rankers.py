"""The contract that every ranker meets."""

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import BundleError, ConfigError
from recsys.features.candidate import feature_names
from recsys.ranking.ranker import BoostedRanker, LogisticRanker, Ranker
from recsys.recommender import Recommender
from tests.contracts.no_code import assert_no_pickle
from tests.planted import RECOMMENDER, planted_catalogue, planted_rankers, planted_retrievers, planted_training_table


@pytest.fixture(params=["trees", "logistic"])
def ranker(request: pytest.FixtureRequest) -> Ranker:
    trees, logistic = planted_rankers()
    return trees if request.param == "trees" else logistic


def test_names_are_those_of_the_training_table_in_order(ranker: Ranker) -> None:
    assert ranker.feature_names == planted_training_table().feature_names


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


def test_positives_score_above_negatives_on_what_was_learnt_from(ranker: Ranker) -> None:
    table = planted_training_table()
    scores = ranker.score(table.features)
    assert scores[table.labels == 1].mean() > scores[table.labels == 0].mean()


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


def test_features_carry_every_retriever_then_the_rest() -> None:
    names = feature_names(["a", "b"])
    assert names[:6] == ("a_score", "a_score_below_best", "a_rank", "b_score", "b_score_below_best", "b_rank")
    assert names[6:8] == ("merged_score", "merged_rank")
    assert len(set(names)) == len(names)


def test_the_logistic_score_is_the_formula() -> None:
    """((3 - 1) / 2) * 0.5 + 0 (missing, so at the mean) * 4 - 1 = -0.5"""
    ranker = LogisticRanker(("a", "b"), np.array([1.0, 9.0]), np.array([2.0, 3.0]), np.array([0.5, 4.0]), -1.0)
    scores = ranker.score(np.array([[3.0, np.nan], [1.0, 12.0]], dtype=np.float32))
    assert scores.tolist() == [-0.5, 3.0]


def test_gain_is_given_by_feature_name() -> None:
    ranker, _ = planted_rankers()
    gains = ranker.importance()
    assert tuple(gains) == ranker.feature_names
    assert min(gains.values()) >= 0.0
    assert sum(gains.values()) > 0.0
