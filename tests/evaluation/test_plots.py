"""Pictures: the same bytes each time, the data named, nothing drawn of nothing."""

import numpy as np

from recsys.evaluation.plots import cohorts_png, importance_png, leaderboard_png, retrieval_png
from tests.evaluation.leaderboards import NASTY, PNG, TWO, info, make


def test_pictures_are_the_same_bytes_each_time() -> None:
    leaderboard = make(TWO)
    assert leaderboard_png(leaderboard) == leaderboard_png(leaderboard)
    assert cohorts_png(leaderboard, ["full", "popular"]) == cohorts_png(leaderboard, ["full", "popular"])
    assert cohorts_png(leaderboard, ["full"]) != cohorts_png(leaderboard, ["popular"])
    assert cohorts_png(leaderboard, ["full"]).startswith(PNG)


def test_nothing_measured_is_drawn_as_such() -> None:
    """ "no events" in place of bars and dots."""
    empty = make(TWO, events=0)
    assert leaderboard_png(empty).startswith(PNG)
    assert leaderboard_png(empty) != leaderboard_png(make(TWO))
    assert cohorts_png(empty, list(TWO)).startswith(PNG)


def test_synthetic_data_change_the_pictures() -> None:
    plain, synthetic = info(), info(synthetic=True)
    ranks = {"a": np.array([1, 20, 0]), "b": np.array([0, 0, 0])}
    assert retrieval_png(ranks, plain) != retrieval_png(ranks, synthetic)
    assert importance_png({"f": 0.0}, plain) != importance_png({"f": 0.0}, synthetic)
    assert cohorts_png(make(TWO), ["full"]) != cohorts_png(make(TWO, synthetic=True), ["full"])


def test_more_lines_and_features_than_colours_and_rows() -> None:
    data = info()
    assert retrieval_png({f"m{i}": np.array([i + 1]) for i in range(16)}, data).startswith(PNG)
    assert importance_png({f"f{i}": float(i) for i in range(40)}, data).startswith(PNG)
    many = make({f"m{i}": ("single", [i + 1] * 8) for i in range(9)})
    assert cohorts_png(many, [m.name for m in many.methods]).startswith(PNG)


def test_a_nasty_name_is_drawn_as_text() -> None:
    """Neither a formula, which could not be parsed, nor a warning of a missing letter, which would be an error."""
    leaderboard = make({NASTY: ("single", [3] * 8)}, name=NASTY, synthetic=True)
    for png in (
        leaderboard_png(leaderboard),
        cohorts_png(leaderboard, [NASTY]),
        retrieval_png({NASTY: np.array([1, 0])}, leaderboard.data),
        importance_png({NASTY: 1.0}, leaderboard.data),
    ):
        assert png.startswith(PNG)
