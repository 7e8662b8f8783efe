"""The splits against loops over items and users, the metrics against scikit-learn and sums by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation.protocols import (
    LIST_METRICS,
    ProtocolResult,
    item_folds,
    leave_last_out,
    list_values,
    protocol_result,
    stratified_by_item,
)
from tests.evaluation.leaderboards import study_run

# Items 0 to 59, the low ones far more often.
ITEMS = (60 * np.random.default_rng(5).random(700) ** 3).astype(np.int64)


def test_three_quarters_of_each_item_by_its_draws_train() -> None:
    np.random.seed(42)
    drawn = np.random.rand(len(ITEMS))
    expected = np.zeros(len(ITEMS), dtype=bool)
    for item in set(ITEMS.tolist()):
        rows = sorted(np.flatnonzero(item == ITEMS), key=lambda row: drawn[row])
        expected[rows[: len(rows) * 3 // 4]] = True
    assert np.array_equal(stratified_by_item(ITEMS, seed=42), expected)


def test_folds_deal_every_item_out_evenly() -> None:
    fold = item_folds(ITEMS, 4, seed=1)
    for item in set(ITEMS.tolist()):
        sizes = np.bincount(fold[item == ITEMS], minlength=4)
        assert sizes.size == 4
        assert sizes.max() - sizes.min() <= 1
    assert np.bincount(fold).min() > 0.2 * len(ITEMS), "rare items do not all land in the first fold"


def events(*rows: tuple[int, int, int]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[USER_ID, TIMESTAMP, ITEM_ID])
    return frame.assign(**{RATING: np.float32(3)})


def test_the_last_event_is_left_out_and_ties_go_by_item() -> None:
    table = events((1, 50, 7), (2, 10, 1), (1, 90, 4), (1, 90, 3), (2, 20, 2), (1, 10, 9), (3, 5, 5))
    parts = leave_last_out(table)
    keys = [[tuple(row) for row in part[[USER_ID, ITEM_ID]].to_numpy()] for part in (parts.test, parts.validation)]
    assert keys == [[(1, 4)], [(1, 3)]], "of second 90 the higher id is last"
    assert parts.known.index.tolist() == [0, 1, 4, 5, 6], "users with one or two events only teach; order stays"
    with pytest.raises(DataError, match="Nobody has 3 events"):
        leave_last_out(table[table[USER_ID] > 1])


def test_list_metrics_equal_sums_by_hand_and_those_of_scikit_learn() -> None:
    """Lists of 12 out of 40 items for 30 users, some with holes; 1 to 25 held-out items each."""
    rng = np.random.default_rng(11)
    lists = np.stack([rng.permutation(40)[:12] for _ in range(30)])
    lists[3, 6:] = -1
    lists[4, :] = -1
    held = [set(rng.permutation(40)[: rng.integers(1, 26)].tolist()) for _ in range(30)]
    pairs = np.array([(row, item) for row, items in enumerate(held) for item in sorted(items, reverse=True)])
    values = list_values(lists, *pairs.T)
    for row, (ranked, relevant) in enumerate(zip(lists.tolist(), held, strict=True)):
        hits, precisions = 0, 0.0
        for rank, item in enumerate(ranked[:10], start=1):
            if item in relevant:
                hits += 1
                precisions += hits / rank
        n = len(relevant)
        score = np.zeros(50)
        score[[m for m in ranked if m >= 0]] = [12.0 - place for place, m in enumerate(ranked) if m >= 0]
        score[40:] = np.arange(1, 11) / 100  # fills a short list with items that nobody rated
        ndcg = ndcg_score([np.isin(np.arange(50), list(relevant)).astype(float)], [score], k=10)
        expected = [ndcg, precisions / n, precisions / min(n, 10), hits / 10, hits / n]
        assert values[row].tolist() == pytest.approx(expected, abs=1e-12), row


def measured(shift: float = 0.2, noise: float = 0.05) -> ProtocolResult:
    """Two methods for 40 users; the system's NDCG@10 is `shift` above that of the other, more or less."""
    rng = np.random.default_rng(2)
    one = rng.random((40, len(LIST_METRICS)))
    other = one.copy()
    other[:, 0] -= shift + noise * rng.standard_normal(40)
    values = {"a | <b>": other, "both": one}
    return protocol_result(study_run(), "Made by hand.", np.arange(40), values, LIST_METRICS, "both", {"n_train": 7})


def test_a_result_holds_means_intervals_and_differences() -> None:
    result = measured()
    other, system = result.rows
    assert (system.system_minus, result.n_users, list(system.metrics)) == (None, 40, list(LIST_METRICS))
    assert other.system_minus is not None
    difference = system.metrics["ndcg@10"].mean - other.metrics["ndcg@10"].mean
    assert other.system_minus.mean == pytest.approx(difference, abs=1e-12)
    ndcg = system.metrics["ndcg@10"]
    text = result.markdown()
    assert text.startswith("Data: ml-1m. Made by hand.\n")
    assert f"**{ndcg.mean:.4f} [{ndcg.low:.4f}, {ndcg.high:.4f}]** |" in text
    assert "a \\| &lt;b>" in text


@pytest.mark.parametrize(
    ("shift", "noise", "verdict"),
    [(0.2, 0.05, "is ahead of"), (-0.2, 0.05, "is behind"), (0.0, 0.5, "cannot be told apart from")],
)
def test_the_finding_follows_the_interval(shift: float, noise: float, verdict: str) -> None:
    assert f"the both {verdict} a | <b>" in measured(shift, noise).finding()
