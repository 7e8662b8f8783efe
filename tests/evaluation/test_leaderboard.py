"""The leaderboard on four events worked by hand, its segments, its JSON, and every refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.data.tables import DatasetInfo
from recsys.evaluation.bootstrap import bootstrap_means
from recsys.evaluation.leaderboard import MethodRanks, best_singles, build_leaderboard, save_leaderboard
from recsys.evaluation.metrics import METRICS

INFO = DatasetInfo("planted", True, "ml-1m", "f" * 64, 100, 20, 10)
T1, T2 = 500, 900
BEYOND: dict[str, float | None] = {"novelty@10": 2.0, "diversity@10": None, "popularity@10": 80.0, "gini@10": 0.5}


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


@pytest.fixture
def leaderboard() -> dict[str, Any]:
    methods = [
        method("popular", [3, 0, 0, 11]),
        method("merged", [1, 1, 0, 7], "system"),
        method("full", [1, 3, 7, 0], "system"),
    ]
    return build_leaderboard(methods, INFO, T1, T2, n_boot=50, seed=3)


def cell(leaderboard: dict[str, Any], number: int, segment: str, metric: str) -> Any:
    return leaderboard["methods"][number]["segments"][segment]["metrics"][metric]


def test_means_by_segment(leaderboard: dict[str, Any]) -> None:
    assert cell(leaderboard, 2, "all", "ndcg@10")["mean"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4)
    assert cell(leaderboard, 2, "cold", "ndcg@10")["mean"] == 1.0
    assert cell(leaderboard, 2, "warm", "ndcg@10")["mean"] == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert cell(leaderboard, 2, "liked", "ndcg@10")["mean"] == pytest.approx((1 + 1 / 3) / 2)  # ratings 5 and 4
    assert cell(leaderboard, 0, "all", "hr@10")["mean"] == 0.25
    assert cell(leaderboard, 0, "all", "recall@100")["mean"] == 0.5
    assert cell(leaderboard, 0, "all", "mrr")["mean"] == pytest.approx((1 / 3 + 1 / 11) / 4)
    assert cell(leaderboard, 2, "history 21-100", "ndcg@10")["mean"] == pytest.approx((1 / 3 + 0) / 2)
    assert cell(leaderboard, 2, "return visit", "ndcg@10")["mean"] == pytest.approx(1 / 3)
    assert cell(leaderboard, 2, "new user", "ndcg@10")["mean"] == pytest.approx((1 + 1 / 2) / 2)
    assert cell(leaderboard, 0, "new item", "recall@100")["mean"] == 1.0
    assert cell(leaderboard, 2, "rare item", "ndcg@10")["mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert leaderboard["methods"][0]["coverage@10"] == 0.1  # items 10 and 11 of 20
    assert leaderboard["methods"][0]["beyond_accuracy"] == BEYOND


def test_sizes_and_flags(leaderboard: dict[str, Any]) -> None:
    sizes = {
        name: (s["n_events"], s["n_users"], s["degenerate"])
        for name, s in leaderboard["methods"][1]["segments"].items()
    }
    assert sizes == {
        "all": (4, 2, False),
        "warm": (3, 2, False),
        "cold": (1, 1, True),
        "liked": (2, 2, False),
        "history 1-5": (1, 1, True),
        "history 6-20": (0, 0, False),
        "history 21-100": (2, 1, True),
        "history over 100": (0, 0, False),
        "return visit": (1, 1, True),
        "new user": (2, 1, True),
        "new item": (1, 1, True),
        "rare item": (2, 2, False),
    }


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
    for number, of_method in enumerate(frames.values()):
        for segment, rows in picked.items():
            part = of_method[rows]
            values = np.column_stack([measure(part["rank"].to_numpy()) for measure in METRICS.values()])
            alone = bootstrap_means(part["user_id"].to_numpy(), values, n_boot=100, seed=4)
            for m, metric in enumerate(METRICS):
                found = cell(leaderboard, number, segment, metric)
                expected = (alone.mean[m], alone.low[m], alone.high[m])
                assert (found["mean"], found["low"], found["high"]) == pytest.approx(expected, abs=1e-12)
                assert found["low"] <= found["mean"] <= found["high"]


def test_the_best_singles() -> None:
    ranks = {"b": [1, 0, 0, 0], "a": [1, 0, 0, 0], "worst": [0, 0, 0, 0], "best": [1, 1, 0, 0]}
    methods = [*(method(name, r) for name, r in ranks.items()), method("full", [1, 1, 1, 1], "system")]
    leaderboard = build_leaderboard(methods, INFO, T1, T2, n_boot=5)
    assert best_singles(leaderboard, 3) == ["best", "a", "b"]
    empty = build_leaderboard([replace(m, frame=m.frame.iloc[:0]) for m in methods], INFO, T1, T2, n_boot=5)
    assert best_singles(empty, 2) == []


def test_the_last_system_is_compared_with_every_other_method(leaderboard: dict[str, Any]) -> None:
    assert leaderboard["system"] == "full"
    pairs = [(d["system"], d["other"], d["metric"]) for d in leaderboard["differences"]]
    assert pairs == [("full", other, metric) for other in ("popular", "merged") for metric in ("ndcg@10", "hr@10")]
    ndcg = leaderboard["differences"][0]
    assert ndcg["mean"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 4)
    assert leaderboard["differences"][3]["mean"] == 0.0  # three hits each
    assert ndcg["n_events"] == 4


def test_a_system_may_be_named_and_none_may_be_there() -> None:
    methods = [method("a", [1, 1, 1, 1]), method("b", [3, 3, 3, 3])]
    alone = build_leaderboard(methods, INFO, T1, T2, n_boot=5)
    assert (alone["system"], alone["differences"]) == (None, [])
    named = build_leaderboard(methods, INFO, T1, T2, system="a", n_boot=5)
    assert named["differences"][0]["mean"] == 0.5


def test_row_order_does_not_matter(leaderboard: dict[str, Any]) -> None:
    methods = [
        method("popular", [3, 0, 0, 11]),
        method("merged", [1, 1, 0, 7], "system"),
        method("full", [1, 3, 7, 0], "system"),
    ]
    shuffled = [replace(m, frame=m.frame.sample(frac=1, random_state=i)) for i, m in enumerate(methods)]
    assert build_leaderboard(shuffled, INFO, T1, T2, n_boot=50, seed=3) == leaderboard


def test_what_it_says_of_itself(leaderboard: dict[str, Any]) -> None:
    assert leaderboard["version"] == 2
    assert leaderboard["data"] == {
        "name": "planted",
        "label": "planted (synthetic, not MovieLens)",
        "synthetic": True,
        "fingerprint": "f" * 64,
    }
    assert leaderboard["bootstrap"] == {"n_boot": 50, "seed": 3, "level": 0.95}
    assert (leaderboard["protocol"]["t2"], leaderboard["protocol"]["t2_utc"]) == (900, "1970-01-01 00:15:00 UTC")
    assert "frozen at T2" in leaderboard["protocol"]["text"]


def test_an_empty_segment_is_null_and_survives_json(tmp_path: Path) -> None:
    leaderboard = build_leaderboard([method("a", [1, 2, 3, 4], n_history=7)], INFO, T1, T2, n_boot=5)
    assert leaderboard["methods"][0]["segments"]["cold"] == {
        "n_events": 0,
        "n_users": 0,
        "degenerate": False,
        "metrics": dict.fromkeys(METRICS),
    }
    path = tmp_path / "deep" / "leaderboard.json"
    save_leaderboard(leaderboard, path)
    assert json.loads(path.read_text()) == leaderboard
    assert "NaN" not in path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        save_leaderboard({"bad": float("nan")}, path)
    assert json.loads(path.read_text()) == leaderboard  # the old file is still whole


def test_no_event_at_all_gives_nulls_and_no_difference() -> None:
    methods = [method("a", [1, 2, 3, 4]), method("b", [1, 2, 3, 4], "system")]
    leaderboard = build_leaderboard([replace(m, frame=m.frame.iloc[:0]) for m in methods], INFO, T1, T2, n_boot=5)
    assert leaderboard["differences"] == []
    assert cell(leaderboard, 0, "all", "mrr") is None
    json.dumps(leaderboard, allow_nan=False)


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
        ([A, replace(A, name="b", frame=A.frame.iloc[:3])], {}, "'a' and 'b': The two methods were not asked"),
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
    with pytest.raises(ValueError, match=r"'a' needs the measures novelty@10, .*, not \['gini@10'\]"):
        replace(A, beyond={"gini@10": 1.0})
    with pytest.raises(ValueError, match="kind of 'a' must be one of"):
        replace(A, kind="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.500"):
        method("a", [1, 2, 3, 501])
    with pytest.raises(ValueError, match="cannot have shown"):
        replace(A, n_catalogue=1)
