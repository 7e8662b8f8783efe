"""The ladder on four events worked by hand, its segments, its JSON, and every refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.data.tables import Source
from recsys.errors import MissingArtefactError
from recsys.evaluation.ladder import SEGMENTS, MethodRanks, build_ladder, load_ladder, save_ladder
from recsys.evaluation.metrics import METRICS

SOURCE = Source("planted", True, "ml-1m", "f" * 64, 100, 20, 10)
T1, T2 = 500, 900


def method(name: str, ranks: list[int], kind: Any = "single", **columns: Any) -> MethodRanks:
    """Two users, four events; the first is cold; ratings 5, 3, 4, 3.5."""
    frame = pd.DataFrame(
        {
            "user_id": np.array([1, 1, 2, 2]),
            "timestamp": np.array([901, 902, 903, 904]),
            "item_id": np.array([10, 11, 10, 12]),
            "rating": np.array([5, 3, 4, 3.5], dtype=np.float32),
            "rank": np.array(ranks, dtype=np.int32),
            "cold": [True, False, False, False],
        }
    ).assign(**columns)
    return MethodRanks(name, frame, np.array([10, 11, 11]), 20, kind, f"about {name}")


@pytest.fixture
def ladder() -> dict[str, Any]:
    methods = [
        method("popular", [3, 0, 0, 11]),
        method("merged", [1, 1, 0, 7], "system"),
        method("full", [1, 3, 7, 0], "system"),
    ]
    return build_ladder(methods, SOURCE, T1, T2, n_boot=50, seed=3)


def cell(ladder: dict[str, Any], number: int, segment: str, metric: str) -> Any:
    return ladder["methods"][number]["segments"][segment]["metrics"][metric]


def test_means_by_segment(ladder: dict[str, Any]) -> None:
    assert cell(ladder, 2, "all", "ndcg@10")["mean"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4)
    assert cell(ladder, 2, "cold", "ndcg@10")["mean"] == 1.0
    assert cell(ladder, 2, "warm", "ndcg@10")["mean"] == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert cell(ladder, 2, "liked", "ndcg@10")["mean"] == pytest.approx((1 + 1 / 3) / 2)  # ratings 5 and 4
    assert cell(ladder, 0, "all", "hr@10")["mean"] == 0.25
    assert cell(ladder, 0, "all", "recall@100")["mean"] == 0.5
    assert cell(ladder, 0, "all", "mrr")["mean"] == pytest.approx((1 / 3 + 1 / 11) / 4)
    assert ladder["methods"][0]["coverage@10"] == 0.1  # items 10 and 11 of 20


def test_sizes_and_flags(ladder: dict[str, Any]) -> None:
    sizes = {
        name: (s["n_events"], s["n_users"], s["degenerate"]) for name, s in ladder["methods"][1]["segments"].items()
    }
    assert sizes == {"all": (4, 2, False), "warm": (3, 2, False), "cold": (1, 1, True), "liked": (2, 2, False)}


def test_intervals_hold_the_mean(ladder: dict[str, Any]) -> None:
    for number in range(3):
        for segment in SEGMENTS:
            for metric in METRICS:
                c = cell(ladder, number, segment, metric)
                assert c["low"] <= c["mean"] <= c["high"]


def test_the_last_system_is_compared_with_every_other_method(ladder: dict[str, Any]) -> None:
    assert ladder["system"] == "full"
    pairs = [(d["system"], d["other"], d["metric"]) for d in ladder["differences"]]
    assert pairs == [("full", other, metric) for other in ("popular", "merged") for metric in ("ndcg@10", "hr@10")]
    ndcg = ladder["differences"][0]
    assert ndcg["mean"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 4)
    assert ladder["differences"][3]["mean"] == 0.0  # three hits each
    assert ndcg["n_events"] == 4


def test_a_system_may_be_named_and_none_may_be_there() -> None:
    methods = [method("a", [1, 1, 1, 1]), method("b", [3, 3, 3, 3])]
    alone = build_ladder(methods, SOURCE, T1, T2, n_boot=5)
    assert (alone["system"], alone["differences"]) == (None, [])
    named = build_ladder(methods, SOURCE, T1, T2, system="a", n_boot=5)
    assert named["differences"][0]["mean"] == 0.5


def test_row_order_does_not_matter(ladder: dict[str, Any]) -> None:
    methods = [
        method("popular", [3, 0, 0, 11]),
        method("merged", [1, 1, 0, 7], "system"),
        method("full", [1, 3, 7, 0], "system"),
    ]
    shuffled = [replace(m, frame=m.frame.sample(frac=1, random_state=i)) for i, m in enumerate(methods)]
    assert build_ladder(shuffled, SOURCE, T1, T2, n_boot=50, seed=3) == ladder


def test_what_it_says_of_itself(ladder: dict[str, Any]) -> None:
    assert ladder["version"] == 1
    assert ladder["data"] == {
        "name": "planted",
        "label": "planted (synthetic, not MovieLens)",
        "synthetic": True,
        "fingerprint": "f" * 64,
    }
    assert ladder["bootstrap"] == {"n_boot": 50, "seed": 3, "level": 0.95}
    assert (ladder["protocol"]["t2"], ladder["protocol"]["t2_utc"]) == (900, "1970-01-01 00:15:00 UTC")
    assert "frozen at T2" in ladder["protocol"]["text"]


def test_an_empty_segment_is_null_and_survives_json(tmp_path: Path) -> None:
    ladder = build_ladder([method("a", [1, 2, 3, 4], cold=False)], SOURCE, T1, T2, n_boot=5)
    assert ladder["methods"][0]["segments"]["cold"] == {
        "n_events": 0,
        "n_users": 0,
        "degenerate": False,
        "metrics": dict.fromkeys(METRICS),
    }
    path = tmp_path / "deep" / "ladder.json"
    save_ladder(ladder, path)
    assert load_ladder(path) == ladder
    assert "NaN" not in path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        save_ladder({"version": 1, "bad": float("nan")}, path)
    assert load_ladder(path) == ladder  # the old file is still whole


def test_no_event_at_all_gives_nulls_and_no_difference() -> None:
    methods = [method("a", [1, 2, 3, 4]), method("b", [1, 2, 3, 4], "system")]
    ladder = build_ladder([replace(m, frame=m.frame.iloc[:0]) for m in methods], SOURCE, T1, T2, n_boot=5)
    assert ladder["differences"] == []
    assert cell(ladder, 0, "all", "mrr") is None
    json.dumps(ladder, allow_nan=False)


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefactError, match=r"No ladder at .*Run `recsys evaluate` first"):
        load_ladder(tmp_path / "ladder.json")
    for content, version in (('{"version": 0}', "0"), ("[]", "None")):
        (tmp_path / "ladder.json").write_text(content)
        with pytest.raises(MissingArtefactError, match=f"of version {version}, not 1"):
            load_ladder(tmp_path / "ladder.json")


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
        ([A, method("b", [1, 2, 3, 4], cold=False)], {}, "disagree on ratings or cold flags"),
        ([A, method("b", [1, 2, 3, 4], rating=np.float32(2))], {}, "disagree on ratings or cold flags"),
    ],
)
def test_what_cannot_be_a_ladder_is_refused(methods: list[MethodRanks], options: dict[str, Any], says: str) -> None:
    arguments = {"t1": T1, "t2": T2, "n_boot": 5, **options}
    with pytest.raises(ValueError, match=says):
        build_ladder(methods, SOURCE, **arguments)


def test_what_cannot_be_a_method_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks of 'a' lack the columns rating, cold"):
        replace(A, frame=A.frame.drop(columns=["rating", "cold"]))
    with pytest.raises(ValueError, match="kind of 'a' must be one of"):
        replace(A, kind="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.500"):
        method("a", [1, 2, 3, 501])
    with pytest.raises(ValueError, match="cannot have shown"):
        replace(A, n_catalogue=1)
