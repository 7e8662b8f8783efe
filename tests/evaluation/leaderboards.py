"""Small leaderboards for the tests of tables, pictures and the page."""

from typing import Any

import numpy as np
import pandas as pd

from recsys.data.tables import DatasetInfo
from recsys.evaluation.beyond_accuracy import BeyondAccuracy
from recsys.evaluation.leaderboard import Leaderboard, MethodRanks, Replayed, build_leaderboard
from recsys.evaluation.study import StudyRun

NASTY = """<script>alert("x")</script> & 'q' $\\frac{1 | {0} %s \x1b[31m 日本"""
PNG = b"\x89PNG\r\n\x1a\n"
TWO = {"popular": ("single", [3] * 8), "full": ("system", [1] * 8)}


def info(name: str = "ml-1m", synthetic: bool = False) -> DatasetInfo:
    return DatasetInfo(name, synthetic, "ml-1m", "a" * 64, 9, 10, 9)


def study_run(name: str = "ml-1m", synthetic: bool = False) -> StudyRun:
    return StudyRun(info(name, synthetic), {"command": "recsys train"}, "b1")


def make(
    ranks: dict[str, tuple[str, list[int]]],
    *,
    name: str = "ml-1m",
    synthetic: bool = False,
    users: int = 8,
    events: int = 8,
) -> Leaderboard:
    """Events spread over `users` users, none of them cold, at histories of 1, 11, .., 71 events.

    The beyond-accuracy measures of method m are m + 0.5, m + 1.5, ..; the second one has no diversity.
    """
    n = 8
    frame = pd.DataFrame(
        {
            "user_id": np.arange(n) % users,
            "timestamp": np.arange(n) + 1000,
            "item_id": np.arange(n),
            "rating": np.full(n, 4, dtype=np.float32),
            "n_history": np.arange(n) * 10 + 1,
            "gap_s": np.array([1, 3_600, 3_601, 1, 1, 1, 1, 1]),
            "new_user": np.arange(n) % users == 0,
            "raters": np.array([1, 9, 10, 50, 50, 50, 50, 50]),
        }
    )
    methods = []
    kind: Any
    for m, (title, (kind, values)) in enumerate(ranks.items()):
        beyond = BeyondAccuracy(0.5, m + 0.5, None if m == 1 else m + 1.5, m + 2.5, m + 3.5)
        methods.append(MethodRanks(title, np.array(values)[:events], beyond, kind, f"about {title}"))
    replayed = Replayed(frame.iloc[:events], 10, methods)
    return build_leaderboard(replayed, info(name, synthetic), 500, 999, n_boot=200)
