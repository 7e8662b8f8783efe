"""Moments of prediction: whole seconds of one user, in time order."""

import numpy as np
import pandas as pd

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.features.prediction_points import PredictionPoints

DAY = 86_400
EVENTS = pd.DataFrame(
    [(2, 10, DAY + 5), (1, 11, DAY + 5), (2, 12, DAY + 5), (1, 13, DAY - 1), (2, 14, 3 * DAY), (1, 15, DAY + 6)],
    columns=[USER_ID, ITEM_ID, TIMESTAMP],
).assign(**{RATING: [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]})


def test_events_of_one_user_and_second_are_one_context_in_time_order() -> None:
    contexts = PredictionPoints.from_events(EVENTS)
    assert contexts.timestamp.tolist() == [DAY - 1, DAY + 5, DAY + 5, DAY + 6, 3 * DAY]
    assert contexts.user_id.tolist() == [1, 1, 2, 1, 2]
    assert contexts.event_item_id.tolist() == [10, 11, 12, 13, 14, 15]
    assert contexts.event_context.tolist() == [2, 1, 2, 0, 4, 3]
    assert contexts.event_rating.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert len(contexts) == 5


def test_a_sample_keeps_whole_contexts_with_their_events_and_is_seeded() -> None:
    whole = PredictionPoints.from_events(EVENTS)
    asked = {(u, t): set() for u, t in zip(whole.user_id, whole.timestamp, strict=True)}
    for c, i in zip(whole.event_context, whole.event_item_id, strict=True):
        asked[whole.user_id[c], whole.timestamp[c]].add(i)
    for seed in range(5):
        sample = PredictionPoints.from_events(EVENTS, most=3, seed=seed)
        assert len(sample) == 3
        assert (np.diff(sample.timestamp) >= 0).all()
        got = {(u, t): set() for u, t in zip(sample.user_id, sample.timestamp, strict=True)}
        for c, i in zip(sample.event_context, sample.event_item_id, strict=True):
            got[sample.user_id[c], sample.timestamp[c]].add(i)
        assert got == {key: asked[key] for key in got}
        assert sample.event_rating.tolist() == [(i - 9) / 2 for i in sample.event_item_id]
    again = [PredictionPoints.from_events(EVENTS, most=3, seed=4).timestamp for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert len(PredictionPoints.from_events(EVENTS, most=5)) == 5


def test_batches_hold_one_day_each_in_order() -> None:
    contexts = PredictionPoints.from_events(EVENTS)
    assert [b.tolist() for b in contexts.batches_by_day()] == [[0], [1, 2, 3], [4]]
    assert [b.tolist() for b in contexts.batches_by_day(2)] == [[0], [1, 2], [3], [4]]
    nothing = PredictionPoints.from_events(EVENTS.iloc[:0])
    assert (len(nothing), nothing.batches_by_day()) == (0, [])
