"""The same feature by every way: computed from events, read as of a past moment, read online."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd

from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.features.item_stats import ItemStats, ItemStatsTimeline
from recsys.features.state import HISTORY_LENGTH, StateBatch, UserState, state_batch

from .feature_worlds import DAY, T0, World, newest


def past(state: UserState) -> UserState:
    """Without what a row of a past moment leaves out."""
    return replace(state, older_item_ids=(), older_ratings=(), older_timestamps=())


def _same_batch(ours: StateBatch, expected: StateBatch, *, seen: bool) -> None:
    for field in fields(StateBatch):
        if field.name != "seen_idx":
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(expected, field.name), field.name)
    if seen:
        for a, b in zip(ours.seen_idx, expected.seen_idx, strict=True):
            np.testing.assert_array_equal(a, b)


def _same_stats(ours: ItemStats, expected: ItemStats) -> None:
    for field in fields(ItemStats)[:-1]:  # but for through_seq
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(expected, field.name), field.name)


def test_past_states_equal_the_batch_computation(seeded: World) -> None:
    """At each event's own second and one later, in an order of no meaning."""
    contexts = pd.concat([seeded.events, seeded.events.assign(**{TIMESTAMP: seeded.events[TIMESTAMP] + 1})])
    contexts = contexts.sample(frac=1, random_state=0)
    users, nows = contexts[USER_ID].to_numpy(), contexts[TIMESTAMP].to_numpy()
    states = seeded.store.historical_states(users, nows)
    ours = state_batch(seeded.catalogue, states, nows)
    _same_batch(ours, seeded.histories.states_at(users, nows), seen=False)
    assert (ours.n_events > HISTORY_LENGTH).any()  # the window was outgrown, or this test shows less than it says


def test_online_states_are_the_newest_and_equal_past_states_just_after_the_end(seeded: World) -> None:
    """Every user of the users table, those without events among them."""
    users = seeded.histories.user_ids
    found = [state for state in seeded.store.online_states(users.tolist()) if state]
    assert found == [newest(seeded, int(user)) for user in users]
    assert [past(state) for state in found] == seeded.store.historical_states(users, seeded.end)
    ours = state_batch(seeded.catalogue, found, seeded.end)
    _same_batch(ours, seeded.histories.states_at(users, seeded.end), seen=True)
    assert seeded.histories.repeats.any()
    assert any(state.older_item_ids for state in found)


def test_item_statistics_equal_the_timeline_for_every_item_and_day(seeded: World) -> None:
    timeline = ItemStatsTimeline(seeded.catalogue, seeded.snapshots)
    last = seeded.store.last_snapshot_day()
    assert last == timeline.last_day
    days = [T0 // DAY - 1, T0 // DAY, T0 // DAY + 1, last - 1, last, last + 400]
    items = seeded.catalogue.item_ids
    together = seeded.store.historical_item_stats(
        pd.DataFrame({ITEM_ID: np.tile(items, len(days)), "day": np.repeat(days, len(items))})
    )
    for day in days:
        expected = timeline.as_of(day)
        rows = together[together["day"] == day]
        _same_stats(ItemStats.from_rows(seeded.catalogue, rows, day), expected)
        _same_stats(seeded.store.item_stats_as_of(seeded.catalogue, day), expected)
