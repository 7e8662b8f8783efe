"""The planted world's test window with two newcomers in it, for the tests of the replay."""

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from recsys.bundle import Bundle
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.evaluation.leaderboard import Replayed
from recsys.evaluation.replay import replay
from recsys.evaluation.replay import test_events as events_after
from recsys.features.histories import Histories
from recsys.features.item_stats import snapshots
from tests import planted

DAY = 86_400
UNKNOWN_USER = 7  # not even in the users table


@lru_cache
def events() -> pd.DataFrame:
    """The planted events, and two newcomers whose first events lie in the test window."""
    t2 = planted.planted_split().t2
    new = [
        (planted.SILENT_USER, 5, 4.0, t2 + 1_000),
        (planted.SILENT_USER, 11, 2.5, t2 + 1_000),
        (planted.SILENT_USER, 8, 5.0, t2 + 2 * DAY),
        (UNKNOWN_USER, 116, 1.0, t2 + 1_000),
    ]
    frame = pd.DataFrame(new, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP]).astype({RATING: np.float32})
    both = pd.concat([planted.planted_tables().events, frame])
    return both.sort_values([TIMESTAMP, USER_ID, ITEM_ID], ignore_index=True)


@lru_cache
def histories() -> Histories:
    return Histories.from_tables(planted.planted_catalogue(), events(), planted.planted_tables().users)


@lru_cache
def window() -> pd.DataFrame:
    return events_after(events(), planted.planted_split().t2)


def replayed(bundle: Bundle, **options: Any) -> Replayed:
    return replay(bundle, histories(), snapshots(events()), window(), **options)


def frame_of(ranks: Replayed, name: str) -> pd.DataFrame:
    return ranks.events.assign(rank=ranks.ranks(name))
