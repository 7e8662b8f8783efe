"""The leaderboard on four events worked by hand, its segments and its JSON."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.data.tables import DatasetInfo
from recsys.evaluation.beyond_accuracy import BeyondAccuracy
from recsys.evaluation.leaderboard import Leaderboard, MethodRanks, Replayed, Segment, build_leaderboard
from recsys.evaluation.metrics import METRICS
from tests.evaluation.leaderboards import TWO, make

INFO = DatasetInfo("planted", True, "ml-1m", "f" * 64, 100, 20, 10)
# Two users, four events; the first is cold; user 2 comes back after two hours.
EVENTS = pd.DataFrame(
    {
        "user_id": [1, 1, 2, 2],
        "timestamp": [901, 902, 903, 904],
        "item_id": [10, 11, 10, 12],
        "rating": [5, 3, 4, 3.5],
        "n_history": [0, 1, 30, 31],
        "gap_s": [-1, 1, 7_200, 1],
        "new_user": [True, True, False, False],
        "raters": [9, 10, 9, 0],
    }
)


def method(name: str, ranks: list[int], kind: Any = "single") -> MethodRanks:
    return MethodRanks(name, np.array(ranks), BeyondAccuracy(0.1, 2.0, None, 80.0, 0.5), kind, f"about {name}")


METHODS = (
    method("popular", [3, 0, 0, 11]),
    method("merged", [1, 1, 0, 7], "system"),
    method("full", [1, 3, 7, 0], "system"),
)


def built(*methods: MethodRanks, t2: int = 900, **options: Any) -> Leaderboard:
    return build_leaderboard(Replayed(EVENTS, 20, methods), INFO, 500, t2, n_boot=50, seed=3, **options)


@pytest.mark.parametrize(
    ("name", "segment", "metric", "expected"),
    [
        ("full", "all", "ndcg@10", (1 + 1 / 2 + 1 / 3 + 0) / 4),
        ("full", "cold", "ndcg@10", 1.0),
        ("full", "warm", "ndcg@10", (1 / 2 + 1 / 3) / 3),
        ("full", "liked", "ndcg@10", (1 + 1 / 3) / 2),  # ratings 5 and 4
        ("popular", "all", "hr@10", 0.25),
        ("popular", "all", "recall@100", 0.5),
        ("popular", "all", "mrr", (1 / 3 + 1 / 11) / 4),
        ("full", "return visit", "ndcg@10", 1 / 3),
        ("popular", "new item", "recall@100", 1.0),
    ],
)
def test_means_by_segment(name: str, segment: str, metric: str, expected: float) -> None:
    cell = built(*METHODS).method(name).segments[segment].metrics[metric]
    assert cell is not None
    assert cell.mean == pytest.approx(expected)
    assert (cell.low, cell.high) == (None, None), "two users give no interval"


def test_sizes_by_segment() -> None:
    segments = built(*METHODS).method("merged").segments
    assert {name: (s.n_events, s.n_users) for name, s in segments.items()} == {
        **{"all": (4, 2), "warm": (3, 2), "cold": (1, 1), "liked": (2, 2), "history 1-5": (1, 1)},
        **{"history 6-20": (0, 0), "history 21-100": (2, 1), "history over 100": (0, 0), "return visit": (1, 1)},
        **{"new user": (2, 1), "new item": (1, 1), "rare item": (2, 2)},
    }
    assert segments["history 6-20"] == Segment(0, 0, dict.fromkeys(METRICS))


def test_the_best_singles() -> None:
    ranks = {"b": [1, 0, 0, 0], "a": [1, 0, 0, 0], "worst": [0, 0, 0, 0], "best": [1, 1, 0, 0]}
    methods = [*(method(name, r) for name, r in ranks.items()), method("full", [1, 1, 1, 1], "system")]
    assert built(*methods).best_singles(3) == ["best", "a", "b"]
    assert make(TWO, events=0).best_singles(2) == []


def test_the_last_system_is_compared_with_every_other_method() -> None:
    board = built(*METHODS)
    assert board.system == "full"
    pairs = [(d.other, d.metric) for d in board.differences]
    assert pairs == [(other, metric) for other in ("popular", "merged") for metric in ("ndcg@10", "hr@10")]
    assert board.difference("popular").mean == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 4)
    assert board.difference("merged", "hr@10").mean == 0.0  # three hits each
    singles = method("a", [1, 1, 1, 1]), method("b", [3, 3, 3, 3])
    assert (built(*singles).system, built(*singles).differences) == (None, ())
    assert built(*singles, system="a").difference("b").mean == 0.5


def test_the_json_form_names_data_cutoffs_and_bootstrap() -> None:
    kept = json.loads(json.dumps(built(*METHODS).to_json(), allow_nan=False))
    label = "planted (synthetic, not MovieLens)"
    assert kept["data"] == {"name": "planted", "label": label, "synthetic": True, "fingerprint": "f" * 64}
    assert kept["bootstrap"] == {"n_boot": 50, "seed": 3, "level": 0.95}
    assert (kept["protocol"]["t2"], kept["protocol"]["t2_utc"]) == (900, "1970-01-01 00:15:00 UTC")
    mrr = kept["methods"][0]["segments"]["all"]["metrics"]["mrr"]
    assert mrr == {"mean": pytest.approx((1 / 3 + 1 / 11) / 4), "low": None, "high": None}


def test_an_event_that_training_knew_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie after T2 = 901"):
        built(*METHODS, t2=901)
