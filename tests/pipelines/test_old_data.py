"""A data set that ended years ago, and one rating of today."""

import shutil
import time
from pathlib import Path

import pandas as pd
import pytest

from recsys.columns import ITEM_ID, RANK, TIMESTAMP, USER_ID
from recsys.events import RATING_KIND, NewEvent
from recsys.feature_store import FeatureStore
from recsys.settings import read_settings
from tests.conftest import TrainedHome

STRANGER = 900_001


@pytest.mark.usefixtures("small_settings")
def test_one_rating_of_today_changes_nobody_elses_list(trained_home: TrainedHome, tmp_path: Path) -> None:
    shutil.copytree(trained_home.root, tmp_path / "home")
    home = TrainedHome(tmp_path / "home", trained_home.raw)
    last_recorded = int(home.events[TIMESTAMP].max())
    item = int(home.items[ITEM_ID].iloc[10])
    now = int(time.time())
    at = str(now + 86_400)  # tomorrow
    lists = {}
    for name in ("before", "after"):
        assert home.run("batch", "--k", "10", "--at", at, "--out", str(tmp_path / name)) == 0
        lists[name] = pd.read_parquet(tmp_path / name).set_index([USER_ID, RANK])[ITEM_ID]
        table = read_settings(home.root).event_table(home.dataset)
        table.append([NewEvent("one", STRANGER, item, RATING_KIND, 3.0, now, now)])
        table.close()
    after = lists["after"].drop(STRANGER)
    changed = (lists["before"] != after).groupby(USER_ID).mean()
    assert changed.mean() < 0.05
    assert home.run("train", "--only", "features", "--force") == 0
    store = FeatureStore(read_settings(home.root).feature_store(home.dataset))
    state = store.online_state(STRANGER)
    store.close()
    assert state is not None
    assert state.timestamps[0] - last_recorded <= 2 * 86_400  # the first live day follows the last recorded one
    assert (state.timestamps[0] - now) % 86_400 == 0
