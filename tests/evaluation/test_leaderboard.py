"""The leaderboard on four events worked by hand, its segments, its JSON, and every refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.data.tables import DatasetInfo
from recsys.evaluation.beyond_accuracy import BeyondAccuracy
from recsys.evaluation.bootstrap import MIN_USERS, Estimate, bootstrap_means
from recsys.evaluation.leaderboard import Leaderboard, MethodRanks, Segment, build_leaderboard, save_leaderboard
from recsys.evaluation.metrics import METRICS

INFO = DatasetInfo("planted", True, "ml-1m", "f" * 64, 100, 20, 10)
T1, T2 = 500, 900
BEYOND = BeyondAccuracy(2.0, None, 80.0, 0.5)


def method(name: str, ranks: list[int], kind: Any = "single", **columns: Any) -> MethodRanks:
    """Two users, four events; the first is cold; ratings 5, 3, 4, 3.5; user 2 comes back after two hours."""
    frame = pd.DataFrame(
        {
            "user_id": np.array([1, 1, 2, 2]),
            "timestamp": np.array([901, 902, 903, 904]),
            "item_id": np.array([10, 11, 10, 12]),
            "rating": np.array([5, 3, 4, 3.5], dtype=np.float32),
            "rank": np.array(ranks, dtype=np.int32),
            "n_history": np.array([0, 1, 30, 31]),
            "gap_s": np.array([-1, 1, 7_200, 1]),
            "new_user": np.array([True, True, False, False]),
            "raters": np.array([9, 10, 9, 0]),
        }
    ).assign(**columns)
    return MethodRanks(name, frame, np.array([10, 11, 11]), 20, BEYOND, kind, f"about {name}")


METHODS = [
    method("popular", [3, 0, 0, 11]),
    method("merged", [1, 1, 0, 7], "system"),
    method("full", [1, 3, 7, 0], "system"),
]


@pytest.fixture
def leaderboard() -> Leaderboard:
    return build_leaderboard(METHODS, INFO, T1, T2, n_boot=50, seed=3)


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
        ("full", "history 21-100", "ndcg@10", (1 / 3 + 0) / 2),
        ("full", "return visit", "ndcg@10", 1 / 3),
        ("full", "new user", "ndcg@10", (1 + 1 / 2) / 2),
        ("popular", "new item", "recall@100", 1.0),
        ("full", "rare item", "ndcg@10", (1 + 1 / 3) / 2),
    ],
)
def test_means_by_segment(leaderboard: Leaderboard, name: str, segment: str, metric: str, expected: float) -> None:
    cell = leaderboard.method(name).segments[segment].metrics[metric]
    assert cell is not None
    assert cell.mean == pytest.approx(expected)
    assert (cell.low, cell.high) == (None, None), "two users give no interval"


def test_sizes_and_measures(leaderboard: Leaderboard) -> None:
    sizes = {name: (s.n_events, s.n_users) for name, s in leaderboard.method("merged").segments.items()}
    assert sizes == {
        **{"all": (4, 2), "warm": (3, 2), "cold": (1, 1), "liked": (2, 2), "history 1-5": (1, 1)},
        **{"history 6-20": (0, 0), "history 21-100": (2, 1), "history over 100": (0, 0), "return visit": (1, 1)},
        **{"new user": (2, 1), "new item": (1, 1), "rare item": (2, 2)},
    }
    assert leaderboard.methods[0].coverage == 0.1  # items 10 and 11 of 20
    assert leaderboard.methods[0].beyond_accuracy == BEYOND


def test_intervals_are_those_of_each_method_and_segment_alone() -> None:
    """Shared draws change nothing: against one bootstrap a method and segment, its events picked by hand."""
    rng = np.random.default_rng(1)
    e = 300
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, 40, e),
            "timestamp": np.arange(e) + 1_000,
            "item_id": rng.integers(0, 20, e),
            "rating": rng.integers(1, 6, e).astype(np.float32),
            "n_history": rng.integers(0, 150, e),
            "gap_s": rng.integers(-1, 9_000, e),
            "new_user": rng.random(e) < 0.5,
            "raters": rng.integers(0, 20, e),
        }
    )
    frames = {name: frame.assign(rank=rng.integers(0, 60, e)) for name in ("a", "b", "c")}
    methods = [MethodRanks(name, f, np.array([1]), 20, BEYOND, "single") for name, f in frames.items()]
    leaderboard = build_leaderboard(methods, INFO, T1, T2, n_boot=100, seed=4)
    picked = {
        "return visit": frame["gap_s"] > 3_600,
        "rare item": frame["raters"].between(1, 9),
        "all": frame.index >= 0,
    }
    for name, of_method in frames.items():
        for segment, rows in picked.items():
            part = of_method[rows]
            values = np.column_stack([measure(part["rank"].to_numpy()) for measure in METRICS.values()])
            alone = bootstrap_means(part["user_id"].to_numpy(), values, n_boot=100, seed=4)
            found = leaderboard.method(name).segments[segment].metrics.values()
            for cell, expected in zip(found, alone.estimates, strict=True):
                assert isinstance(cell, Estimate)
                assert (cell.mean, cell.low, cell.high) == pytest.approx(
                    (expected.mean, expected.low, expected.high), abs=1e-12
                )


def test_the_best_singles() -> None:
    ranks = {"b": [1, 0, 0, 0], "a": [1, 0, 0, 0], "worst": [0, 0, 0, 0], "best": [1, 1, 0, 0]}
    methods = [*(method(name, r) for name, r in ranks.items()), method("full", [1, 1, 1, 1], "system")]
    assert build_leaderboard(methods, INFO, T1, T2, n_boot=5).best_singles(3) == ["best", "a", "b"]
    empty = build_leaderboard([replace(m, frame=m.frame.iloc[:0]) for m in methods], INFO, T1, T2, n_boot=5)
    assert empty.best_singles(2) == []


def test_the_last_system_is_compared_with_every_other_method(leaderboard: Leaderboard) -> None:
    assert leaderboard.system == "full"
    pairs = [(d.other, d.metric) for d in leaderboard.differences]
    assert pairs == [(other, metric) for other in ("popular", "merged") for metric in ("ndcg@10", "hr@10")]
    assert leaderboard.difference("popular").mean == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 4)
    assert leaderboard.difference("merged", "hr@10").mean == 0.0  # three hits each
    assert leaderboard.difference("popular").n_events == 4


@pytest.mark.parametrize("users", [1, MIN_USERS - 1, MIN_USERS])
def test_too_few_users_support_no_claim(users: int) -> None:
    ids = {"user_id": np.arange(8) % users, "timestamp": np.arange(8) + 901, "item_id": np.arange(8)}
    frame = pd.DataFrame({**ids, "rating": 4.0, "n_history": 1, "gap_s": 1, "new_user": False, "raters": 1})
    kinds: dict[str, Any] = {"single": 3, "system": 1}
    methods: list[Any] = [
        MethodRanks(kind, frame.assign(rank=rank), np.array([1]), 20, BEYOND, kind)  # type: ignore[arg-type]
        for kind, rank in kinds.items()
    ]
    found = build_leaderboard(methods, INFO, T1, T2, n_boot=50).difference("single")
    assert found.mean == 0.5
    claims = (found.low, found.high, found.fraction_not_positive)
    assert claims == ((0.5, 0.5, 0.0) if users >= MIN_USERS else (None, None, None))
    assert found.above_zero == (users >= MIN_USERS)


def test_a_system_may_be_named_and_none_may_be_there() -> None:
    methods = [method("a", [1, 1, 1, 1]), method("b", [3, 3, 3, 3])]
    alone = build_leaderboard(methods, INFO, T1, T2, n_boot=5)
    assert (alone.system, alone.differences) == (None, ())
    assert build_leaderboard(methods, INFO, T1, T2, system="a", n_boot=5).difference("b").mean == 0.5


def test_row_order_does_not_matter(leaderboard: Leaderboard) -> None:
    shuffled = [replace(m, frame=m.frame.sample(frac=1, random_state=i)) for i, m in enumerate(METHODS)]
    assert build_leaderboard(shuffled, INFO, T1, T2, n_boot=50, seed=3) == leaderboard


def test_the_json_file_names_data_cutoffs_and_bootstrap(leaderboard: Leaderboard, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "leaderboard.json"
    save_leaderboard(leaderboard, path)
    kept = json.loads(path.read_text())
    label = "planted (synthetic, not MovieLens)"
    assert kept["data"] == {"name": "planted", "label": label, "synthetic": True, "fingerprint": "f" * 64}
    assert kept["bootstrap"] == {"n_boot": 50, "seed": 3, "level": 0.95}
    assert (kept["protocol"]["t2"], kept["protocol"]["t2_utc"]) == (900, "1970-01-01 00:15:00 UTC")
    assert "frozen at T2" in kept["protocol"]["text"]
    cell = leaderboard.methods[0].overall["mrr"]
    assert cell is not None
    assert kept["methods"][0]["segments"]["all"]["metrics"]["mrr"] == {"mean": cell.mean, "low": None, "high": None}


def test_no_event_gives_no_figure_and_no_difference() -> None:
    warm = build_leaderboard([method("a", [1, 2, 3, 4], n_history=7)], INFO, T1, T2, n_boot=5)
    assert warm.methods[0].segments["cold"] == Segment(0, 0, dict.fromkeys(METRICS))
    methods = [method("a", [1, 2, 3, 4]), method("b", [1, 2, 3, 4], "system")]
    empty = build_leaderboard([replace(m, frame=m.frame.iloc[:0]) for m in methods], INFO, T1, T2, n_boot=5)
    assert empty.differences == ()
    assert empty.methods[0].overall["mrr"] is None


A = method("a", [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("methods", "options", "says"),
    [
        ([], {}, "methods with different names"),
        ([A, A], {}, "methods with different names"),
        ([A], {"system": "b"}, "No method is called 'b'; there are a"),
        ([A], {"t2": 901}, "must lie after T2 = 901"),
        ([A], {"t1": 901}, "T1 = 901 not after T2"),
        ([A, replace(A, name="b", n_catalogue=21)], {}, "catalogues of different size"),
        ([A, replace(A, name="b", frame=A.frame.iloc[:3])], {}, "'a' and 'b': The two methods were not measured"),
        *(
            ([A, method("b", [1, 2, 3, 4], **{column: 2})], {}, "disagree on ratings or facts")
            for column in ("rating", "n_history", "gap_s", "new_user", "raters")
        ),
    ],
)
def test_what_cannot_be_a_leaderboard_is_refused(
    methods: list[MethodRanks], options: dict[str, Any], says: str
) -> None:
    arguments = {"t1": T1, "t2": T2, "n_boot": 5, **options}
    with pytest.raises(ValueError, match=says):
        build_leaderboard(methods, INFO, **arguments)


def test_what_cannot_be_a_method_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks of 'a' lack the columns rating, n_history, raters"):
        replace(A, frame=A.frame.drop(columns=["rating", "n_history", "raters"]))
    with pytest.raises(ValueError, match="kind of 'a' must be one of"):
        replace(A, kind="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.500"):
        method("a", [1, 2, 3, 501])
    with pytest.raises(ValueError, match="cannot have shown"):
        replace(A, n_catalogue=1)
