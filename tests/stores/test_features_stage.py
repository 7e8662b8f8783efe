"""Stage `features` over an event table, embedded: the next models and the online store know what was received."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.events import RATING_KIND, NewEvent
from recsys.feature_store import FeatureStore
from recsys.settings import read_settings
from tests.conftest import SILENT_USERS, TrainedHome

NEWCOMER, NO_ITEM = 9_000, 987_654


@pytest.mark.usefixtures("small_settings")
def test_events_received_are_in_states_and_statistics(trained_home: TrainedHome, tmp_path: Path) -> None:
    shutil.copytree(trained_home.root, tmp_path / "home")
    home = TrainedHome(tmp_path / "home", trained_home.raw)
    events, end = home.events, int(home.events[TIMESTAMP].max())
    user = int(events[USER_ID].mode()[0])
    rated = events.loc[events[USER_ID] == user, ITEM_ID].tolist()
    unseen = sorted(set(home.items[ITEM_ID]) - set(rated))
    sent = [
        (user, unseen[0], 5.0, end - 1_000),  # received late
        (user, unseen[1], 4.0, end + 100),
        (user, rated[0], 0.5, end + 200),  # again
        (SILENT_USERS[0], unseen[0], 3.0, end + 10),
        (NEWCOMER, unseen[0], 2.0, end + 50),
        (NEWCOMER, NO_ITEM, 2.0, end + 60),
    ]
    table = read_settings(home.root).event_table(home.dataset)
    table.append([NewEvent(str(n), u, i, RATING_KIND, r, t, t) for n, (u, i, r, t) in enumerate(sent)])
    table.append([NewEvent("watched", user, unseen[2], "watch", None, end + 300, end + 300)])
    assert home.run("train", "--only", "features", "--force") == 0

    store = FeatureStore(read_settings(home.root).feature_store(home.dataset))
    found = [state for state in store.online_states([user, *SILENT_USERS, NEWCOMER]) if state]
    assert [state.n_events for state in found] == [len(rated) + 2, 1, 0, 1]
    assert {state.through_seq for state in found} == {table.safe_seq()}
    assert (found[0].item_ids[-1], found[0].ratings[-1]) == (rated[0], 0.5)
    assert {unseen[0], unseen[1]} <= set(found[0].seen_item_ids)
    days = pd.DataFrame({ITEM_ID: unseen[0], "day": [end // 86_400 - 1, end // 86_400 + 2]})
    before, after = store.historical_item_stats(days)["n_ratings"].fillna(0)
    assert after == before + 3
    store.close()
    table.close()
