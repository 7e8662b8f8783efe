"""Cohorts on events chosen to lie on every border, and what training knew against plain Python."""

import numpy as np
import pandas as pd
import pytest

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.evaluation.cohorts import SEGMENTS, Trained, segment_masks
from recsys.features.histories import Histories
from tests import planted


@pytest.mark.parametrize(
    ("column", "values", "segment", "inside"),
    [
        ("n_history", [0, 1, 2], "cold", [0]),
        ("n_history", [0, 1, 2], "warm", [1, 2]),
        ("n_history", [0, 1, 5, 6], "history 1-5", [1, 5]),
        ("n_history", [5, 6, 20, 21], "history 6-20", [6, 20]),
        ("n_history", [20, 21, 100, 101], "history 21-100", [21, 100]),
        ("n_history", [100, 101, 9_999], "history over 100", [101, 9_999]),
        ("rating", [3.5, 4.0, 5.0], "liked", [4.0, 5.0]),
        ("gap_s", [-1, 0, 3_600, 3_601], "return visit", [3_601]),
        ("new_user", [True, False], "new user", [True]),
        ("raters", [0, 1], "new item", [0]),
        ("raters", [0, 1, 9, 10], "rare item", [1, 9]),
        ("raters", [50], "all", [50]),
    ],
)
def test_borders(column: str, values: list[float], segment: str, inside: list[float]) -> None:
    quiet = {"rating": 3.0, "n_history": 1, "gap_s": 5, "new_user": False, "raters": 50}
    masks = segment_masks(
        pd.DataFrame({**{name: [value] * len(values) for name, value in quiet.items()}, column: values})
    )
    assert list(masks) == list(SEGMENTS)
    assert [v for v, held in zip(values, masks[segment], strict=True) if held] == inside


def test_training_knows_events_up_to_the_cutoff_and_a_second_rating_is_no_second_user() -> None:
    rows = [(1, 5, 10), (1, 5, 20), (2, 5, 20), (2, 8, 21), (3, 8, 21), (3, 11, 30)]
    events = pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, TIMESTAMP]).assign(**{RATING: np.float32(4)})
    histories = Histories.from_tables(planted.planted_catalogue(), events, planted.planted_tables().users.iloc[:0])
    for cutoff in (9, 10, 20, 21, 30):
        known = {(user, item) for user, item, at in rows if at <= cutoff}
        trained = Trained.through(histories, cutoff)
        ids = planted.planted_catalogue().item_ids.tolist()
        assert trained.raters.tolist() == [len({u for u, m in known if m == item}) for item in ids]
        assert trained.user_ids.tolist() == sorted({user for user, _ in known})
