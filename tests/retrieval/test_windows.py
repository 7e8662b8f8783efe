"""Training windows: what a target may know."""

import numpy as np
import pandas as pd
import pytest

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.retrieval.tower_inputs import WindowCutter, gap_levels

LENGTH, CUTOFF = 8, 8_000
USERS = pd.DataFrame({USER_ID: np.arange(1, 13), GENDER: "F", AGE: 20, OCCUPATION: [f"o{i:02}" for i in range(12)]})


def world(seed: int = 0) -> Histories:
    """Users of 0 to 40 events in few distinct seconds. Every event has an item of its own, so that it can be found."""
    rng = np.random.default_rng(seed)
    rows, item = [], 0
    for user, count in zip(range(1, 13), [0, 1, 2, 8, 9, 40, 25, 30, 8, 3, 17, 33], strict=True):
        for time in np.sort(rng.choice(np.arange(100, 10_000, 250), count)):
            rows.append((user, item, rng.integers(1, 11) / 2, time))
            item += 1
    rows += [(4, item + i, 3.0, CUTOFF + 10_000) for i in range(3)]
    events = pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP])
    n = item + 3
    items = pd.DataFrame(
        {ITEM_ID: np.arange(n), TITLE: "Film", YEAR: pd.array([2000] * n, dtype="Int32"), GENRES: [[]] * n}
    )
    return Histories.from_tables(Catalogue.from_tables(items, USERS), events, USERS)


@pytest.fixture(scope="module")
def histories() -> Histories:
    return world()


@pytest.fixture(scope="module")
def cutter(histories: Histories) -> WindowCutter:
    return WindowCutter(histories, CUTOFF, LENGTH)


def owner_of(histories: Histories) -> dict[int, int]:
    return {
        int(histories.item_idx[p]): u
        for u in range(len(histories.user_ids))
        for p in range(histories.offset[u], histories.offset[u + 1])
    }


@pytest.mark.parametrize("epoch", range(2))
def test_no_context_holds_the_target_its_second_or_anything_later(
    histories: Histories, cutter: WindowCutter, epoch: int
) -> None:
    """The leak test of training: every query of every window."""
    time_of = dict(zip(histories.item_idx.tolist(), histories.timestamps.tolist(), strict=True))
    owner = owner_of(histories)
    bounds, users = cutter.cut(np.random.default_rng(epoch))
    w = cutter.windows(bounds, users)
    assert len(w.target_item) > 100
    for query, target in zip(w.target_query, w.target_item, strict=True):
        row, known = w.query_row[query], w.query_position[query]
        tokens = w.item_idx[row, :known]
        assert (tokens >= 0).all()
        assert {owner[int(m)] for m in tokens} <= {owner[int(target)]}
        assert owner[int(target)] == users[row]
        moment = time_of[int(target)]
        assert moment <= CUTOFF
        assert all(time_of[int(m)] < moment for m in tokens)
        # and nothing of the window that is earlier than the target is withheld
        whole = w.item_idx[row][w.item_idx[row] >= 0]
        assert [int(m) for m in tokens] == [int(m) for m in whole if time_of[int(m)] < moment]
        before = histories.ends_before(users[row : row + 1], np.array([moment]))[0] - histories.offset[users[row]]
        expected = 0 if known == 0 else int(gap_levels(np.array([moment - time_of[int(tokens[-1])]]))[0])
        assert w.query_gap[query] == expected
        assert known > 0 or before == 0, "an empty context is shown only where the history is empty"


def test_every_known_event_is_a_token_once_and_a_target_at_most_once(
    histories: Histories, cutter: WindowCutter
) -> None:
    known = histories.item_idx[histories.timestamps <= CUTOFF]
    assert cutter.n_events == len(known)
    targets: set[int] = set()
    for epoch in range(8):
        bounds, users = cutter.cut(np.random.default_rng(epoch))
        w = cutter.windows(bounds, users)
        tokens = w.item_idx[w.item_idx >= 0]
        assert sorted(tokens.tolist()) == sorted(known.tolist()), "later events do not exist"
        assert len(set(w.target_item.tolist())) == len(w.target_item)
        targets |= set(w.target_item.tolist())
    assert targets == set(known.tolist()), "random offsets: in time every event is a target"


def test_arrays_worked_out_by_hand() -> None:
    """One user: A at 100, B and C at 700, D at 5,000 (the cutoff), E later."""
    items = pd.DataFrame(
        {ITEM_ID: range(5), TITLE: "Film", YEAR: pd.array([2000] * 5, dtype="Int32"), GENRES: [[]] * 5}
    )
    events = pd.DataFrame(
        {USER_ID: 3, ITEM_ID: range(5), RATING: [0.5, 5.0, 3.0, 4.0, 1.0], TIMESTAMP: [100, 700, 700, 5_000, 5_001]}
    )
    h = Histories.from_tables(Catalogue.from_tables(items, USERS), events, USERS)
    cutter = WindowCutter(h, 5_000, LENGTH)
    w = cutter.windows(*cutter.cut(np.random.default_rng(0)))
    assert w.item_idx.tolist() == [[0, 1, 2, 3]]
    assert w.ratings.tolist() == [[1, 10, 6, 8]]
    ten_minutes, an_hour = gap_levels(np.array([600, 4_300])).tolist()
    assert w.gaps.tolist() == [[0, ten_minutes, 0, an_hour]]
    assert w.profile.tolist() == [[1, 2, 3]]
    assert w.query_row.tolist() == [0, 0, 0]
    assert w.query_position.tolist() == [0, 1, 3]
    assert w.query_gap.tolist() == [0, ten_minutes, an_hour]
    assert w.target_query.tolist() == [0, 1, 1, 2]
    assert w.target_item.tolist() == [0, 1, 2, 3]
