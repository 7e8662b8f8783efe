"""Stage `features` over an event log, embedded: what training reads stays as it was, what serving reads is complete."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.feature_store import FeatureStore
from recsys.settings import read_settings
from tests.conftest import SILENT_USERS, TrainedHome
from tests.feature_store.test_latest import log_events

STRANGER = 9_000


@pytest.mark.usefixtures("small_settings")
def test_late_events_reach_the_newest_states_and_change_no_training_table(
    trained_home: TrainedHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_home.root, tmp_path / "home")
    home = TrainedHome(tmp_path / "home", trained_home.raw)
    events = home.events
    facts = home.dataset.work / "ranker_t2" / "facts.json"
    before = facts.read_text()
    moments = events[[USER_ID, TIMESTAMP]].sample(300, random_state=0)
    end = int(events[TIMESTAMP].max())
    user = int(events[USER_ID].mode()[0])
    unseen = sorted(set(home.items[ITEM_ID]) - set(events.loc[events[USER_ID] == user, ITEM_ID]))
    middle = int(events.loc[events[USER_ID] == user, TIMESTAMP].median())
    log_events(
        home.dataset.events,
        [
            (user, unseen[0], 5.0, middle),  # told late, of the time from which the ranker learns
            (user, unseen[1], 4.0, end + 100),
            (SILENT_USERS[0], unseen[0], 3.0, 1_000),  # before everything
            (STRANGER, unseen[0], 2.0, end + 50),
        ],
        received=end + 200,
    )
    assert home.run("train", "--only", "features", "--force") == 0
    assert "3 users moved by the event log" in capsys.readouterr().err
    store = FeatureStore(read_settings(home.root).feature_store(home.dataset))
    found = store.online_states([user, *SILENT_USERS, STRANGER])
    counts = [row[0].n_events for row in found if row is not None]
    assert counts == [int((events[USER_ID] == user).sum()) + 2, 1, 0, 1]
    assert found[0] is not None
    assert {unseen[0], unseen[1]} <= set(found[0][1].tolist())
    known = store.historical_states(moments[USER_ID], moments[TIMESTAMP])
    for state, (owner, moment) in zip(known, moments.to_numpy(), strict=True):
        assert state.n_events <= int(((events[USER_ID] == owner) & (events[TIMESTAMP] < moment)).sum())
        assert unseen[0] not in state.item_ids or owner != user
    days = pd.DataFrame({ITEM_ID: unseen[0], "day": np.array([middle, end + 200 + 86_400]) // 86_400})
    then, now = store.historical_item_stats(days)["n_ratings"].fillna(0)
    assert now >= then + 3
    store.close()

    # The ranker, learnt again from these tables, is told the very same as before.
    assert home.run("train", "--only", "ranker_t2", "--force") == 0
    assert facts.read_text() == before
