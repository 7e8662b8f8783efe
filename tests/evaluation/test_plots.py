"""Pictures: the same bytes each time, the data named, names drawn as text, nothing drawn of nothing."""

import numpy as np

from recsys.evaluation.plots import cohorts_png, importance_png, leaderboard_png, retrieval_png
from tests.evaluation.leaderboards import NASTY, PNG, TWO, info, make


def test_pictures_repeat_and_differ_with_what_they_show() -> None:
    board = make(TWO)
    assert leaderboard_png(board) == leaderboard_png(board)
    assert cohorts_png(board, ["full"]) != cohorts_png(board, ["popular"])
    empty = make(TWO, events=0)
    assert leaderboard_png(empty) != leaderboard_png(board)
    assert cohorts_png(empty, list(TWO)).startswith(PNG)
    assert importance_png({"f": 0.0}, info()) != importance_png({"f": 0.0}, info(synthetic=True))


def test_more_lines_and_features_than_colours_and_rows() -> None:
    assert retrieval_png({f"m{i}": np.array([i + 1]) for i in range(16)}, info()).startswith(PNG)
    assert importance_png({f"f{i}": float(i) for i in range(40)}, info()).startswith(PNG)
    many = make({f"m{i}": ("single", [i + 1] * 8) for i in range(9)})
    assert cohorts_png(many, [m.name for m in many.methods]).startswith(PNG)


def test_a_nasty_name_is_drawn_as_text() -> None:
    """Neither a formula, which could not be parsed, nor a warning of a missing letter, which would be an error."""
    board = make({NASTY: ("single", [3] * 8)}, name=NASTY, synthetic=True)
    assert leaderboard_png(board).startswith(PNG)
    assert cohorts_png(board, [NASTY]).startswith(PNG)
    assert retrieval_png({NASTY: np.array([1, 0])}, board.data).startswith(PNG)
